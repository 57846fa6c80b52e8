"""Operators that a back end computes otherwise are found, also where looking at them takes the fault away."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from dlas import api
from dlas.core.errors import DlasError, UnsupportedError
from dlas.core.figure import Outcome
from dlas.core.worker import WorkerFailure
from dlas.verify.localize import edits
from dlas.verify.localize.engine import Found
from dlas.verify.localize.network import Network, named
from dlas.verify.localize.runtime import find_in_runtime

Values = Mapping[str, np.ndarray]
INPUTS = {"input": np.random.default_rng(0).random((4, 1, 8, 8), np.float32)}


@functools.cache
def _loaded() -> ir.Model:
    graph = api.load("digits-cnn").editable()
    named(graph)
    return graph


@pytest.fixture
def graph() -> ir.Model:
    return _loaded().clone()


class FakeBackend:
    """Computes networks as they are written, except for what ``wrong`` does to a graph before it is run.

    Args:
        wrong: Changes a graph in place, as a compiler with a fault would.
        rounded: What happens to every result.
        refuse: A reason why a graph is not run, or an empty string.
    """

    def __init__(
        self,
        wrong: Callable[[ir.Model], None] = lambda graph: None,
        rounded: Callable[[np.ndarray], np.ndarray] = lambda values: values,
        refuse: Callable[[onnx.ModelProto], str] = lambda proto: "",
    ) -> None:
        self.wrong, self.rounded, self.refuse = wrong, rounded, refuse
        self.sizes: list[int] = []

    def __call__(self, proto: onnx.ModelProto, values: Values) -> dict[str, np.ndarray]:
        onnx.checker.check_model(proto)
        self.sizes.append(len(proto.graph.node))
        if reason := self.refuse(proto):
            raise WorkerFailure(Outcome.CRASH, reason)
        graph = ir.from_proto(proto)
        self.wrong(graph)
        network = Network(graph)
        known = dict(values)
        for node in network.steps:
            known.update({n: self.rounded(v) for n, v in network.run(node, known).items()})
        return {name: known[name] for name in network.outputs}


def _find(graph: ir.Model, run: FakeBackend, **options: float) -> Found:
    return find_in_runtime(graph, INPUTS, run, path="fake:O3", **options)  # type: ignore[arg-type]


def _has(graph: ir.Model, name: str) -> bool:
    return any(n.name == name for n in graph.graph)


def _off(node: str) -> Callable[[ir.Model], None]:
    """Wrong wherever that operator is compiled."""

    def wrong(graph: ir.Model) -> None:
        if _has(graph, node):
            edits.insert_after(graph, node, "Mul", {}, {1: np.array([1.5], np.float32)})

    return wrong


def _fused(first: str, second: str, between: str) -> Callable[[ir.Model], None]:
    """Wrong where both operators are in one graph and nobody looks at what is between them."""

    def wrong(graph: ir.Model) -> None:
        outputs = {o.name for o in graph.graph.outputs}
        if _has(graph, first) and _has(graph, second) and between not in outputs:
            edits.insert_after(graph, second, "Mul", {}, {1: np.array([1.5], np.float32)})

    return wrong


def test_a_back_end_that_is_right_has_no_fault(graph: ir.Model) -> None:
    run = FakeBackend()
    found = _find(graph, run)
    assert found.faults == []
    assert found.flips == 0
    assert len(run.sizes) == 1  # and nobody looks any further


@pytest.mark.parametrize("node", ["conv1", "bn2", "conv3", "add", "relu_3", "pool.maxpool", "linear"])
def test_an_operator_computed_otherwise_is_named(graph: ir.Model, node: str) -> None:
    found = _find(graph, FakeBackend(_off(node)))
    assert [(f.fault, f.target_node) for f in found.faults] == [("runtime", node)]
    fault = found.faults[0]
    assert fault.before == pytest.approx(0.5, rel=1e-3)
    assert fault.tensor == edits.node_of(graph, node).outputs[0].name
    assert node in fault.detail
    assert found.rows == 4


def test_two_operators_are_both_named(graph: ir.Model) -> None:
    def both(graph: ir.Model) -> None:
        _off("conv2")(graph)
        _off("conv4")(graph)

    found = _find(graph, FakeBackend(both))
    # The second gets wrong values from the first; only where it is fed with right ones it can be told from a victim.
    assert "conv2" in [f.target_node for f in found.faults]


def test_the_reproducer_gives_what_was_expected_elsewhere(graph: ir.Model) -> None:
    fault = _find(graph, FakeBackend(_off("conv3"))).faults[0]
    session = ort.InferenceSession(fault.reproducer, providers=["CPUExecutionProvider"])
    given = {k.removeprefix("input:"): v for k, v in fault.samples.items() if k.startswith("input:")}
    assert [n.op_type for n in onnx.ModelProto.FromString(fault.reproducer).graph.node] == ["Conv"]
    np.testing.assert_allclose(session.run(None, given)[0], fault.samples["expected"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "between"),
    [("add", "relu_3", "add"), ("bn2", "relu_2", "bn2"), ("conv1", "bn1", "conv1")],
)
def test_operators_that_go_wrong_only_when_fused_are_found_by_cutting(
    graph: ir.Model, first: str, second: str, between: str
) -> None:
    run = FakeBackend(_fused(first, second, between))
    found = _find(graph, run)
    assert [(f.fault, f.target_node) for f in found.faults] == [("runtime", second)]
    fault = found.faults[0]
    assert fault.kind == "operators computed otherwise together"
    assert any("goes away" in note for note in found.notes)
    assert len(onnx.ModelProto.FromString(fault.reproducer).graph.node) == 2
    assert len(run.sizes) < 12  # bisection, not one compilation per operator


def test_what_goes_wrong_in_a_larger_context_only_is_said(graph: ir.Model) -> None:
    def wrong(graph: ir.Model) -> None:
        if len(graph.graph) > 8 and len(graph.graph.outputs) == 1 and _has(graph, "relu_3"):
            edits.insert_after(graph, "relu_3", "Mul", {}, {1: np.array([1.5], np.float32)})

    found = _find(graph, FakeBackend(wrong))
    assert [(f.kind, f.target_node) for f in found.faults] == [("wrong in context only", "relu_3")]
    assert found.faults[0].to_dict()["error_before"] is None  # JSON has no NaN


def test_two_operators_that_are_computed_otherwise_are_both_found(graph: ir.Model) -> None:
    def wrong(graph: ir.Model) -> None:
        _off("conv2")(graph)
        _off("conv4")(graph)

    run = FakeBackend(wrong)
    found = _find(graph, run)
    assert [f.target_node for f in found.faults] == ["conv2", "conv4"]
    assert len(run.sizes) == 3  # as it is, with every tensor, and all suspects apart from each other at once


def test_coarse_arithmetic_everywhere_is_one_fault_of_precision(graph: ir.Model) -> None:
    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(ml_dtypes.bfloat16).astype(values.dtype) if values.dtype.kind == "f" else values

    found = _find(graph, FakeBackend(rounded=rounded))
    assert [f.fault for f in found.faults] == ["precision"]
    words = re.match(r"(\d+) of (\d+) operators are each off", found.faults[0].detail)
    assert words is not None
    assert int(words[1]) > 0.8 * int(words[2])
    assert 1e-3 < found.faults[0].before < 0.03


def test_a_back_end_that_crashes_when_it_is_looked_at_is_cut(graph: ir.Model) -> None:
    def refuse(proto: onnx.ModelProto) -> str:
        return "segmentation fault" if len(proto.graph.output) > 1 else ""

    found = _find(graph, FakeBackend(_off("conv3"), refuse=refuse))
    assert [(f.fault, f.target_node) for f in found.faults] == [("runtime", "conv3")]
    assert any(
        "cannot run the network with every tensor as an output: segmentation fault" in n for n in found.notes
    )
    assert not any("goes away" in n for n in found.notes)


def test_a_back_end_that_crashes_on_the_operator_alone_says_so(graph: ir.Model) -> None:
    def refuse(proto: onnx.ModelProto) -> str:
        alone = len(proto.graph.node) == 1 or proto.graph.name == "apart"
        return "aborted itself" if alone else ""

    found = _find(graph, FakeBackend(_off("conv3"), refuse=refuse))
    assert [f.target_node for f in found.faults] == ["conv3"]
    assert "by itself it does not run: aborted itself" in found.faults[0].detail


def test_a_back_end_that_crashes_while_the_network_is_cut_is_an_error(graph: ir.Model) -> None:
    def refuse(proto: onnx.ModelProto) -> str:
        return "aborted itself" if len(proto.graph.output) > 1 or len(proto.graph.node) < 8 else ""

    with pytest.raises(DlasError, match="aborted itself"):
        _find(graph, FakeBackend(_off("conv2"), refuse=refuse))


def test_a_back_end_that_does_not_run_the_network_at_all_is_an_error(graph: ir.Model) -> None:
    with pytest.raises(WorkerFailure, match="no such operator"):
        _find(graph, FakeBackend(refuse=lambda proto: "no such operator"))


def test_the_tolerance_is_obeyed(graph: ir.Model) -> None:
    def wrong(graph: ir.Model) -> None:
        if _has(graph, "linear"):
            edits.insert_after(graph, "linear", "Mul", {}, {1: np.array([1.01], np.float32)})

    assert _find(graph, FakeBackend(wrong), tolerance=0.05).faults == []
    assert [f.target_node for f in _find(graph, FakeBackend(wrong), tolerance=1e-3).faults] == ["linear"]


def test_outputs_that_cannot_be_compared_are_not_called_right(graph: ir.Model) -> None:
    """Only real numbers with a batch axis are compared; a network that gives none must not pass."""
    edits.insert_after(graph, "linear", "ArgMax", {"axis": 1, "keepdims": 0})
    value = graph.graph.outputs[0]
    value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["N"])
    with pytest.raises(UnsupportedError, match="logits"):
        _find(graph, FakeBackend(_off("conv2")))
