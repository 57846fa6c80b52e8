"""The default strategy: how few runs of a network it takes, and what it does where the first look is not enough."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from dlas.verify.localize import edits
from dlas.verify.localize.network import Network, named
from dlas.verify.repair.job import Job
from dlas.verify.repair.strategies.replay import Replay

ROWS = 16
RNG = np.random.default_rng(3)
WEIGHTS = {f"w{i}": RNG.standard_normal((8, 8)).astype(np.float32) for i in range(4)}


def network(ceiling: float = 50.0) -> ir.Model:
    """Four products with a Clip behind the second one."""
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["c"]),
        helper.make_node("Clip", ["c", "low", "high"], ["d"], "clip"),
        helper.make_node("MatMul", ["d", "w2"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["y"], "last"),
    ]
    constants = {**WEIGHTS, "low": np.float32(-50), "high": np.float32(ceiling)}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, ["N", 8])],
        [helper.make_tensor_value_info("y", 1, ["N", 8])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    found = ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    )
    named(found)
    return found


def job(target: ir.Model) -> Job:
    """The first rows are small, so that a Clip bounds none of them."""
    x = np.random.default_rng(4).standard_normal((ROWS, 8)).astype(np.float32)
    x[:4] *= np.float32(0.002)
    return Job(network(), target, {"x": x})


def test_a_fault_costs_the_answers_of_both_networks_and_a_look_at_two_rows() -> None:
    target = network()
    edits.set_input(target, "last", 1, WEIGHTS["w3"] * np.float32(1.5))
    work = job(target)
    mended = Replay().mend(work)
    assert len(mended.patches) == 1
    # The source and the repaired target on all rows; on two of them the source, the target, and little more.
    assert 2 + 4 / ROWS <= work.runs <= 2 + 8 / ROWS
    assert work.error(work.output(mended.graph)) <= 1e-6


def test_a_target_without_faults_costs_no_more() -> None:
    work = job(network())
    mended = Replay().mend(work)
    assert not mended.patches
    assert work.runs == pytest.approx(2 + 4 / ROWS)


def test_a_fault_that_the_first_rows_do_not_show_is_repaired() -> None:
    work = job(network(ceiling=0.5))
    first = work.on(slice(0, 2))
    assert first.error(first.output(work.target)) == 0
    mended = Replay().mend(work)
    assert [p.evidence["target_node"] for p in mended.patches] == ["clip"]
    assert work.error(work.output(mended.graph)) <= 1e-6
    assert work.runs > 3


def test_what_the_first_look_changes_is_not_kept_where_it_is_not_enough() -> None:
    target = network(ceiling=0.5)
    edits.set_input(target, "last", 1, WEIGHTS["w3"] * np.float32(1.5))
    work = job(target)
    mended = Replay().mend(work)
    assert len(mended.patches) == 2
    assert work.error(work.output(mended.graph)) <= 1e-6
    graph = target
    for patch in mended.patches:
        graph = patch.apply(graph)
    assert np.array_equal(work.output(graph), work.output(mended.graph))  # type: ignore[arg-type]


def test_nodes_at_once_give_what_they_give_one_by_one() -> None:
    x = {"x": RNG.standard_normal((3, 1, 8)).astype(np.float32)}
    network_ = Network(network())
    together = network_.at_once(network_.steps, x)
    assert network_.work == 3 * len(network_.steps)
    for node, results in Network(network()).trace(x):
        for name, values in results.items():
            np.testing.assert_allclose(together[name], values, rtol=1e-5, atol=1e-6, err_msg=str(node.name))
    # From the middle on, with values given from outside.
    rest = network_.at_once(network_.steps[4:], {"d": together["d"]})
    assert set(rest) == {"e", "f", "y"}
    np.testing.assert_array_equal(rest["y"], together["y"])
    assert network_.at_once(network_.steps[4:], {}) == {}
    assert network_.at_once(network_.steps, {"x": x["x"][..., :5]}) == {}, "a product of other sizes fails"
