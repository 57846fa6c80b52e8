"""Running mutants: verdicts, scores, budgets, resuming, and workers that die."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlas.core.errors import DlasError, OptionError, StorageError
from dlas.core.options import Choice
from dlas.data.find import load_dataset
from dlas.graph.format import load_model
from dlas.models.pretrained import pretrained_path
from dlas.testing import models
from dlas.verify.differential import NoiseFloor
from dlas.verify.mutate import engine, mutate
from dlas.verify.mutate.journal import Journal
from dlas.verify.mutate.mutation import Site
from dlas.verify.mutate.report import MutationReport
from dlas.verify.mutate.selection import MUTATENN, choose, chosen_operators
from dlas.verify.mutate.verdicts import Fate, judge


def fates(found: MutationReport, path: str = "onnxruntime") -> dict[str, Fate]:
    return {m.mutant.name: m.fates[path].fate for m in found.mutants}


def test_crashes_hangs_and_bad_answers_are_verdicts_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "ANSWERS", "mutate_fakes:faulty")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    found = mutate(
        models.residual(),
        operators="add-to-sub,swap-inputs,relu-to-sigmoid,scale-weights,drop-bias",
        max_mutants=5,
        timeout_s=8,
        jobs=2,
    )
    by_name = {m.mutant.mutation.name: m.fates["onnxruntime"] for m in found.mutants}
    assert by_name["add-to-sub"].fate is Fate.CRASH
    assert "SIGSEGV" in by_name["add-to-sub"].reason
    assert by_name["swap-inputs"].fate is Fate.CRASH
    assert by_name["swap-inputs"].reason == "no answer within 8 s"
    assert "no such kernel" in by_name["relu-to-sigmoid"].reason
    assert by_name["scale-weights"].fate is Fate.KILLED
    assert "NaN" in by_name["scale-weights"].reason
    assert by_name["drop-bias"].fate in (Fate.KILLED, Fate.SCORE_KILLED)


def test_a_run_its_score_and_that_it_can_be_resumed(tmp_path: Path) -> None:
    def run(folder: Path, jobs: int) -> MutationReport:
        operators = "scale-weights:factor=-4,swap-inputs,perturb-bias:share=0.00001,ceil-mode"
        return mutate(
            models.residual(),
            operators=operators,
            max_mutants=5,
            paths="ort:O0,ort:O1",
            folder=folder,
            jobs=jobs,
        )

    found = run(tmp_path, 2)
    assert found.paths == ("ort:O0", "ort:O1")
    met = fates(found, "ort:O1")
    assert len(met) == 5
    assert met["swap-inputs-001"] is Fate.EQUIVALENT
    assert met["perturb-bias-share-1e-05-001"] in (Fate.SCORE_KILLED, Fate.NEAR_EQUIVALENT)
    counting = [f for f in met.values() if f.counts]
    score = found.score("ort:O1")
    assert score is not None
    assert score.n == len(counting) == len(met) - 1  # all but the equivalent one
    assert score.value == sum(f.noticed for f in counting) / len(counting)
    assert found.no_effect == ("ceil-mode",)
    assert "ceil-mode" not in found.coverage
    assert found.coverage["swap-inputs"].sites == 1
    assert (found.random, found.rows) == (True, 32)

    figure = found.discrepancy("ort:O0", "ort:O1")
    assert figure is not None
    assert (figure.value, figure.n) == (0, 5 * 32)
    assert found.to_dict()["discrepancy"]["ort:O0 | ort:O1"]["without_fault"] == 0

    report = (tmp_path / "report.json").read_bytes()
    lines = (tmp_path / "finished.jsonl").read_text().splitlines()
    assert len(lines) == 5
    # A kill in the middle of a line, and a line of somebody else's.
    (tmp_path / "finished.jsonl").write_text("\n".join([lines[0], "[1]", lines[1], lines[2][:40]]))
    again = run(tmp_path, 1)
    assert again.resumed == 2
    assert (tmp_path / "report.json").read_bytes() == report
    assert len(Journal(tmp_path)) == 5


def test_a_network_that_runs_nowhere_is_told_at_once() -> None:
    with pytest.raises(DlasError, match="not finite"):
        mutate(models.residual(nan=True), operators="add-to-sub")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        mutate(models.residual(), operators="add-to-sub", folder=tmp_path / "file" / "below")


def test_bad_options() -> None:
    for option, value in (("max_mutants", -1), ("rows", 0), ("jobs", -1), ("timeout_s", 0)):
        with pytest.raises(OptionError, match=option):
            mutate(models.residual(), **{option: value})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="paths"):
        mutate(models.residual(), paths="")
    with pytest.raises(OptionError, match="add a path of tvm"):
        mutate(models.residual(), operators="store-type")


SITES = {
    Choice.of("add-to-sub"): [Site(f"a{i}") for i in range(2)],
    Choice.of("drop-bias"): [Site(f"b{i}") for i in range(20)],
    Choice.of("scale-weights"): [Site(f"c{i}") for i in range(20)],
}


def test_a_budget_is_spread_over_mutations_first() -> None:
    mutants = choose(SITES, 12, seed=0)
    count = {
        name: sum(m.mutation.name == name for m in mutants)
        for name in ("add-to-sub", "drop-bias", "scale-weights")
    }
    assert count == {"add-to-sub": 2, "drop-bias": 5, "scale-weights": 5}
    assert len({m.name for m in mutants}) == 12
    assert len(choose(SITES, 0, seed=0)) == 42


def test_the_seed_alone_decides() -> None:
    assert choose(SITES, 12, seed=5) == choose(SITES, 12, seed=5)
    assert choose(SITES, 12, seed=5) != choose(SITES, 12, seed=6)
    alone = choose({Choice.of("drop-bias"): SITES[Choice.of("drop-bias")]}, 5, seed=5)
    beside = [m for m in choose(SITES, 12, seed=5) if m.mutation.name == "drop-bias"]
    assert alone == beside


def test_names_of_operators() -> None:
    every = chosen_operators("all")
    assert len(every) == len(chosen_operators("graph")) + len(chosen_operators("program"))
    assert [str(c) for c in chosen_operators("transpose-input:where=conv,start=1,add-to-sub")] == [
        "transpose-input:start=1,where=conv",
        "add-to-sub",
    ]
    assert len(chosen_operators("mutatenn")) == len(MUTATENN) == 22


FLOOR = NoiseFloor(0, 50, 1e-3, 1e-6)


def scores(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (np.eye(5)[rng.integers(0, 5, 50)] * 4 + rng.random((50, 5))).astype(np.float32)


def test_judging_of_answers() -> None:
    right = scores()
    assert judge([right], [right.copy()], [FLOOR]).fate is Fate.EQUIVALENT
    near = right + 2 * np.spacing(np.float32(4))
    assert judge([right], [near], [FLOOR]).fate is Fate.NEAR_EQUIVALENT
    assert judge([right], [right * np.float32(1.01)], [FLOOR]).fate is Fate.SCORE_KILLED
    turned = right.copy()
    turned[0] = np.roll(turned[0], 1)
    assert judge([right], [turned], [FLOOR]).fate is Fate.KILLED
    assert judge([right], [np.tile(right[:1], (50, 1))], [FLOOR]).fate is Fate.DEGENERATE
    assert judge([right], [right[:, :3]], [FLOOR]).fate is Fate.KILLED
    assert judge([right], [right * np.nan], [FLOOR]).fate is Fate.KILLED


def test_a_flip_that_rounding_explains_is_no_kill() -> None:
    right = scores()
    right[0] = [1, 1.0005, 0, 0, 0]
    flipped = right.copy()
    flipped[0, 0] = 1.001
    assert judge([right], [flipped], [FLOOR]).fate is Fate.SCORE_KILLED
    assert judge([right], [flipped], [NoiseFloor()]).fate is Fate.KILLED


def test_the_most_telling_output_decides() -> None:
    right = scores()
    turned = np.roll(right, 1, axis=1)
    assert judge([right, right], [right, turned], [FLOOR, FLOOR]).fate is Fate.KILLED


def test_maps_have_no_labels_but_can_be_wrong() -> None:
    maps = np.random.default_rng(0).random((6, 3, 4)).astype(np.float32)
    assert judge([maps], [maps * np.float32(1.01)], [FLOOR]).fate is Fate.SCORE_KILLED
    assert judge([maps], [maps * 5], [FLOOR]).fate is Fate.KILLED


def test_integers_are_judged_exactly() -> None:
    codes = np.arange(50, dtype=np.int32).reshape(10, 5)
    assert judge([codes], [codes], [FLOOR]).fate is Fate.EQUIVALENT
    assert judge([codes], [codes + 1], [FLOOR]).fate is Fate.SCORE_KILLED


def test_a_journal_without_a_folder_keeps_nothing(tmp_path: Path) -> None:
    Journal(None).put("key", {"a": 1})
    assert Journal(None).get("key") is None
    Journal(tmp_path).put("key", {"a": 1})
    assert Journal(tmp_path).get("key") == {"a": 1}


def test_one_label_for_all_rows_is_degenerate() -> None:
    path = pretrained_path("digits-cnn")
    assert path is not None
    found = mutate(
        load_model(path),
        data=load_dataset("digits", split="test"),
        operators="scale-input:factor=0,extra-softmax",
        jobs=1,
    )
    assert list(fates(found).values()) == [Fate.DEGENERATE, Fate.SCORE_KILLED]
