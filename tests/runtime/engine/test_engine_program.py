"""Whole networks on the engine: right, in either layout, on every instruction set, with any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from networks import model_of, relative_error, residual, right_answers
from onnx import helper

from dlas.core.errors import DlasError, OptionError, UnknownNameError, UnsupportedError
from dlas.kernels.extension import isa_levels, missing_native
from dlas.kernels.kernel import Context
from dlas.runtime.artifact import Signature
from dlas.runtime.backend import backend_for, deployable
from dlas.runtime.engine.engine import assembled, prepared
from dlas.runtime.engine.passes import PASSES
from dlas.runtime.engine.select import Rule, candidates, choose

pytestmark = pytest.mark.skipif(bool(missing_native()), reason="the native kernels were not built")


def engine(model, *, threads=1, isa="native", rules=(), without=(), exact=False, batch=1):
    model = deployable(model)
    context = Context.here(threads, isa)
    network = prepared(model, without=without, batch=batch)
    found = candidates(network, context, [Rule.parse(r) for r in rules], exact=exact)
    return assembled(network, choose(network, found), Signature.of(model, batch), context, "rules")


@pytest.mark.parametrize("isa", isa_levels() if not missing_native() else [])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_residual_network_on_every_instruction_set(isa, threads):
    model = residual()
    with engine(model, isa=isa, threads=threads) as executable:
        inputs = executable.signature.random_inputs()
        assert relative_error(executable.run(inputs)["y"], right_answers(model, inputs)["y"]) < 2e-5


def test_two_threads_give_the_same_bits_as_one():
    model = residual(32, 17)
    with engine(model) as one, engine(model, threads=2) as two:
        inputs = one.signature.random_inputs()
        np.testing.assert_array_equal(one.run(inputs)["y"], two.run(inputs)["y"])


@pytest.mark.parametrize("name", list(PASSES))
def test_no_pass_changes_the_answers(name):
    model = residual()
    with engine(model, without=[name], exact=True) as executable:
        inputs = executable.signature.random_inputs()
        assert relative_error(executable.run(inputs)["y"], right_answers(model, inputs)["y"]) < 1e-5


@pytest.mark.parametrize(
    "rule", ["Conv=direct", "Conv=im2col-gemm", "Conv=spatial-pack", "Conv=winograd", "Conv=ort"]
)
def test_any_layer_by_any_kernel(rule):
    model = residual()
    with engine(model, rules=[rule]) as executable:
        inputs = executable.signature.random_inputs()
        assert relative_error(executable.run(inputs)["y"], right_answers(model, inputs)["y"]) < 1e-4
        name = {"ort": "onnxruntime"}.get(rule[5:], rule[5:])
        assert name in {step.impl for step in executable.steps}


def test_swapping_one_layer_changes_that_row_alone():
    plain, swapped = (
        engine(residual(32, 32), exact=True),
        engine(residual(32, 32), exact=True, rules=["node:second=winograd"]),
    )
    rows = [{s.name: s.impl for s in e.steps if s.op == "Conv"} for e in (plain, swapped)]
    assert {name for name in rows[0] if rows[0][name] != rows[1][name]} == {"second"}
    assert rows[1]["second"] == "winograd"


def test_the_last_rule_decides():
    executable = engine(residual(), rules=["Conv=direct", "node:third=im2col-gemm"])
    by_name = {s.name: s.impl for s in executable.steps}
    assert by_name["third"] == "im2col-gemm"
    assert by_name["fourth"] == "direct"


def test_outputs_may_be_inputs_inner_values_and_one_another():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "relu"),
        helper.make_node("Reshape", ["a", "shape"], ["b"], "flat"),
        helper.make_node("Identity", ["x"], ["c"], "same"),
        helper.make_node("Sigmoid", ["a"], ["d"], "sigmoid"),
    ]
    shapes = {"a": [1, 3, 4, 4], "b": [1, 48], "c": [1, 3, 4, 4], "d": [1, 3, 4, 4]}
    model = model_of(nodes, {"x": [1, 3, 4, 4]}, shapes, {"shape": np.array([1, 48])})
    with engine(model) as executable:
        inputs = executable.signature.random_inputs()
        found, right = executable.run(inputs), right_answers(model, inputs)
        for name in shapes:
            assert relative_error(found[name], right[name]) < 1e-6, name


def test_memory_is_reused_and_close_to_the_bound():
    executable = engine(residual(64, 32))
    figures = executable.memory()
    assert executable.program.memory.ratio <= 1.10
    assert figures["arena_bytes"].value < 0.9 * sum(
        b.place.bytes for b in executable.program._buffers.values()
    )


def test_a_second_run_is_not_changed_by_the_first():
    executable = engine(residual())
    a, b = executable.signature.random_inputs(1), executable.signature.random_inputs(2)
    first = executable.run(a)["y"]
    executable.run(b)
    np.testing.assert_array_equal(executable.run(a)["y"], first)


def test_a_runner_keeps_its_own_arrays_whatever_runs_between():
    executable = engine(residual())
    a, b = executable.signature.random_inputs(1), executable.signature.random_inputs(2)
    once = executable.runner(a)
    once()
    own = executable.program.bound.outputs[0]
    right = own.copy()
    given = executable.run(b)["y"]
    kept = given.copy()
    own[...] = 0
    once()
    np.testing.assert_array_equal(given, kept)  # the caller's array is not written again
    np.testing.assert_array_equal(own, right)
    del executable
    own[...] = 0
    once()
    np.testing.assert_array_equal(own, right)


def test_what_no_kernel_knows_goes_to_another_engine_and_is_told():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "relu"),
        helper.make_node("Hardmax", ["a"], ["b"], "hard"),
        helper.make_node("Add", ["a", "b"], ["y"], "sum"),
    ]
    model = model_of(nodes, {"x": [1, 5]}, {"y": [1, 5]}, {})
    executable = engine(model)
    inputs = executable.signature.random_inputs()
    np.testing.assert_allclose(executable.run(inputs)["y"], right_answers(model, inputs)["y"], rtol=1e-6)
    assert executable.notes == ("parts computed by onnxruntime",)


def test_profile_and_run_agree_on_what_there_is():
    executable = engine(residual())
    layers = executable.profile(executable.signature.random_inputs(), 3)
    assert [layer.name for layer in layers] == [step.name for step in executable.steps]
    assert all(layer.milliseconds > 0 for layer in layers)


@pytest.mark.parametrize(
    ("rules", "kind", "words"),
    [
        (["Conv=spatial-park"], UnknownNameError, "spatial-pack"),
        (["node:nowhere=direct"], UnknownNameError, "fourth"),
        (["Convolution=direct"], UnknownNameError, "Conv"),
        (["Conv"], OptionError, "OP=NAME"),
        (["Gemm=depthwise"], UnsupportedError, "does not compute Gemm"),
    ],
)
def test_rules_that_cannot_be_followed(rules, kind, words):
    with pytest.raises(kind, match=words):
        engine(residual(), rules=rules)


def test_the_back_end_checks_its_inputs():
    executable = backend_for("engine:policy=rules").compile(residual())
    with executable, pytest.raises(DlasError, match="float32"):
        executable.run({"x": np.zeros((1, 3, 12, 12))})


@pytest.mark.parametrize("rule", ["LSTM=lstm", "LSTM=onnxruntime"])
def test_outputs_that_were_left_out_stay_out(rule):
    rng = np.random.default_rng(0)
    w, r = (rng.standard_normal((1, 32, n)).astype(np.float32) * 0.3 for n in (5, 8))
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "", "c"], "cell", hidden_size=8),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    model = model_of(nodes, {"x": [6, 1, 5]}, {"y": [1, 1, 8]}, {"w": w, "r": r})
    with engine(model, rules=[rule], batch=6) as executable:
        inputs = executable.signature.random_inputs()
        assert relative_error(executable.run(inputs)["y"], right_answers(model, inputs)["y"]) < 1e-5
