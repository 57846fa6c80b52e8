"""Keeps ONNX Runtime from quantising the weights of layers that were left float on purpose."""

from __future__ import annotations

import onnx_ir as ir

from dlas.compress.qdq import QdqWriter
from dlas.compress.quantize._int8.scheme import constant, input_at

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ABSORBED = ("Relu", "Clip")


def guard_float_layers(graph: ir.Graph) -> int:
    """Part each float layer that stands between two quantised tensors from the second one, in place.

    ONNX Runtime (its graph transformer WeightBiasQuantization) rounds the weights of a layer that reads from a
    DequantizeLinear and writes, maybe through a ReLU, to a QuantizeLinear: to one scale per tensor, which undoes the
    choice to keep it float. It does not where another operator stands in between; one that takes the maximum of a
    single tensor changes no value, and no engine removes or refuses it.

    Returns:
        Number of layers guarded.
    """
    writer = QdqWriter(graph)
    guarded = 0
    for quantize in list(graph):
        if quantize.op_type != "QuantizeLinear" or quantize.inputs[0] is None:
            continue
        value = quantize.inputs[0]
        layer = value.producer()
        if layer is not None and layer.op_type in _ABSORBED and layer.inputs[0] is not None:
            layer = layer.inputs[0].producer()
        if layer is None or not _would_be_quantised(layer):
            continue
        name = writer.name(f"{value.name}_kept_float")
        out = ir.Value(name=name, shape=value.shape, type=value.type)
        node = ir.node("Max", [value], outputs=[out], name=writer.name(f"{name}_node"))
        graph.insert_before(quantize, node)
        quantize.replace_input_with(0, out)
        guarded += 1
    return guarded


def _would_be_quantised(layer: ir.Node) -> bool:
    if layer.op_type not in _LAYERS or constant(input_at(layer, 1)) is None:
        return False
    source = layer.inputs[0].producer() if layer.inputs[0] is not None else None
    return source is not None and source.op_type == "DequantizeLinear"
