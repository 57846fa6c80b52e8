"""Mutated files of every kind: refused in one line or read rightly, within limits, and no process of ours dies."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dlas.core.errors import ModelError, UnknownNameError
from dlas.core.figure import Outcome
from dlas.core.worker import WorkerFailure
from dlas.graph.format import formats, load_model, save_model
from dlas.graph.model import TensorSpec
from dlas.testing.fuzz import Fuzzer, Tally, probes
from dlas.testing.fuzz.engine import SECONDS
from dlas.testing.fuzz.mutate import _fields, mutate, protobuf
from dlas.testing.models import residual

# 2,000 and more in all; what takes tenths of a second to read gets fewer.
MUTATIONS = {"onnx": 450, "tflite": 450, "torch": 40, "safetensors": 20}
OTHERS = 130
GROWTH = 512 * 2**20  # all seeds are small


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    with Fuzzer(keep=tmp_path_factory.mktemp("findings")) as made:
        yield made


def targets() -> list[str]:
    return [*formats.names(), "npz", "parquet", "image", "stack", "study"]


@pytest.mark.parametrize("target", targets())
def test_mutated_files_break_nothing(fuzzer: Fuzzer, target: str) -> None:
    if target not in fuzzer.seeds:
        pytest.skip(
            f"no sound file of {target} can be made here: its library is missing, or only real files exist"
        )
    count = MUTATIONS.get(target, OTHERS)
    tally = fuzzer.run(target, range(count), batch=count)
    assert tally.findings == []
    assert tally.mutations == count
    assert tally.refused + tally.loaded + tally.runtime_deaths >= count
    assert tally.refused > 0, "no mutation was noticed: is the corpus sound?"
    assert tally.slowest_s < SECONDS
    assert tally.growth_bytes < GROWTH


def test_at_least_two_thousand_are_tried() -> None:
    assert sum(MUTATIONS.get(target, OTHERS) for target in targets() if target != "deep-compression") >= 2000


def test_mutants_that_load_are_compared_with_their_runtime(fuzzer: Fuzzer) -> None:
    for target in ("onnx", "tflite"):
        if target in fuzzer.seeds:
            tally = fuzzer.run(target, range(1000, 1060))
            assert tally.compared > 5
            assert tally.findings == []


def test_wrong_answers_are_noticed(tmp_path: Path) -> None:
    save_model(residual(seed=0), tmp_path / "a.onnx")
    other = save_model(residual(seed=1), tmp_path / "b.onnx").path
    with pytest.raises(probes.WrongAnswerError, match="off by"):
        probes.compare("onnx", other, load_model(tmp_path / "a.onnx"), lambda phase: None)
    assert probes.compare("onnx", other, load_model(other), lambda phase: None)


@pytest.mark.parametrize(
    ("phase", "reason", "tail", "kind"),
    [
        ("load", "killed by SIGSEGV", 'File "a/b.py", line 3 in load', "crash"),
        ("ours", "used more than 4 GiB of memory", "", "memory"),
        ("load", "ended with exit code 1", "Timeout (0:00:20)!", "slow"),
        ("own", "killed by SIGSEGV", "", ""),
    ],
)
def test_a_death_ends_one_mutation_only(
    fuzzer: Fuzzer, phase: str, reason: str, tail: str, kind: str
) -> None:
    facts = {"number": 4, "phase": phase, "tally": Tally(mutations=1, refused=1).to_dict()}
    (fuzzer.folder / "work" / "state.json").write_text(json.dumps(facts))
    tally, rest = fuzzer._death("onnx", [3, 4, 5, 6], WorkerFailure(Outcome.CRASH, reason, tail))
    assert rest == [5, 6]
    assert (tally.mutations, tally.refused) == (2, 1)
    assert [f.kind for f in tally.findings] == ([kind] if kind else [])
    assert tally.runtime_deaths == (not kind)


def test_unknown_targets_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="fuzz target"):
        probes.read("nonsense", tmp_path / "x")


def test_the_same_number_is_the_same_mutation(fuzzer: Fuzzer) -> None:
    assert fuzzer.mutant("onnx", 7) == fuzzer.mutant("onnx", 7)
    assert fuzzer.mutant("onnx", 7)[1] != fuzzer.mutant("onnx", 15)[1]


def test_counts_survive_a_file(fuzzer: Fuzzer) -> None:
    tally = fuzzer.run("stack", range(5))
    assert Tally.from_dict(json.loads(json.dumps(tally.to_dict()))) == tally


def test_protobuf_mutants_keep_their_lengths() -> None:
    data = residual().to_bytes()
    rng = random.Random(0)
    whole = sum(_fields(protobuf(data, rng)) is not None for _ in range(100))
    assert whole == 100


@pytest.mark.parametrize("data", [b"", b"\0", b"PK", b"{}", b"a" * 20])
def test_anything_can_be_mutated(data: bytes) -> None:
    rng = random.Random(1)
    for _ in range(50):
        assert isinstance(mutate(data or b"\0", rng), bytes)


def test_a_mutated_weight_is_no_structure(tmp_path: Path) -> None:
    """A changed bit in a weight loads and computes with that weight; NaN does not load."""
    data = bytearray(residual().to_bytes())
    weight = next(iter(residual().initializers.values())).astype(np.float32).tobytes()
    at = bytes(data).index(weight)
    data[at : at + 4] = np.float32(np.nan).tobytes()
    (tmp_path / "nan.onnx").write_bytes(data)
    with pytest.raises(ModelError, match="NaN"):
        load_model(tmp_path / "nan.onnx")


@pytest.mark.parametrize(
    ("scale", "change", "tolerance"),
    [
        (1.0, np.nan, probes._TOLERANCE),
        (1.0, np.inf, probes._TOLERANCE),
        (1.0, 0.0, probes._QUANTISED_TOLERANCE),
        (1e-3, 0.0, probes._TOLERANCE),
        (1.0, -1.0, probes._QUANTISED_TOLERANCE),
    ],
)
def test_small_answers_and_overflow_are_not_mistaken_for_rounding(
    scale: float, change: float, tolerance: float
) -> None:
    spec = TensorSpec("y", (1, 20), "float32")
    wanted = np.linspace(0.01, 0.1, 20, dtype=np.float32)[None] * np.float32(scale)
    probes._same(spec, [wanted], wanted * np.float32(1 + 1e-5), tolerance)
    with pytest.raises(probes.WrongAnswerError):
        probes._same(spec, [wanted], wanted * np.float32(change), tolerance)
    overflown = np.full_like(wanted, np.inf)
    probes._same(spec, [overflown], wanted, tolerance)  # nothing to compare with
