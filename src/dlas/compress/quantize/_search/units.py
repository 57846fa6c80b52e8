"""What the scale search changes at a time: the layers of one attention or residual block, found by structure.

A residual block is what lies between a sum of two computed tensors and the place where its branches part: all that
leads to one of the summands and not to both. It is an attention block if a softmax in it weighs computed values.
Names of nodes play no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from dlas.compress.quantize._int8.scheme import constant
from dlas.core.errors import UnsupportedError

UNITS = ("auto", "attention", "residual", "layer")


@dataclass(frozen=True)
class Unit:
    """Layers whose scales change together.

    Attributes:
        kind: ``attention``, ``residual`` or ``layer``.
        layers: Positions in the list of layers that :func:`units` was given, in graph order.
    """

    kind: str
    layers: tuple[int, ...]


def units(graph: ir.Graph, layers: Sequence[ir.Node], kind: str) -> list[Unit]:
    """The search units of a network, in graph order; a layer is in one of them at most.

    Layers that the first output, by which the search judges, does not depend on are in none.

    Args:
        graph: The network, nodes in topological order.
        layers: Nodes with weights to quantise, in graph order.
        kind: ``attention``: blocks with a softmax. ``residual``: all blocks around a sum. ``layer``: every layer by
            itself. ``auto``: the first of these that the network has.

    Raises:
        UnsupportedError: There is no unit of that kind.
    """
    judged = _leading_to(graph.outputs[0])
    every = [Unit("layer", (i,)) for i, layer in enumerate(layers) if layer in judged]
    blocks = [] if kind == "layer" else _blocks(graph, layers)
    blocks = [b for b in blocks if judged.issuperset(layers[i] for i in b.layers)]
    attention = [block for block in blocks if block.kind == "attention"]
    found = {
        "attention": attention,
        "residual": blocks,
        "layer": every,
        "auto": attention or blocks or every,
    }[kind]
    if not found and not every:
        raise UnsupportedError(
            "no layer whose weights become integer leads to the network's first output",
            "make the output that matters the first one",
        )
    if not found:
        raise UnsupportedError(
            f"unit={kind} finds no {'attention' if kind == 'attention' else 'residual'} block in this network",
            "use unit=layer, which searches the scales of one layer at a time",
        )
    return found


def _blocks(graph: ir.Graph, layers: Sequence[ir.Node]) -> list[Unit]:
    nodes = list(graph)
    index = {node: i for i, node in enumerate(nodes)}
    inputs = {value: len(nodes) + i for i, value in enumerate(graph.inputs)}
    above: list[int] = []  # per node, which nodes and inputs it depends on, itself included, one bit each

    def reach(value: ir.Value | None) -> int:
        if value is None or constant(value) is not None:
            return 0
        producer = value.producer()
        if producer is None:
            return 1 << inputs[value] if value in inputs else 0
        return above[index[producer]]

    regions: list[int] = []
    for i, node in enumerate(nodes):
        reaches = [reach(value) for value in node.inputs]
        above.append(1 << i)
        for one in reaches:
            above[i] |= one
        if node.op_type == "Add" and len(reaches) == 2 and all(reaches) and reaches[0] & reaches[1]:
            regions.append((reaches[0] | reaches[1]) & ~(reaches[0] & reaches[1]))
    weighing = [i for i, node in enumerate(nodes) if _weighs(node)]
    owner: dict[int, int] = {}
    for region in sorted(regions, key=int.bit_count):  # inner blocks first: a layer belongs to the innermost
        for position, layer in enumerate(layers):
            if region >> index[layer] & 1:
                owner.setdefault(position, region)
    found: dict[int, list[int]] = {}
    for position in sorted(owner):
        found.setdefault(owner[position], []).append(position)
    made = [
        Unit("attention" if any(region >> i & 1 for i in weighing) else "residual", tuple(members))
        for region, members in found.items()
    ]
    return sorted(made, key=lambda unit: unit.layers)


def _leading_to(value: ir.Value) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(v for v in node.inputs if v is not None)
    return found


def _weighs(node: ir.Node) -> bool:
    """Whether a softmax gives the weights of a sum of computed values: it feeds a product with another one."""
    if node.op_type != "Softmax":
        return False
    seen, waiting = set(), list(node.outputs)
    while waiting:
        value = waiting.pop()
        for use in value.uses():
            after = use.node
            if after.op_type == "MatMul":
                return constant(after.inputs[1 - use.idx]) is None
            if after.op_type in _PASSED and after not in seen:
                seen.add(after)
                waiting.extend(after.outputs)
    return False


_PASSED = {"Dropout", "Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Mul", "Where"}
