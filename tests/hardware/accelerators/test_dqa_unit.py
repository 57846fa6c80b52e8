"""The activation quantiser: model and RTL agree, codes come back, bits are those of dlas's Huffman format."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import pytest

from dlas.core.errors import DataError, OptionError
from dlas.core.figure import Source
from dlas.hardware.accelerator import DoesNotFitError, accelerator_for
from dlas.hardware.accelerators._dqa import channel
from dlas.hardware.accelerators._dqa.accelerator import RESTORE, STORE, random_channel
from dlas.hardware.accelerators._dqa.channel import Stored
from dlas.hardware.accelerators._dqa.geometry import Geometry
from dlas.hardware.accelerators._dqa.noisy import NoisyUnit
from dlas.hardware.accelerators.dqa import Dqa, compare_units
from dlas.hardware.verification import verify
from dlas.kernels.formats import huffman
from dlas.kernels.kernel import Node, Operand

SMALL = Geometry(3, 3, 7, 640, 2)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_model_and_rtl_agree() -> None:
    found = verify(accelerator_for("dqa:values=640,longest=4"))  # short codes: some tables are made again
    assert found.passed, found.failures[:5]


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    ["dqa", "dqa:n=2,m=1,longest=3,decoders=8", "dqa:n=8,longest=3,decoders=1", "dqa:n=5,m=2,decoders=4"],
)
def test_model_and_rtl_of_other_sizes_agree(choice: str) -> None:
    found = verify(accelerator_for(choice))
    assert found.passed, found.failures[:5]


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["dqa:longest=3", "dqa"])
def test_model_and_rtl_agree_on_whole_channels(choice: str, random: np.random.Generator) -> None:
    unit = accelerator_for(choice)
    assert isinstance(unit, Dqa)
    for size in (49, 196, 784, 3135, 3136):
        values = random_channel(random, size)
        for op, given in (
            (STORE, values),
            (RESTORE, unit.layer(unit.node(STORE, size)).run(values, "tlm")[0]),
        ):
            layer = unit.layer(unit.node(op, size))
            (wanted, cycles), (found, real) = layer.run(given, "tlm"), layer.run(given, "rtl")
            assert np.array_equal(wanted, found)
            assert cycles == real


@pytest.mark.parametrize("bits", [3, 6, 11])
def test_rounding_is_that_of_the_exact_quotient(bits: int, random: np.random.Generator) -> None:
    scale = 1 << (bits - 1)
    for values in (
        [-32768, 32767, 0, 1, -1],
        [0, 0],
        [3, -3, 1, 2],
        random.integers(-700, 700, 300).tolist(),
    ):
        codes, peak = channel.quantize(np.array(values, np.int16), bits)
        assert peak == max(1, *map(abs, values))
        wanted = [ceil(Fraction(x * scale, peak) - Fraction(1, 2)) for x in values]
        assert codes.tolist() == [min(max(q, -scale), scale - 1) for q in wanted]
        back = [ceil(Fraction(q * peak, scale) - Fraction(1, 2)) for q in codes.tolist()]
        assert channel.dequantize(codes, peak, bits).tolist() == back


def test_restoring_inverts_the_quantiser_up_to_half_a_step(random: np.random.Generator) -> None:
    values = random.integers(-9000, 9001, 500).astype(np.int16)
    codes, peak = channel.quantize(values, 6)
    back = channel.dequantize(codes, peak, 6).astype(int)
    inside = codes < 31  # the highest code also stands for the step above it
    assert np.abs(back - values)[inside].max() <= peak / 64 + 1
    assert channel.dequantize(np.arange(7, dtype=np.int32), 96, 6).tolist() == [0, 3, 6, 9, 12, 15, 18]


@pytest.mark.parametrize(
    "geometry", [SMALL, Geometry(2, 1, 3, 640, 8), Geometry(8, 3, 3, 640, 1), Geometry(5, 2, 4, 640, 4)]
)
def test_codes_come_back_from_the_words(geometry: Geometry, random: np.random.Generator) -> None:
    for size in (1, 7, 8, 9, 49, 196, 640):
        for _ in range(20):
            codes, peak = channel.quantize(random_channel(random, size), geometry.bits)
            stored = channel.encode(codes, peak, geometry)
            words = stored.words()
            assert len(words) <= geometry.most_words(size)
            assert np.array_equal(channel.decode(Stored.of_words(words, size, geometry), geometry), codes)


def test_table_and_payload_are_those_of_the_huffman_format(random: np.random.Generator) -> None:
    seen = set()
    for _ in range(60):
        codes, peak = channel.quantize(random_channel(random, 200), 6)
        stored = channel.encode(codes, peak, SMALL)
        residues = codes & 7
        counts = np.bincount(residues, minlength=8)
        lengths = huffman.code_lengths(counts)
        coded = huffman.payload_bits(counts, lengths) < 3 * len(codes)
        wanted = lengths if coded else np.zeros(8, np.uint8)
        bits = huffman.encode(residues, lengths if coded else np.full(8, 3))
        found = np.unpackbits(stored.payload.view(np.uint8).reshape(-1), bitorder="little")[
            : stored.payload_bits
        ]
        assert np.array_equal(stored.lengths, wanted)
        assert np.array_equal(found, bits)
        assert stored.bits(3) == 3 * 200 + len(bits) + 24 + 16 + 32
        seen.add((coded, len(bits) > 0))
    assert seen == {(True, True), (True, False), (False, True)}  # a code, a symbol alone, no code


@pytest.mark.parametrize("longest", [3, 4, 5, 6])
def test_codes_are_kept_short(longest: int) -> None:
    counts = np.array([1, 1, 2, 4, 8, 16, 32, 64])
    assert channel.code_table(counts, 7) == (pytest.approx(huffman.code_lengths(counts)), 1)
    lengths, attempts = channel.code_table(counts, longest)
    assert lengths.max() <= longest
    assert attempts > 1
    huffman.checked_lengths(lengths)


def test_trials_need_tables_that_are_made_again(random: np.random.Generator) -> None:
    unit = accelerator_for("dqa:values=640,longest=4")
    attempts = []
    for _ in range(200):
        _, given = unit.trial(random)
        if given.dtype == np.int16:
            counts = channel.residue_counts(channel.quantize(given, 6)[0], 3)
            attempts.append(channel.code_table(counts, 4)[1])
    assert max(attempts) > 1


def test_damaged_words_are_refused(random: np.random.Generator) -> None:
    unit = accelerator_for("dqa:values=640")
    assert isinstance(unit, Dqa)
    store, restore = (unit.layer(unit.node(op, 100)) for op in (STORE, RESTORE))
    words, _ = store.run(np.maximum(random.normal(0, 900, 100), 0).astype(np.int16), "tlm")
    table = SMALL.high_words(100)
    for place, value in ((0, 7), (0, 0o77777777), (1, 64)):
        damaged = words.copy()
        damaged[table, place] = value
        with pytest.raises(DataError):
            restore.run(damaged, "tlm")
    with pytest.raises(DataError, match="truncated"):
        Stored.of_words(words[:table], 100, SMALL)


def test_nodes_and_options_that_do_not_fit_are_refused() -> None:
    unit = accelerator_for("dqa:values=640")
    assert isinstance(unit, Dqa)
    with pytest.raises(DoesNotFitError, match="value buffer would need 1282 bytes, it has 1280"):
        unit.layer(unit.node(STORE, 641))
    node = Node(STORE, "", {}, (Operand((4, 4), "int16"),), (Operand((1, 2), "uint64"),))
    assert "not a channel" in unit.refuses(node)
    assert "words" in unit.refuses(
        Node(STORE, "", {}, (Operand((4,), "int16"),), (Operand((1, 2), "uint64"),))
    )
    for choice in ("dqa:m=4", "dqa:n=1", "dqa:longest=2", "dqa:decoders=3", "dqa:values=4"):
        with pytest.raises(OptionError):
            accelerator_for(choice)


def test_the_searching_unit_finds_the_best_scale_and_noise(random: np.random.Generator) -> None:
    unit = NoisyUnit(3, 4)
    values = np.maximum(random.normal(0, 6000, 49), 0).astype(np.int16)
    weights = random.normal(size=(7, 4))
    found = unit.search(values, weights)
    x = values.astype(float)
    wanted = x.reshape(7, 7) @ weights

    def error(step: float, noise: float) -> float:
        back = np.clip(np.ceil((x + noise) / step - 0.5), -4, 3) * step - noise
        return float(np.square(back.reshape(7, 7) @ weights - wanted).mean())

    steps = [x.max() * i / 300 for i in range(1, 101)]
    assert found.error_before == pytest.approx(min(error(s, 0.0) for s in steps))
    assert found.error == pytest.approx(min(error(found.step, found.step * j / 50) for j in range(-50, 50)))
    assert found.error <= found.error_before


def test_units_are_compared() -> None:
    unit = Dqa(n=3, m=3)
    found = compare_units(unit, runs=3)
    assert [row.values for row in found.rows] == [49, 196, 784, 3136]
    assert found.exact == 12
    for row in found.rows:
        figures = row.figures
        assert figures["ratio"].value > 50
        assert figures["rms_error"].value < figures["noisy_rms_error"].value
        assert row.store["total"].source is Source.SIMULATED
        assert row.noisy["total"].source is figures["ratio"].source is Source.ESTIMATED
        assert row.noisy["total"].value == sum(f.value for name, f in row.noisy.items() if name != "total")
        assert 3 + 72 / row.values < figures["bits_per_value"].value <= 6 + 72 / row.values
    assert found.to_dict()["rows"][3]["store"]["total"]["unit"] == "cycles"
    with pytest.raises(DoesNotFitError):
        compare_units(unit, [3137], runs=1)
    for wrong in ({"sizes": []}, {"runs": 0}, {"level": "gate"}, {"sizes": [0]}):
        with pytest.raises(OptionError):
            compare_units(unit, **{"sizes": [49], **wrong})
