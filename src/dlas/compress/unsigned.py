"""Signed activations stored unsigned, which lets ONNX Runtime on x86 use its integer kernels on the same numbers.

x86 multiplies unsigned by signed bytes. ONNX Runtime turns signed activations into unsigned ones itself, but it does
not see through tensors with several readers: the blocks of a residual network stay in float32. Done beforehand, every
layer is fused. Adding 128 to codes and zero point leaves each represented number as it is.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dlas.compress.qdq import QdqWriter


def unsigned_activations(graph: ir.Model) -> int:
    """Shift int8 activations of a QDQ graph to uint8, in place; every value stays exactly the same.

    onnxruntime on x86 multiplies uint8 activations by int8 weights far faster than int8 by int8, and leaves tensors
    with several readers float when they are int8. Weights, int32 biases, inputs and outputs keep their dtype.

    Returns:
        Number of tensors shifted.
    """
    writer = QdqWriter(graph.graph)
    shifted = 0
    for node in list(graph.graph):
        if node.op_type == "QuantizeLinear" and node.domain == "" and _signed(node):
            shifted += _shift_quantize(graph.graph, node, writer)
        elif node.op_type == "DequantizeLinear" and node.domain == "" and _signed(node):
            shifted += _shift_dequantize(graph.graph, node, writer)
    RemoveUnusedNodesPass()(graph)
    return shifted


_WEIGHT_INPUTS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (1,)}


def _signed(node: ir.Node) -> bool:
    """Whether a Q or DQ node has one int8 zero point: a true scalar, the fused operators refuse arrays of one."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    tensor = None if zero is None else ir.convenience.get_const_tensor(zero)
    return tensor is not None and tensor.dtype is ir.DataType.INT8 and len(tensor.shape) == 0


def _zero_point(node: ir.Node, writer: QdqWriter) -> ir.Value:
    zero = node.inputs[2]
    codes = _codes(zero)  # type: ignore[arg-type]
    return writer.constant(codes, f"{zero.name}_unsigned")  # type: ignore[union-attr]


def _codes(value: ir.Value) -> np.ndarray:
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    return (tensor.numpy().astype(np.int16) + 128).astype(np.uint8)


def _shift_quantize(graph: ir.Graph, node: ir.Node, writer: QdqWriter) -> int:
    out = node.outputs[0]
    if node.inputs[0] is None or ir.convenience.get_const_tensor(node.inputs[0]) is not None:
        return 0
    readers = [use.node for use in out.uses()]
    if not out.is_graph_output() and all(r.op_type == "DequantizeLinear" and _signed(r) for r in readers):
        for reader in readers:
            reader.replace_input_with(2, _zero_point(reader, writer))
        node.replace_input_with(2, _zero_point(node, writer))
        out.type = ir.TensorType(ir.DataType.UINT8)
        return 1
    pair = _unsigned_pair(node.inputs[0], node, f"{out.name}_before", writer)
    graph.insert_before(node, pair)
    node.replace_input_with(0, pair[1].outputs[0])
    return 1


def _shift_dequantize(graph: ir.Graph, node: ir.Node, writer: QdqWriter) -> int:
    source, out = node.inputs[0], node.outputs[0]
    if source is None:
        return 0
    if source.is_graph_input():
        uses = list(out.uses())
        pair = _unsigned_pair(out, node, f"{source.name}_after", writer)
        graph.insert_after(node, pair)
        for use in uses:
            use.node.replace_input_with(use.idx, pair[1].outputs[0])
        return 1
    weight = any(use.idx in _WEIGHT_INPUTS.get(use.node.op_type, ()) for use in out.uses())
    if weight or ir.convenience.get_const_tensor(source) is None:
        return 0
    node.replace_input_with(0, writer.constant(_codes(source), f"{source.name}_unsigned"))
    node.replace_input_with(2, _zero_point(node, writer))
    return 1


def _unsigned_pair(value: ir.Value, like: ir.Node, name: str, writer: QdqWriter) -> list[ir.Node]:
    """Q and DQ with the grid of ``like`` in uint8."""
    scale, zero = like.inputs[1], _zero_point(like, writer)
    codes = ir.Value(name=writer.name(f"{name}_quantized"), shape=value.shape)
    codes.type = ir.TensorType(ir.DataType.UINT8)
    result = ir.Value(name=writer.name(f"{name}_dequantized"), shape=value.shape)
    result.type = ir.TensorType(ir.DataType.FLOAT)
    return [
        ir.node("QuantizeLinear", [value, scale, zero], outputs=[codes], name=writer.name(f"{name}_q")),
        ir.node("DequantizeLinear", [codes, scale, zero], outputs=[result], name=writer.name(f"{name}_dq")),
    ]
