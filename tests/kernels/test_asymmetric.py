"""The asymmetric instruction: the emulator against a loop in plain Python, the models against their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from dlas.core.errors import OptionError, ShapeError
from dlas.core.figure import Source
from dlas.kernels.asymmetric import systolic, throughput
from dlas.kernels.asymmetric.emulate import ACCUMULATORS, OverflowStats, emulate, safe_depth


def by_hand(a: np.ndarray, w: np.ndarray, accumulator: str, spill: int | None) -> tuple[list, dict[str, int]]:
    """One output at a time, one k at a time, in Python's own integers."""
    (m, depth), n = a.shape, w.shape[1]
    stats = dict.fromkeys(
        ("updates", "overflows", "any_overflow", "final_overflow", "wrong", "spills", "largest"), 0
    )
    result = []
    for i in range(m):
        row = []
        for j in range(n):
            total = held = window = exact_total = 0
            ever = final = False
            for start in range(0, depth, 8):
                added = sum(int(a[i, k]) * int(w[k, j]) for k in range(start, min(start + 8, depth)))
                exact_total += added
                window += added
                held += added
                stats["updates"] += 1
                stats["largest"] = max(stats["largest"], abs(held))
                if not -32768 <= held <= 32767:
                    stats["overflows"] += 1
                    ever = True
                    if accumulator == "wrap":
                        held = (held + 32768) % 65536 - 32768
                    elif accumulator == "sat":
                        held = max(-32768, min(32767, held))
                done = start + 8
                if done >= depth or (spill is not None and done % spill == 0):
                    final = final or not -32768 <= window <= 32767
                    total += held
                    stats["spills"] += 1
                    held = window = 0
            stats["any_overflow"] += ever
            stats["final_overflow"] += final
            stats["wrong"] += total != exact_total
            row.append(total)
        result.append(row)
    return result, stats


def test_emulator_equals_a_loop_on_1000_cases():
    rng = np.random.default_rng(0)
    overflowed = dict.fromkeys(ACCUMULATORS, 0)
    for case in range(1000):
        m, n = (int(v) for v in rng.integers(1, 4, 2))
        depth = int(rng.choice([1, 3, 8, 9, 17, 40, 64, 100]))
        unsigned = bool(rng.integers(2))
        a = rng.integers(0, 256, (m, depth)).astype(np.uint8) if unsigned else (
            rng.integers(-128, 128, (m, depth)).astype(np.int8))  # fmt: skip
        w = rng.integers(-8, 8, (depth, n)).astype(np.int8)
        if case % 2:  # close to the worst case, so that accumulators overflow
            a = np.where(rng.random(a.shape) < 0.9, a.max(), a).astype(a.dtype)
            w = np.where(rng.random(w.shape) < 0.9, -8 if case % 4 == 1 else 7, w).astype(np.int8)
        accumulator = ACCUMULATORS[case % 3]
        spill = [None, 8, 16, 32, 64][rng.integers(5)]
        found, stats = emulate(a, w, accumulator, spill)
        expected, counted = by_hand(a, w, accumulator, spill)
        assert found.dtype == np.int32
        assert found.tolist() == expected
        assert {name: getattr(stats, name) for name in counted} == counted
        assert stats.outputs == m * n
        overflowed[accumulator] += stats.overflows
    assert min(overflowed.values()) > 0


def test_int32_is_the_exact_product():
    rng = np.random.default_rng(1)
    a, w = rng.integers(0, 256, (20, 500)).astype(np.uint8), rng.integers(-8, 8, (500, 30))
    found, stats = emulate(a, w, "int32")
    np.testing.assert_array_equal(found, a.astype(np.int64) @ w)
    assert stats.wrong == 0


def test_wrapped_sums_are_the_exact_ones_modulo_65536():
    rng = np.random.default_rng(2)
    a, w = rng.integers(0, 256, (10, 800)).astype(np.uint8), rng.integers(0, 8, (800, 12))
    found, stats = emulate(a, w, "wrap")
    np.testing.assert_array_equal(found, (a.astype(np.int64) @ w).astype(np.int16))
    assert stats.final_rate == stats.wrong_rate == stats.any_rate == 1
    # A total that fits is right, whatever happened on the way.
    a, w = np.full((1, 64), 255, np.uint8), np.repeat(np.int8([[7], [-7]]), 32, axis=0)
    found, stats = emulate(a, w, "wrap")
    assert (found.item(), stats.any_overflow, stats.final_overflow, stats.wrong) == (0, 1, 0, 0)
    found, stats = emulate(a, w, "sat")
    assert (found.item(), stats.any_overflow, stats.wrong) == (32767 - 32 * 255 * 7, 1, 1)


def test_spilling_often_enough_is_exact():
    rng = np.random.default_rng(3)
    a = rng.choice(np.int8([-128, 127]), (30, 640))
    w = rng.choice(np.int8([-7, 7]), (640, 30))
    found, stats = emulate(a, w, "sat", spill=32)
    assert stats.overflows == stats.wrong == 0
    np.testing.assert_array_equal(found, a.astype(np.int64) @ w)
    # The one case of signed 4-bit weights that 32 products do not hold.
    worst, stats = emulate(np.full((1, 32), -128, np.int8), np.full((32, 1), -8), "wrap", spill=32)
    assert (worst.item(), stats.overflows, stats.largest) == (-32768, 1, 32768)
    a = np.full((1, 160), 255, np.uint8)
    for w in (np.full((160, 1), -8), np.full((160, 1), 7)):
        assert emulate(a, w, "wrap", spill=16)[1].overflows == 0
    assert emulate(a, np.full((160, 1), -8), "wrap", spill=24)[1].overflows > 0


def test_safe_depths():
    assert safe_depth(np.int8) == 28
    assert safe_depth(np.uint8) == 16
    assert safe_depth(np.int8, 7) == 36
    assert safe_depth(np.zeros(1, np.uint8), 7) == 16
    with pytest.raises(OptionError, match="int16"):
        safe_depth(np.int16)
    with pytest.raises(OptionError, match="largest_weight"):
        safe_depth(np.int8, 9)


def test_rates_and_sums_of_stats():
    one = OverflowStats(10, 1, 4, 2, 1, 3, 4, 50)
    assert (one.overflow_rate, one.any_rate, one.final_rate, one.wrong_rate) == (0.1, 0.5, 0.25, 0.75)
    assert one + OverflowStats(5, 0, 1, 0, 0, 0, 1, 90) == OverflowStats(15, 1, 5, 2, 1, 3, 5, 90)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"w": np.full((8, 2), 8)}, "w = 8"),
        ({"w": np.full((8, 2), -9)}, "w = -9"),
        ({"w": np.zeros((0, 2), np.int8), "a": np.zeros((2, 0), np.int8)}, "K >= 1"),
        ({"w": np.zeros((8, 2), np.float32)}, "float32"),
        ({"w": np.zeros(8, np.int8)}, "matrix"),
        ({"a": np.zeros((2, 8), np.int16)}, "int16"),
        ({"a": np.zeros((2, 8), np.float32)}, "float32"),
        ({"a": np.zeros((0, 8), np.int8)}, "M >= 1"),
        ({"a": np.zeros((2, 9), np.int8)}, "9 columns"),
        ({"a": [[1]]}, "list"),
        ({"accumulator": "clip"}, "accumulator"),
        ({"spill": 12}, "spill = 12"),
        ({"spill": 0}, "spill = 0"),
        ({"spill": -8}, "spill = -8"),
    ],
)
def test_emulator_refuses(change, named):
    given = {"a": np.zeros((2, 8), np.int8), "w": np.zeros((8, 2), np.int8), **change}
    with pytest.raises((OptionError, ShapeError), match=named):
        emulate(**given)


def test_instruction_counts_of_a_product():
    found = throughput.instructions(8, 16, 64, "asymmetric")
    assert all(f.source is Source.ESTIMATED for f in found.values())
    counts = {name: f.value for name, f in found.items()}
    # 4 x 4 tiles, 8 steps, every vector of A and B loaded once.
    assert counts["mmla"] == 128
    assert counts["loads"] == 8 * (4 + 4)
    assert (counts["widens"], counts["stores"]) == (32, 32)
    assert counts["cycles"] == 4 + 64
    assert counts["macs_per_cycle"] == 8 * 16 * 64 / 68
    other = {name: f.value for name, f in throughput.instructions(8, 16, 64, "symmetric").items()}
    assert (other["mmla"], other["widens"], other["stores"]) == (256, 0, 32)
    assert other["loads"] == 8 * (4 + 8)
    few = throughput.IssueOptions(tile_rows=2, tile_columns=4)
    assert throughput.instructions(8, 16, 64, "symmetric", few)["loads"].value == 8 * (4 * 2 + 8 * 2)


def test_speedup_tends_to_two():
    big = [throughput.speedup(m, n, 2**16).value for m in (16, 63, 64) for n in (16, 64, 256)]
    assert 1.999 < min(big) <= max(big) <= 2
    narrow = [throughput.speedup(m, 4, 2**16).value for m in (2, 16, 64, 1024)]
    assert narrow == sorted(narrow)
    assert 1.49 < narrow[0] < 1.51
    assert narrow[-1] > 1.99
    by_depth = [throughput.speedup(16, 16, k).value for k in (8, 16, 64, 256, 4096)]
    assert by_depth == sorted(by_depth)
    assert by_depth[0] < 1 < by_depth[2]
    assert throughput.speedup(64, 2, 2**16).value == pytest.approx(1, abs=1e-3)
    assert throughput.speedup(64, 6, 2**16).value == pytest.approx(1.5, abs=1e-3)


def test_wide_vectors_hold_several_tiles():
    for bits in (128, 256, 512):
        options = throughput.IssueOptions(vector_bits=bits)
        found = throughput.instructions(16, 64, 256, "asymmetric", options)
        assert found["mmla"].value == 8 * (16 * 128 // bits) * 32
        assert throughput.speedup(64, 64, 2**15, options).value > 1.99


def test_spilling_costs_when_it_is_frequent():
    often = throughput.IssueOptions(spill=8, others_per_cycle=1)
    assert throughput.speedup(64, 64, 2**12, often).value < 1 < throughput.speedup(64, 64, 2**12).value


def test_systolic_cycles():
    options = systolic.ArrayOptions(rows=8, columns=4)
    found = systolic.cycles(100, 17, 20, "asymmetric", options)
    assert found["cycles"].value == 3 * 3 * (100 + 8 + 4 - 2)
    assert found["cycles"].source is Source.ESTIMATED
    assert systolic.cycles(100, 17, 20, "symmetric", options)["cycles"].value == 3 * 5 * 110
    assert systolic.speedup(100, 16, 20, options).value == 2
    assert systolic.speedup(100, 3, 20, options).value == 1
    full = systolic.cycles(10**6, 8, 8, "asymmetric", options)
    assert full["utilisation"].value == pytest.approx(1, abs=1e-4)
    assert full["macs_per_cycle"].value == pytest.approx(64, rel=1e-4)


@pytest.mark.parametrize("call", [throughput.speedup, systolic.speedup])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_models_refuse_sizes(call, wrong):
    for place in range(3):
        sizes = [8, 8, 8]
        sizes[place] = wrong
        with pytest.raises(OptionError, match="whole number"):
            call(*sizes)


def test_models_refuse_names_and_options():
    with pytest.raises(OptionError, match="instruction"):
        throughput.instructions(8, 8, 8, "both")
    with pytest.raises(OptionError, match="element"):
        systolic.cycles(8, 8, 8, "both")
    for given in ({"mmla_per_cycle": 0}, {"vector_bits": 64}, {"spill": 12}, {"tile_columns": -1}):
        with pytest.raises(OptionError, match=next(iter(given))):
            throughput.IssueOptions(**given)
    with pytest.raises(OptionError, match="rows"):
        systolic.ArrayOptions(rows=0)
