"""The figure ``robust_accuracy`` of a study: there with attacks in the stack file, absent without."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_study import InlineExecutor

from dlas.core.cache import Cache
from dlas.core.errors import OptionError, UnknownNameError
from dlas.explore.spec import StudySpec, spec_of
from dlas.explore.study import Study


def spec(**attack: object) -> StudySpec:
    return spec_of(
        {
            "data": {"path": "digits", "split": "test", "rows": 40, "check_rows": 8},
            "model": {"path": "digits-cnn"},
            "compress": {"pipeline": ["none", "float16"]},
            "study": {"timing": "quick", "objectives": ["max:robust_accuracy", "max:top1"]},
            "attack": attack,
        },
        "robust",
    )


def test_a_study_with_attacks_has_the_robust_accuracy_of_every_network(tmp_path: Path) -> None:
    executor = InlineExecutor()
    given = spec(attacks="fgsm", eps="24/255", rows=20)
    study = Study(given, tmp_path / "out", executor=executor, cache=Cache(tmp_path / "cache"))
    result = study.run()
    assert executor.calls.count("attack_network") == 2
    for point in result.points:
        robust, clean = point.record.figures["robust_accuracy"], point.record.figures["top1"]
        assert robust.n == 20
        assert robust.value < clean.value
        assert robust.low is not None
    again = Study(given, tmp_path / "out", executor=executor, cache=Cache(tmp_path / "cache")).run()
    assert executor.calls.count("attack_network") == 2
    assert len(again.pareto) >= 1


def test_a_study_without_attacks_has_none(tmp_path: Path) -> None:
    executor = InlineExecutor()
    result = Study(spec(), tmp_path / "out", executor=executor, cache=Cache(tmp_path / "cache")).run()
    assert "attack_network" not in executor.calls
    assert all("robust_accuracy" not in p.record.figures for p in result.points)


def test_why_there_is_no_figure_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlas.core.lazy import installed

    monkeypatch.setattr("dlas.core.lazy.installed", lambda module: module != "art" and installed(module))
    study = Study(
        spec(attacks="boundary", rows=10),
        tmp_path / "out",
        executor=InlineExecutor(),
        cache=Cache(tmp_path / "cache"),
    )
    for point in study.run().points:
        assert "robust_accuracy" not in point.record.figures
        assert any("no boundary: needs art" in note for note in point.record.facts["notes"])


def test_wrong_attacks_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown attack 'fsgm'"):
        Study(spec(attacks="fsgm"), tmp_path)
    with pytest.raises(OptionError, match="eps = '9'"):
        Study(spec(attacks="fgsm", eps="9"), tmp_path)
    with pytest.raises(UnknownNameError, match="key in \\[attack\\] 'epsilon'"):
        spec(epsilon="8/255")
    with pytest.raises(OptionError, match="attack: rows = 0"):
        spec(rows=0)
