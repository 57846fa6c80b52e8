"""Which nodes of a graph become integer, which tensors get a grid, and which of them share one.

The rules are those under which onnxruntime fuses a QDQ graph into integer kernels and TFLite's 8-bit specification
accepts the same network: one table, one entry per operator.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from dlas.compress.qdq import Grid

Kind = Literal["weighted", "own", "same", "join", "fixed"]
"""``weighted``: multiplies by weights. ``own``: the output has its own grid. ``same``: the output keeps the input's
grid. ``join``: all inputs and the output share a grid. ``fixed``: TFLite prescribes the output's grid."""

_FREE = ("free",)


@dataclass(frozen=True)
class Rule:
    """How one operator is quantised.

    Attributes:
        kind: See :data:`Kind`.
        data: Positions of activation inputs; empty means all.
        refuse: Returns why a node of this type must stay float, or an empty string.
        grid: Output grid when ``kind`` is ``fixed``.
    """

    kind: Kind
    data: tuple[int, ...] = (0,)
    refuse: Callable[[ir.Node], str] = lambda node: ""
    grid: Grid | None = None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array behind a constant value, or None."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def attribute(node: ir.Node, name: str, default: float) -> float:
    """A numeric attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """An input, or None when it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def bounds(node: ir.Node) -> tuple[float, float] | None:
    """Least and greatest output of a Relu or a Clip with constant bounds that contain 0; None for anything else."""
    if node.op_type == "Relu":
        return (0.0, np.inf)
    if node.op_type != "Clip":
        return None
    ends = [-np.inf, np.inf]
    for i in (1, 2):
        if input_at(node, i) is not None:
            array = constant(input_at(node, i))
            if array is None or array.size != 1:
                return None
            ends[i - 1] = float(array.reshape(-1)[0])
    return (ends[0], ends[1]) if ends[0] <= 0.0 <= ends[1] else None


def _refuse_conv(node: ir.Node) -> str:
    if constant(input_at(node, 1)) is None:
        return "its weights are not constant"
    if input_at(node, 2) is not None and constant(input_at(node, 2)) is None:
        return "its bias is not constant"
    return ""


def _refuse_gemm(node: ir.Node) -> str:
    if attribute(node, "transA", 0):
        return "transA is set"
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return "alpha or beta is not 1"
    weight, bias = constant(input_at(node, 1)), constant(input_at(node, 2))
    if weight is None:
        return "its weights are not constant"
    columns = weight.shape[0 if attribute(node, "transB", 0) else 1]
    if input_at(node, 2) is not None and (bias is None or bias.size != columns):
        return "its third input is not a constant bias, one value per output"
    return ""


def _refuse_matmul(node: ir.Node) -> str:
    if constant(input_at(node, 0)) is not None:
        return "its left side is constant"
    weight = constant(input_at(node, 1))
    return "its weights are not a matrix" if weight is not None and weight.ndim != 2 else ""


def _refuse_pad(node: ir.Node) -> str:
    mode = node.attributes.get("mode")
    if mode is not None and mode.value != "constant":
        return ""
    value = input_at(node, 2)
    if value is None:
        return ""
    array = constant(value)
    return "" if array is not None and not np.any(array) else "it pads with something other than 0"


def _refuse_indices(node: ir.Node) -> str:
    return "it also returns indices" if len(node.outputs) > 1 and node.outputs[1].uses() else ""


def _refuse_clip(node: ir.Node) -> str:
    return "" if bounds(node) is not None else "its bounds are not constants around 0"


def _refuse_resize(node: ir.Node) -> str:
    mode = node.attributes.get("mode")
    return (
        ""
        if mode is None or mode.value in ("nearest", "linear")
        else f"mode {mode.value} overshoots its input"
    )


_PROBABILITY = Grid.of(1.0 / 256.0, -128)

RULES: dict[str, Rule] = {
    "Conv": Rule("weighted", (0,), _refuse_conv),
    "ConvTranspose": Rule("weighted", (0,), _refuse_conv),
    "Gemm": Rule("weighted", (0,), _refuse_gemm),
    "MatMul": Rule("weighted", (0, 1), _refuse_matmul),
    "Add": Rule("own", (0, 1)),
    "Sub": Rule("own", (0, 1)),
    "Mul": Rule("own", (0, 1)),
    "LeakyRelu": Rule("own"),
    "HardSwish": Rule("own"),
    "GlobalAveragePool": Rule("same"),
    "Sigmoid": Rule("fixed", grid=_PROBABILITY),
    "Softmax": Rule("fixed", grid=_PROBABILITY),
    "Tanh": Rule("fixed", grid=Grid.of(1.0 / 128.0, 0)),
    "AveragePool": Rule("same"),
    "MaxPool": Rule("same", (0,), _refuse_indices),
    "Relu": Rule("same"),
    "Clip": Rule("same", (0,), _refuse_clip),
    "Reshape": Rule("same"),
    "Flatten": Rule("same"),
    "Transpose": Rule("same"),
    "Squeeze": Rule("same"),
    "Unsqueeze": Rule("same"),
    "Identity": Rule("same"),
    "Slice": Rule("same"),
    "Split": Rule("same"),
    "Gather": Rule("same"),
    "Expand": Rule("same"),
    "Tile": Rule("same"),
    "Pad": Rule("same", (0,), _refuse_pad),
    "DepthToSpace": Rule("same"),
    "SpaceToDepth": Rule("same"),
    "Resize": Rule("same", (0,), _refuse_resize),
    "Concat": Rule("join", ()),
}


@dataclass
class Scheme:
    """The decision for one graph.

    Attributes:
        nodes: Nodes that become integer, in graph order, including absorbed activations.
        absorbed: Relu and Clip nodes that need no grid between them and the node before.
        tensors: Activations and constant operands that get a grid, in graph order.
        requantize: ``(node, input position)`` where a tensor of another grid enters a Concat.
        left: Name, operator and reason of each node that stays float.
    """

    nodes: list[ir.Node] = field(default_factory=list)
    absorbed: set[ir.Node] = field(default_factory=set)
    tensors: list[ir.Value] = field(default_factory=list)
    requantize: set[tuple[ir.Node, int]] = field(default_factory=set)
    left: list[tuple[str, str, str]] = field(default_factory=list)
    fixed: dict[ir.Value, Grid] = field(default_factory=dict)
    _parent: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def group(self, value: ir.Value) -> ir.Value:
        """The tensor that stands for all those sharing ``value``'s grid."""
        while value in self._parent:
            value = self._parent[value]
        return value

    def sources(self) -> list[ir.Value]:
        """The tensors whose values decide the grids: those not copied from another one of the same grid."""
        mixed = {node for node, _ in self.requantize}
        copies = {
            out
            for node in self.nodes
            if RULES[node.op_type].kind in ("same", "join") and node not in self.absorbed | mixed
            for out in node.outputs
        }
        return [v for v in self.tensors if v not in copies and self.group(v) not in self.fixed]

    def scores(self) -> list[ir.Value]:
        """Sources whose largest values are the network's answer: its outputs, and what a Softmax reads."""
        answers = [v for v in self.tensors if v.is_graph_output()]
        answers += [n.inputs[0] for n in self.nodes if n.op_type == "Softmax" and n.inputs[0] is not None]
        groups = {self.group(v) for v in answers}
        return [v for v in self.sources() if self.group(v) in groups]

    def join(self, value: ir.Value | None, other: ir.Value) -> None:
        """Let both share one grid; the group of ``value`` stays the one that stands for it."""
        if value is not None and (root := self.group(value)) is not (leaf := self.group(other)):
            self._parent[leaf] = root


def data_inputs(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """Positions and values of the activation inputs; the constant right side of a MatMul is a weight."""
    positions = RULES[node.op_type].data or tuple(range(len(node.inputs)))
    found = [(i, value) for i in positions if (value := input_at(node, i)) is not None]
    if node.op_type == "MatMul" and constant(input_at(node, 1)) is not None:
        return found[:1]
    return found


def weight_axis(node: ir.Node) -> int:
    """Output-channel axis of a weighted node's second input."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return 0
    return 1


def choose(graph: ir.Graph, keep_float: str = "", outputs: Collection[str] = ()) -> Scheme:
    """Decide what becomes integer.

    An operator that multiplies by weights starts an integer region; every other supported operator joins the region
    next to it, so that a lone Add between two unsupported nodes is left alone.

    Args:
        graph: Simplified float graph with types.
        keep_float: Patterns of node names that stay float, separated by ``|``.
        outputs: Nodes that stay float as well, by the name of their first output.
    """
    scheme = Scheme()
    patterns = [p for p in keep_float.split("|") if p]
    fit: dict[ir.Node, bool] = {}
    for node in graph:
        asked = bool(outputs) and node.outputs[0].name in outputs
        reason = "kept float as asked" if asked else _reason(node, patterns)
        fit[node] = not reason
        if reason:
            scheme.left.append((node.name or node.outputs[0].name or "", node.op_type, reason))
    active = {n for n in graph if fit[n] and RULES[n.op_type].kind == "weighted"}
    grown = True
    while grown:
        grown = False
        for node in graph:
            if node not in active and fit[node] and _touches(node, active):
                active.add(node)
                grown = True
    scheme.nodes = [n for n in graph if n in active]
    scheme.left += [
        (n.name or "", n.op_type, "no integer layer beside it") for n in graph if fit[n] and n not in active
    ]
    _absorb(scheme, active)
    _collect(scheme)
    _share(scheme)
    return scheme


def _reason(node: ir.Node, patterns: list[str]) -> str:
    if any(fnmatch.fnmatchcase(node.name or node.outputs[0].name or "", p) for p in patterns):
        return "kept float as asked"
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        return "no integer form"
    touched = [v for _, v in data_inputs(node)] + [node.outputs[0]]
    if any(v.dtype is not ir.DataType.FLOAT for v in touched):
        return "does not work on float32"
    if all(constant(v) is not None for _, v in data_inputs(node)):
        return "all its inputs are constant"
    return rule.refuse(node)


def _touches(node: ir.Node, active: set[ir.Node]) -> bool:
    before = any(v.producer() in active for _, v in data_inputs(node))
    return before or any(
        use.node in active and use.idx in [i for i, _ in data_inputs(use.node)]
        for out in node.outputs
        for use in out.uses()
    )


def _absorb(scheme: Scheme, active: set[ir.Node]) -> None:
    for node in scheme.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul"):
            continue
        out = node.outputs[0]
        uses = out.uses()
        if len(uses) == 1 and not out.is_graph_output():
            follower = next(iter(uses)).node
            if follower in active and bounds(follower) is not None:
                scheme.absorbed.add(follower)


def _collect(scheme: Scheme) -> None:
    seen: dict[ir.Value, None] = {}
    for node in scheme.nodes:
        if node not in scheme.absorbed:
            for _, value in data_inputs(node):
                seen.setdefault(value)
        followers = [use.node for use in node.outputs[0].uses()]
        if not any(f in scheme.absorbed for f in followers):
            for out in node.outputs:
                seen.setdefault(out)
    scheme.tensors = list(seen)


def _share(scheme: Scheme) -> None:
    """Put tensors that must have one grid into one group; tensors of unlike bounds enter a Concat requantised.

    A ReLU output whose grid reached below 0 could not be saturated by the integer kernel, so it keeps its own grid.
    """
    marks: dict[ir.Value, tuple[object, ...]] = {}  # what a tensor insists on
    for node in scheme.nodes:
        rule, out = RULES[node.op_type], node.outputs[0]
        if node in scheme.absorbed:
            marks[out] = ("bounds", bounds(node))
        elif rule.kind == "fixed" and rule.grid is not None:
            scheme.fixed[out] = rule.grid
            marks[out] = ("grid", float(rule.grid.scale), int(rule.grid.zero_point))
        elif rule.kind == "same":
            for copy in node.outputs:
                scheme.join(node.inputs[0], copy)
    for node in scheme.nodes:
        if RULES[node.op_type].kind != "join":
            continue
        wants = {i: marks.get(scheme.group(v), _FREE) for i, v in data_inputs(node)}
        agreed = len(set(wants.values())) == 1
        for i, value in data_inputs(node):
            if agreed or wants[i] == _FREE:
                scheme.join(value, node.outputs[0])
            else:
                scheme.requantize.add((node, i))
