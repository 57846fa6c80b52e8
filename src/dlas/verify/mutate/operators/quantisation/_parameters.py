"""Where scales and zero points stand among the inputs of quantised operators."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from dlas.verify.mutate.editing import constant, nodes_of

# Operator to (scale, zero point) positions.
PLACES: dict[str, tuple[tuple[int, int], ...]] = {
    "QuantizeLinear": ((1, 2),),
    "DequantizeLinear": ((1, 2),),
    "QLinearConv": ((1, 2), (4, 5), (6, 7)),
    "QLinearMatMul": ((1, 2), (4, 5), (6, 7)),
}


def quantised(graph: ir.Model) -> Iterator[tuple[ir.Node, int, int]]:
    """Nodes with constant scales, and the positions of a scale and its zero point."""
    for node in nodes_of(graph, *PLACES):
        for scale, zero in PLACES[node.op_type]:
            if constant((*node.inputs, None, None)[scale]) is not None:
                yield node, scale, zero


def known(node: ir.Node, index: int) -> np.ndarray | None:
    """A constant input, if it is there."""
    return constant(node.inputs[index]) if index < len(node.inputs) else None
