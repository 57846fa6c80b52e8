"""One faulty region laid open: its operators, what goes in, what should come out, and a way to try a change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from dlas.core.errors import DlasError
from dlas.core.options import Configurable
from dlas.core.registry import Registry
from dlas.graph.passes import fold_batch_norm
from dlas.graph.signature import encoding_of
from dlas.verify.localize.alignment import Match, orders, relative, squeezed, turned
from dlas.verify.localize.network import Network, inputs_of
from dlas.verify.localize.walk import Region, State, Walk

_IR_VERSION = 10
_ROWS = 8  # on which changes are tried; the last word has the whole network on other rows

Change = Callable[[ir.Model], None]

explanations: Registry[type[Explanation]] = Registry("explanation", "dlas.verify.localize.explanations")


@dataclass(frozen=True)
class Proposal:
    """A reason for a fault, and the change that takes it away.

    Attributes:
        fault: Class: input, layout, parameter, attribute, graph or precision.
        kind: What exactly, in two or three words (``bias dropped``).
        detail: The same with names and values, for a report.
        node: Name of the operator of the target at fault.
        source_node: Name of the operator of the source that is right; empty where there is none.
        change: Edits a graph in place so that the fault is gone.
    """

    fault: str
    kind: str
    detail: str
    node: str
    source_node: str
    change: Change


class Explanation(Configurable):
    """A family of reasons why a region computes something else.

    Class attributes:
        cost: The cheaper are tried first; the first that makes replay agree wins.
    """

    cost: ClassVar[int] = 50

    def propose(self, case: Case) -> Iterator[Proposal]:
        """Reasons worth trying, the likeliest first."""
        raise NotImplementedError


class Case:
    """A region with everything needed to try changes on it.

    Args:
        walk: The walk that found it.
        state: Its last state, in which every region was put right.
        region: The region.
        fine: Relative L2 up to which a result under replay is right.
    """

    def __init__(self, walk: Walk, state: State, region: Region, fine: float) -> None:
        self.walk, self.state, self.region, self.fine = walk, state, region, fine
        self.target, self.source = walk.target, walk.source
        chosen = set(region.target_nodes)
        self.nodes = [n for n in self.target.steps if n.name in chosen]
        right = turned(walk.known.values[region.source], region.order, region.shape)
        self.rows = self._telling_rows(right)
        self.wanted = right[self.rows]
        self.opset = self.target.ir.graph.opset_imports.get("", 18)

    def _telling_rows(self, right: np.ndarray) -> np.ndarray:
        """The samples on which the region is most wrong: a bound that is rarely reached shows on few of them."""
        first = np.arange(min(_ROWS, len(right)))
        try:
            given = {n: self.state.values[n] for n in self.cut if n in self.state.values}
            found = self.target.compute([self.region.target], given)[self.region.target]
        except (DlasError, KeyError):
            return first
        if found.shape != right.shape or found.dtype.kind != "f":
            return first
        with np.errstate(invalid="ignore", over="ignore"):
            wrong = np.square(found - right, dtype=np.float64).reshape(len(right), -1).sum(axis=1)
        return np.sort(np.argsort(-np.nan_to_num(wrong, nan=np.inf), kind="stable")[: len(first)])

    @cached_property
    def cut(self) -> list[str]:
        """Tensors that go into the region."""
        made = {str(o.name) for n in self.nodes for o in n.outputs}
        fed = dict.fromkeys(f for n in self.nodes for f in self.target.fed(n))
        names = [name for name in fed if name not in made]
        return names or ([self.region.target] if not self.nodes else [])

    @cached_property
    def given(self) -> dict[str, np.ndarray]:
        """Right values of the tensors that go in, ``(rows, ...)``."""
        return {n: self.state.values[n][self.rows] for n in self.cut if n in self.state.values}

    @cached_property
    def small(self) -> ir.Model:
        """The region as a network of its own; edits by name fit it and the whole target alike."""
        return extracted(self.target, self.nodes, self.given, [self.region.target])

    def admit(self, tensor: str) -> None:
        """Let changes read one more tensor of the target whose value is known."""
        if tensor in self.given:
            return
        graph = self.small.graph
        self.given[tensor] = self.state.values[tensor][self.rows]
        kind = ir.TensorType(ir.DataType.from_numpy(self.given[tensor].dtype))
        graph.inputs.append(ir.Value(name=tensor, type=kind, shape=ir.Shape(self.given[tensor].shape[1:])))

    @cached_property
    def source_nodes(self) -> list[ir.Node]:
        """The source's operators, batch norms folded into the layers before them."""
        return list(self._source_region.graph)

    @cached_property
    def _source_region(self) -> ir.Model:
        chosen = set(self.region.source_nodes)
        nodes = [n for n in self.source.steps if n.name in chosen]
        made = {str(o.name) for n in nodes for o in n.outputs}
        fed = {f for n in nodes for f in self.source.fed(n)} - made
        given = {n: self.walk.known.values[n][:1] for n in sorted(fed) if n in self.walk.known.values}
        graph = extracted(self.source, nodes, given, [self.region.source])
        graph.graph.sort()
        fold_batch_norm(graph)
        return graph

    def array(self, node: ir.Node, index: int) -> np.ndarray | None:
        """A constant input of an operator of the target; None where it is computed or left out."""
        return _constant(node, index, self.target)

    def source_array(self, node: ir.Node, index: int) -> np.ndarray | None:
        """A constant input of one of :attr:`source_nodes`."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value.const_value is not None:
            return value.const_value.numpy()
        return _constant(node, index, self.source)

    def match(self, tensor: str) -> Match | None:
        """What a tensor of the target stands for."""
        return self.state.matches.get(tensor)

    def counterparts(self, source: str) -> list[str]:
        """Tensors of the target that stand for a tensor of the source."""
        return [t for t, m in self.state.matches.items() if m.source == source]

    def alike(self) -> Iterator[tuple[ir.Node, ir.Node]]:
        """Pairs of operators of one type, the target's and the source's, in order."""
        left = list(self.source_nodes)
        for node in self.nodes:
            other = next((n for n in left if n.op_type == node.op_type), None)
            if other is not None:
                left.remove(other)
                yield node, other

    @property
    def at_input(self) -> bool:
        """Whether the region begins at an input of the target."""
        return any(name in self.target.inputs for name in self.cut)

    def error(self, change: Change | None = None) -> float:
        """Relative L2 of the region's result under replay, after a change; infinite where it cannot be computed."""
        graph = self.small.clone()
        try:
            if change is not None:
                change(graph)
                graph.graph.sort()
            network = Network(graph, bind=False)
            result = network.compute([self.region.target], self._fed(graph))[self.region.target]
        except (DlasError, ValueError, KeyError, IndexError, TypeError):
            # A change that does not fit this region explains nothing.
            return float("inf")
        if result.shape != self.wanted.shape:
            return float("inf")
        return relative(self.wanted, result)

    def _fed(self, graph: ir.Model) -> dict[str, np.ndarray]:
        """What goes in; integer inputs of the network are encoded as the changed graph says."""
        fed = dict(self.given)
        for value in graph.graph.inputs:
            name = str(value.name)
            if name not in self.target.inputs or fed[name].dtype.kind not in "iu":
                continue
            real = self.real_input(name)
            decoder = next((n for n, _ in value.uses() if n.op_type == "DequantizeLinear"), None)
            known = encoding_of(decoder) if decoder is not None else None
            if real is not None and known is not None:
                info = np.iinfo(fed[name].dtype)
                codes = np.round(real / np.float32(known[0])) + known[1]
                fed[name] = np.clip(codes, info.min, info.max).astype(fed[name].dtype)
        return fed

    def real_input(self, name: str) -> np.ndarray | None:
        """The source's rows in the shape of the target's input ``name``; None where the two cannot be paired."""
        if len(self.source.inputs) != len(self.target.inputs):
            return None
        other = self.source.inputs[self.target.inputs.index(name)]
        rows = self.walk.source_inputs[other][self.rows]
        shape = self.given[name].shape if name in self.given else ()
        if rows.size != int(np.prod(shape)):
            return None
        small = squeezed(rows)
        wanted = tuple(d for d in shape[1:] if d != 1)
        order = next(orders(small.shape[1:], wanted), None)
        return None if order is None else turned(rows, order, tuple(shape[1:]))


def _constant(node: ir.Node, index: int, network: Network) -> np.ndarray | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return network.constants.get(str(value.name)) if value is not None and value.name else None


def extracted(
    network: Network, nodes: list[ir.Node], given: dict[str, np.ndarray], outputs: list[str]
) -> ir.Model:
    """Some nodes of a network as a graph: ``given`` become its inputs, constants its initializers."""
    made = {str(o.name) for n in nodes for o in n.outputs}
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(values.dtype), list(values.shape[1:])
        )
        for name, values in given.items()
    ]
    weights = {
        name: onnx.numpy_helper.from_array(network.constants[name], name)
        for node in nodes
        for name in inputs_of(node)
        if name in network.constants
    }
    missing = {n for node in nodes for n in inputs_of(node)} - made - set(given) - set(weights)
    inputs += [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in sorted(missing)]
    graph = onnx.helper.make_graph(
        [ir.to_proto(n) for n in nodes],
        "region",
        inputs,
        [onnx.ValueInfoProto(name=o) for o in outputs],
        list(weights.values()),
    )
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in network.ir.graph.opset_imports.items()]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION))
