"""A rewrite that lets ONNX Runtime on x86 use its integer kernels, without changing what is computed.

x86 multiplies unsigned by signed bytes. ONNX Runtime turns signed activations into unsigned ones itself, but it does
not see through tensors with several readers: the blocks of a residual network stay in float32. Done beforehand, every
layer is fused. Adding 128 to codes and zero point leaves each represented number as it is.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

_SHIFT = 128


def unsigned_activations(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy of ``proto`` with int8 activations as uint8, and how many tensors were changed.

    A tensor is changed when one QuantizeLinear writes it and only DequantizeLinear nodes read it, inside the graph.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    graph = changed.graph
    # Only true scalars: the fused operators refuse arrays of one element.
    signed = {t.name: t for t in graph.initializer if t.data_type == TensorProto.INT8 and not t.dims}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {o.name for o in graph.output}
    touched: set[str] = set()
    shifted: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.output[0] in outputs:
            continue
        pairs = [node, *readers[node.output[0]]]
        plain = all(p.op_type == "DequantizeLinear" for p in pairs[1:])
        if plain and all(len(p.input) == 3 and p.input[2] in signed for p in pairs):
            for pair in pairs:
                pair.input[2] = _shifted(pair.input[2], signed, shifted, graph)
            touched.add(node.output[0])
    kept = [v for v in graph.value_info if v.name not in touched]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return (changed, len(touched)) if touched else (proto, 0)


def _shifted(
    name: str, signed: dict[str, onnx.TensorProto], shifted: dict[str, str], graph: onnx.GraphProto
) -> str:
    if name not in shifted:
        shifted[name] = f"{name}/unsigned"
        codes = numpy_helper.to_array(signed[name]).astype(np.int16) + _SHIFT
        graph.initializer.append(numpy_helper.from_array(codes.astype(np.uint8), shifted[name]))
    return shifted[name]
