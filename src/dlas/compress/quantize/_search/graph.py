"""The graph of a network with uniform weights of few bits: rounded floats while it is searched, codes in the end."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from dlas.compress.qdq import Grid, bias_codes
from dlas.compress.quantize._int8.rewrite import Rewriter
from dlas.compress.quantize._int8.scheme import Scheme, constant, input_at
from dlas.compress.quantize._search.uniform import UniformGrid

PACKED_OPSET, PACKED_IR = 21, 10  # the first with integers of 4 bits

# Operators whose later version says the same in more types or with further attributes.
_SAME_SINCE_18 = {
    "AveragePool", "Cast", "CastLike", "Constant", "ConstantOfShape", "DequantizeLinear", "Equal", "Flatten",
    "Identity", "IsInf", "IsNaN", "Pad", "QuantizeLinear", "ReduceMax", "ReduceMin", "Reshape", "Resize", "Shape",
    "Size", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


class FewBits(Rewriter):
    """Puts Q and DQ nodes for activations, and weights on uniform grids, into one graph.

    Args:
        graph: Editable float graph.
        scheme: What becomes integer there.
        grids: Grids of the activations.
        weights: Grids of the weights, by the name of the layer's output.
        stored: Whether weights become codes behind a DequantizeLinear and biases int32; otherwise both stay float,
            the weights rounded, one initializer per layer.
        packed: Whether codes of at most 4 bits are stored two in a byte, which needs opset 21.
    """

    def __init__(
        self,
        graph: ir.Graph,
        scheme: Scheme,
        grids: dict[ir.Value, Grid],
        weights: Mapping[str, UniformGrid],
        *,
        stored: bool,
        packed: bool = True,
    ) -> None:
        super().__init__(graph, scheme, grids)
        self.weight_grids, self.stored, self.packed = weights, stored, packed

    def _weights(self, node: ir.Node) -> None:
        weight, bias = constant(node.inputs[1]), constant(input_at(node, 2))
        name = str(node.outputs[0].name)
        if weight is None or node.inputs[0] is None:
            return
        grid = self.weight_grids[name]
        if not self.stored:
            value = self.writer.constant(grid.rounded(weight), f"{name}_weight")
            node.replace_input_with(1, value)
            return
        small = ml_dtypes.uint4 if self.packed and grid.bits <= 4 else np.uint8
        codes, zero = grid.quantize(weight).astype(small), grid.zero_point.astype(small)
        wide = Grid(grid.scale, zero, grid.axis)
        stored = self.writer.dequantized_constant(codes, wide, f"{name}_weight")
        self.graph.insert_before(node, stored)
        node.replace_input_with(1, stored.outputs[0])
        if bias is not None:
            integers, scale = bias_codes(bias.reshape(-1), self.grid(node.inputs[0]).scale, wide)
            stored = self.writer.dequantized_bias(integers, scale, f"{name}_bias")
            self.graph.insert_before(node, stored)
            node.replace_input_with(2, stored.outputs[0])


def can_pack(graph: ir.Graph) -> str:
    """Why a graph cannot be declared to be of opset 21; empty if it can."""
    opset = graph.opset_imports.get("", 0)
    if opset >= PACKED_OPSET:
        return ""
    for node in graph.all_nodes():
        if node.domain not in ("", "ai.onnx") or node.op_type in _SAME_SINCE_18:
            continue
        then = onnx.defs.get_schema(node.op_type, opset).since_version
        if onnx.defs.get_schema(node.op_type, PACKED_OPSET).since_version != then:
            return f"{node.op_type} changed its meaning between opset {opset} and {PACKED_OPSET}"
    return "" if opset >= 18 else f"it uses opset {opset}"
