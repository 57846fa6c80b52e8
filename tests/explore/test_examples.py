"""The stack files that come with dlas are read, and what they name exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlas.cli.main import run_command
from dlas.compress.method import methods
from dlas.core.figure import Outcome
from dlas.core.options import Choice
from dlas.explore.spec import read_spec, read_specs
from dlas.explore.study import Study
from dlas.kernels.extension import missing_native
from dlas.runtime.backend import backend_for, backends
from dlas.runtime.engine.select import Rule

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda p: p.stem)
def test_it_is_read_and_what_it_names_has_these_options(path: Path) -> None:
    for spec in read_specs(path):
        for choice in spec.space.backends:
            assert choice.name in backends.names()
            backend_for(choice)
        for step in (step for pipeline in spec.space.compress for step in pipeline.steps):
            methods.get(step.name)(**step.as_dict())


def test_primitives_are_options_of_the_engine_however_they_are_spelled() -> None:
    """``impl=Conv=direct`` has two signs: the first ends the option's name."""
    choices = read_spec(EXAMPLES / "primitives.toml").space.backends
    assert dict(choices[1].options) == {"impl": "Conv=direct", "policy": "rules"}
    forced = [Rule.parse(dict(c.options)["impl"]) for c in choices[1:]]
    assert [(rule.op, rule.name) for rule in forced] == [
        ("Conv", name)
        for name in ("direct", "im2col-gemm", "spatial-pack", "winograd", "csr-gemm", "csr-direct")
    ]
    assert [Choice.parse(str(c)) for c in choices] == list(choices)
    node = Choice.parse("engine:impl=node:/layer1/conv=direct+Gemm=gemv,policy=rules")
    assert dict(node.options)["impl"] == "node:/layer1/conv=direct+Gemm=gemv"


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_native()), reason="the native kernels were not built")
def test_the_study_of_primitives_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = read_spec(
        EXAMPLES / "primitives.toml",
        {
            "runtime.backend": '["engine:policy=rules", "engine:policy=rules,impl=Conv=direct", '
            '"engine:policy=rules,impl=Conv=csr-gemm"]',
            "compress.pipeline": '["magnitude:sparsity=0.5"]',
        },
    )
    result = Study(spec, tmp_path / "out").run()
    outcomes = {(p.choices["compress"], p.choices["backend"]): p.record.outcome for p in result.points}
    assert outcomes.pop(("none", "engine:impl=Conv=csr-gemm,policy=rules")) is Outcome.UNSUPPORTED
    assert set(outcomes.values()) == {Outcome.OK}
    assert run_command(["study", "show", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "fewer multiply-accumulates" in told
    assert "magnitude:sparsity=0.5 · engine:impl=Conv=direct,policy=rules" in told
