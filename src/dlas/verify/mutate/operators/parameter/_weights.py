"""Which stored weights mutations of parameters change, and which of their axes are the output channels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from dlas.verify.mutate.editing import constant, layers


def weighted(graph: ir.Model) -> Iterator[tuple[ir.Node, np.ndarray]]:
    """Layers with floating-point weights, and the weights, in graph order."""
    for node in layers(graph):
        weight = constant(node.inputs[1])
        if weight is not None and np.issubdtype(weight.dtype, np.floating):
            yield node, weight


def weight_of(node: ir.Node) -> np.ndarray:
    """The weight of a layer that :func:`weighted` gave."""
    weight = constant(node.inputs[1])
    assert weight is not None
    return weight


def output_axis(node: ir.Node) -> int | None:
    """The axis of output channels in a layer's weight; None where groups split it over two."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if node.attributes.get_int("group", 1) == 1 else None
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0):
        return 0
    return weight_of(node).ndim - 1
