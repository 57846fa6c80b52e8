"""A network that can be computed node by node, with any tensor's values given from outside.

Localisation feeds each operator of the target with the values of the source (*isolated replay*), so every node is a
little network of its own in ONNX Runtime. Values carry one axis more than the tensors of the graph: ``(rows, ...)``,
where each row is one run of the network with a batch of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from dlas.core.errors import DlasError, ModelError, UnsupportedError
from dlas.graph.passes import infer_shapes
from dlas.graph.reference import explained

_IR_VERSION = 10
_MANY = 5  # rows from which on trying out whether they can be computed together pays
Values = Mapping[str, np.ndarray]


def named(graph: ir.Model) -> None:
    """Give every node a name of its own, in place; names that are unique already stay."""
    seen: set[str] = set()
    for count, node in enumerate(graph.graph):
        name = node.name or f"{node.op_type}_{count}"
        while name in seen:
            name += "_"
        node.name = name
        seen.add(name)


class Network:
    """The nodes of a graph in the order of execution, each runnable by itself.

    Args:
        graph: The graph, its nodes uniquely named; it is not changed.
        bind: Whether to set a dynamic batch to one first; a part of a network that has none needs no copy.

    Raises:
        UnsupportedError: The graph has control flow.
    """

    def __init__(self, graph: ir.Model, *, bind: bool = True) -> None:
        for node in graph.graph:
            if any(
                a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
            ):
                raise UnsupportedError(f"node {node.name!r} ({node.op_type}) holds a graph of its own")
        bound = _bound(graph) if bind else graph
        self.ir = bound
        self.nodes = list(bound.graph)
        self.inputs = [str(v.name) for v in bound.graph.inputs if v.name not in bound.graph.initializers]
        self.outputs = [str(v.name) for v in bound.graph.outputs]
        self.work = 0  # operators computed so far, each times the rows it was computed on
        self._sessions: dict[str, Any] = {}
        self._protos: dict[str, onnx.NodeProto] = {}
        self._apart: set[str] = set()  # nodes whose rows must be run one by one
        self._tried: set[str] = set()

    @cached_property
    def constants(self) -> dict[str, np.ndarray]:
        """Weights, and whatever depends on nothing but them."""
        found = {
            name: value.const_value.numpy()
            for name, value in self.ir.graph.initializers.items()
            if value.const_value is not None and name not in self.inputs
        }
        for node in self.nodes:
            names = inputs_of(node)
            if node.op_type.startswith("Random") or not all(n in found for n in names):
                continue
            found.update(self._once(node, {n: found[n] for n in names}))
        return found

    @cached_property
    def steps(self) -> list[ir.Node]:
        """The nodes whose results depend on the inputs, in the order of execution."""
        return [n for n in self.nodes if not all(str(o.name) in self.constants for o in n.outputs if o.name)]

    @cached_property
    def position(self) -> dict[str, int]:
        """Where each tensor is made in :attr:`steps`; inputs are at -1."""
        made = {str(o.name): i for i, node in enumerate(self.steps) for o in node.outputs if o.name}
        return {**dict.fromkeys(self.inputs, -1), **made}

    def maker(self, tensor: str) -> ir.Node | None:
        """The node that writes a tensor; None for inputs."""
        index = self.position.get(tensor, -1)
        return self.steps[index] if index >= 0 else None

    def readers(self, tensor: str) -> list[ir.Node]:
        """The nodes that read a tensor."""
        return self._readers.get(tensor, [])

    @cached_property
    def _readers(self) -> dict[str, list[ir.Node]]:
        found: dict[str, list[ir.Node]] = {}
        for node in self.steps:
            for name in dict.fromkeys(inputs_of(node)):
                found.setdefault(name, []).append(node)
        return found

    def fed(self, node: ir.Node) -> list[str]:
        """The tensors a node reads that are not constant."""
        return [name for name in dict.fromkeys(inputs_of(node)) if name not in self.constants]

    def between(self, outputs: Iterable[str], known: Mapping[str, object] | set[str]) -> list[ir.Node]:
        """The nodes that compute ``outputs`` from tensors in ``known``, in the order of execution."""
        wanted, chosen = list(outputs), set[int]()
        while wanted:
            name = wanted.pop()
            index = self.position.get(name, -1)
            if name in known or index < 0 or index in chosen:
                continue
            chosen.add(index)
            wanted += self.fed(self.steps[index])
        return [self.steps[i] for i in sorted(chosen)]

    def run(self, node: ir.Node, values: Values) -> dict[str, np.ndarray]:
        """Results of one node for every row; raises ModelError where it fails on them."""
        names = self.fed(node)
        given = [values[n] for n in names]
        self.work += len(given[0]) if given else 0
        try:
            together = self._together(node, given)
            if together is not None:
                return together
            session, outputs = self._session(node, given)
            rows = range(len(given[0]) if given else 0)
            found = [
                session.run(None, {n: np.asarray(v[row]) for n, v in zip(names, given, strict=True)})
                for row in rows
            ]
            return {name: np.stack([r[i] for r in found]) for i, name in enumerate(outputs)}
        except DlasError:
            raise
        except Exception as error:
            if isinstance(error, ValueError):  # rows of different shapes
                raise ModelError(f"node {node.name!r} gives another shape for every row") from error
            raise explained(error, str(node.name)) from error

    def compute(self, outputs: Iterable[str], values: Values) -> dict[str, np.ndarray]:
        """``outputs`` for every row, from the tensors in ``values``; raises ModelError where a node fails."""
        known = dict(values)
        wanted = list(outputs)
        for node in self.between(wanted, known):
            known.update(self.run(node, known))
        return {name: known[name] for name in wanted}

    def at_once(self, nodes: list[ir.Node], values: Values) -> dict[str, np.ndarray]:
        """Every result of several nodes, computed as one network for every row.

        That is much faster than node by node, but what a node is fed with then comes from the nodes before it.

        Args:
            nodes: In the order of execution.
            values: What they read and do not make themselves.

        Returns:
            Values by name; empty where the nodes cannot be run as one network, such as where one of them fails.
        """
        made = {str(o.name) for node in nodes for o in node.outputs if o.name}
        given = {n: values.get(n) for node in nodes for n in self.fed(node) if n not in made}
        present = {n: v for n, v in given.items() if v is not None}
        if not present or len(present) < len(given):
            return {}
        try:
            session, outputs = self._opened(nodes, present)
            found = [
                session.run(None, {n: v[row] for n, v in present.items()})
                for row in range(len(next(iter(present.values()))))
            ]
            self.work += len(nodes) * len(found)
            return {name: np.stack([r[i] for r in found]) for i, name in enumerate(outputs)}
        except Exception:  # what fails as one network is run node by node, and then speaks for itself
            return {}

    def trace(self, values: Values) -> Iterator[tuple[ir.Node, dict[str, np.ndarray]]]:
        """Every node with its results, in the order of execution, from the inputs in ``values``."""
        known = dict(values)
        left = {name: len(nodes) for name, nodes in self._readers.items()}
        for node in self.steps:
            found = self.run(node, known)
            known.update(found)
            yield node, found
            for name in self.fed(node):
                left[name] -= 1
                if left[name] == 0:
                    del known[name]  # activations of a large network do not fit into memory all at once

    def _together(self, node: ir.Node, given: list[np.ndarray]) -> dict[str, np.ndarray] | None:
        """Results with all rows in one run, or None where the node does not treat rows apart from each other.

        Whether it does is tried out the first time: the first and the last row are computed alone as well.
        """
        name = str(node.name)
        rows = len(given[0]) if given else 0
        if (
            name in self._apart
            or rows < (2 if name in self._tried else _MANY)
            or any(v.ndim < 2 or v.shape[1] != 1 for v in given)
        ):
            return None
        session, outputs = self._session(node, given)
        fed = self.fed(node)
        merged = {n: v.reshape(rows, *v.shape[2:]) for n, v in zip(fed, given, strict=True)}
        try:
            found = session.run(None, merged)
        except Exception:  # what fails with many rows is run with one, and then speaks for itself
            self._apart.add(name)
            return None
        if any(y.ndim == 0 or len(y) != rows for y in found):
            self._apart.add(name)
            return None
        found = [y[:, None] for y in found]
        if name not in self._tried:
            for row in (0, rows - 1):
                alone = session.run(None, {n: v[row] for n, v in zip(fed, given, strict=True)})
                if not all(_alike(a, y[row]) for a, y in zip(alone, found, strict=True)):
                    self._apart.add(name)
                    return None
            self._tried.add(name)
        return dict(zip(outputs, found, strict=True))

    def _session(self, node: ir.Node, given: list[np.ndarray]) -> tuple[Any, list[str]]:
        key = str(node.name)
        if key not in self._sessions:
            self._sessions[key] = self._opened([node], dict(zip(self.fed(node), given, strict=True)))
        return self._sessions[key]

    def _opened(self, nodes: list[ir.Node], given: Values) -> tuple[Any, list[str]]:
        """A session for some nodes and the names of all that they give."""
        import onnxruntime as ort

        outputs = [str(o.name) for node in nodes for o in node.outputs if o.name]
        inputs = [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), None)
            for n, v in given.items()
        ]
        weights = [
            onnx.numpy_helper.from_array(self.constants[n], n)
            for n in dict.fromkeys(n for node in nodes for n in inputs_of(node))
            if n in self.constants
        ]
        graph = onnx.helper.make_graph(
            [self._proto(node) for node in nodes],
            "nodes",
            inputs,
            [onnx.ValueInfoProto(name=o) for o in outputs],
            weights,
        )
        opsets = [onnx.helper.make_opsetid(d, v) for d, v in self.ir.graph.opset_imports.items()]
        small = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1  # one pool of threads per node would be hundreds
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        try:
            return ort.InferenceSession(
                small.SerializeToString(), options, providers=["CPUExecutionProvider"]
            ), outputs
        except Exception as error:
            raise explained(error, str(nodes[0].name)) from error

    def _proto(self, node: ir.Node) -> onnx.NodeProto:
        key = str(node.name)
        if key not in self._protos:
            self._protos[key] = ir.to_proto(node)
        return self._protos[key]

    def _once(self, node: ir.Node, values: Values) -> dict[str, np.ndarray]:
        """Results of a node whose inputs are all constant."""
        if node.op_type == "Constant" and "value" in node.attributes:
            return {str(node.outputs[0].name): node.attributes["value"].as_tensor().numpy()}
        import onnxruntime as ort

        weights = [onnx.numpy_helper.from_array(a, n) for n, a in values.items()]
        outputs = [str(o.name) for o in node.outputs if o.name]
        graph = onnx.helper.make_graph(
            [ir.to_proto(node)], "node", [], [onnx.ValueInfoProto(name=o) for o in outputs], weights
        )
        opsets = [onnx.helper.make_opsetid(d, v) for d, v in self.ir.graph.opset_imports.items()]
        small = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(
                small.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return dict(zip(outputs, map(np.asarray, session.run(None, {})), strict=True))
        except Exception as error:
            raise explained(error, str(node.name)) from error


def _bound(graph: ir.Model) -> ir.Model:
    """A copy with a batch of one, in the order of execution."""
    copy = graph.clone()
    copy.graph.sort()
    free = False
    for value in copy.graph.inputs:
        if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            value.shape, free = ir.Shape([1, *value.shape.dims[1:]]), True
    if free:
        for value in (o for node in copy.graph for o in node.outputs):
            value.shape = None
        infer_shapes(copy)
    return copy


def inputs_of(node: ir.Node) -> list[str]:
    """Names of the tensors a node reads, left-out ones aside."""
    return [str(v.name) for v in node.inputs if v is not None and v.name]


def _alike(alone: np.ndarray, together: np.ndarray) -> bool:
    if alone.shape != together.shape or alone.dtype != together.dtype:
        return False
    if not np.issubdtype(alone.dtype, np.floating):
        return bool(np.array_equal(alone, together))
    # Kernels for one row and for many may add up in another order.
    scale = float(np.abs(alone[np.isfinite(alone)]).max(initial=0.0))
    return bool(np.allclose(alone, together, rtol=1e-4, atol=1e-6 * scale + 1e-30, equal_nan=True))
