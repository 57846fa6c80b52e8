"""Plans: stored, followed, and refused for another network; and the portfolio that makes them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from networks import relative_error, residual, right_answers

from dlas import api
from dlas.core.errors import ModelError
from dlas.core.options import Choice
from dlas.kernels.extension import missing_native
from dlas.kernels.kernel import Context
from dlas.runtime.backend import backend_for
from dlas.runtime.engine import measured
from dlas.runtime.engine.engine import prepared
from dlas.runtime.engine.plan import Plan, machine
from dlas.runtime.engine.select import candidates
from dlas.runtime.engine.timings import Timings

pytestmark = pytest.mark.skipif(bool(missing_native()), reason="the native kernels were not built")


@pytest.fixture
def plan_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DLAS_CACHE", str(tmp_path / "cache"))
    plan, _ = api.optimize(residual(), policy="rules", impl=["node:second=direct"])
    plan.write(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_a_plan_is_followed(plan_file):
    with backend_for(Choice.of("engine", plan=str(plan_file))).compile(residual()) as executable:
        assert {s.name: s.impl for s in executable.steps}["second"] == "direct"
        inputs = executable.signature.random_inputs()
        assert relative_error(executable.run(inputs)["y"], right_answers(residual(), inputs)["y"]) < 2e-5


def test_the_plan_of_another_network_is_refused(plan_file):
    with pytest.raises(ModelError, match="not of this network"):
        backend_for(Choice.of("engine", plan=str(plan_file))).compile(residual(seed=1))


def test_a_plan_of_another_machine_is_followed_and_told(plan_file):
    stored = json.loads(plan_file.read_text())
    stored["machine"]["cpu"] = "Another Processor"
    plan_file.write_text(json.dumps(stored))
    with backend_for(Choice.of("engine", plan=str(plan_file))).compile(residual()) as executable:
        assert any("Another Processor" in note for note in executable.notes)


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"dlas_plan": 99}', '{"dlas_plan": 2, "impls": 3}', "\x00\x01"]
)
def test_a_damaged_plan_is_refused(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(ModelError, match="no plan"):
        Plan.read(tmp_path / "plan.json")


def test_a_missing_plan_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no plan"):
        Plan.read(tmp_path / "nowhere.json")


def test_the_portfolio_judges_whole_networks_and_remembers(tmp_path, monkeypatch):
    monkeypatch.setenv("DLAS_CACHE", str(tmp_path))
    plan, rows = api.optimize(residual())
    assert {"rules", "onnxruntime"} <= set(plan.measured_ms)
    assert all(ms > 0 for ms in plan.measured_ms.values())
    assert len(rows) == len(plan.impls)
    again, _ = api.optimize(residual())
    assert again.measured_ms == plan.measured_ms
    assert (again.backend, again.impls) == (plan.backend, plan.impls)


def test_timings_survive_and_a_damaged_table_is_made_anew(tmp_path):
    timings = Timings(tmp_path / "t.sqlite")
    timings.put(1.5, "kernel", ["a", 1])
    assert Timings(tmp_path / "t.sqlite").get("kernel", ["a", 1]) == 1.5
    assert timings.get("kernel", ["a", 2]) is None
    (tmp_path / "t.sqlite").write_bytes(b"no database at all" * 100)
    assert timings.get("kernel", ["a", 1]) is None
    timings.put(2.0, "x")
    assert timings.get("x") == 2.0


def test_measured_costs_choose_a_kernel_that_is_right(tmp_path, monkeypatch):
    monkeypatch.setenv("DLAS_CACHE", str(tmp_path))
    with backend_for("engine:policy=measure").compile(residual()) as executable:
        inputs = executable.signature.random_inputs()
        assert relative_error(executable.run(inputs)["y"], right_answers(residual(), inputs)["y"]) < 1e-4
    assert np.all([Timings().path.is_file()])


@pytest.mark.parametrize("step", [0.0, -0.01])
def test_a_clock_that_stands_still_gives_no_free_layer(tmp_path, monkeypatch, step):
    """Processor time kept by ticks may not move during a layer, and was seen to cost nothing in sum."""
    ticks = itertools.count()
    monkeypatch.setenv("DLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(measured, "thread_time", lambda: step * next(ticks))
    context = Context.here(1, "native")
    found = candidates(prepared(residual()), context, cost=measured.measured_cost(context))
    assert all(0 < min(c.seconds for c in choices) < 1 for choices in found)


def test_nodes_of_one_name_keep_their_own_kernels():
    """Names of nodes are for the eye; ONNX does not ask them to differ."""
    model = residual()
    network = prepared(model)
    calls = [replace(c, node=replace(c.node, name="same")) for c in network.calls]
    twins = network.with_calls(calls)
    context = Context.here(1)
    chosen = [
        next((c for c in options if c.name == ("direct" if place % 2 else "im2col-gemm")), options[0])
        for place, options in enumerate(candidates(twins, context))
    ]
    assert len({c.name for c in chosen}) > 2
    plan = Plan.of(twins, chosen, None, "fixed", machine=machine(1, context.isa))
    assert [(c.name, c.form) for c in plan.choices(twins, context)] == [(c.name, c.form) for c in chosen]
