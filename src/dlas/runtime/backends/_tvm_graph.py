"""Small rewrites that let TVM's ONNX front end read what it otherwise refuses, without changing what is computed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def readable_by_tvm(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``proto`` (opset 15 or later) in which float16 batch norms compute in float32 between two casts.

    TVM 0.27 gives the result of a float16 batch norm as float32 and then refuses the next layer. Other engines compute
    this operator in float32 too, so the numbers are theirs.
    """
    half = {t.name: t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT16}
    if not any(_is_half_norm(node, half) for node in proto.graph.node):
        return proto
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    nodes = list(changed.graph.node)
    del changed.graph.node[:]
    widened: dict[str, str] = {}
    for node in nodes:
        if not _is_half_norm(node, half):
            changed.graph.node.append(node)
            continue
        data, result = node.input[0], node.output[0]
        for i in range(1, 5):
            node.input[i] = _widen(node.input[i], half, widened, changed.graph)
        wide_in, wide_out = f"{result}/wide_in", f"{result}/wide_out"
        node.input[0], node.output[0] = wide_in, wide_out
        changed.graph.node.extend(
            [
                helper.make_node("Cast", [data], [wide_in], to=TensorProto.FLOAT),
                node,
                helper.make_node("Cast", [wide_out], [result], to=TensorProto.FLOAT16),
            ]
        )
    return changed


def _is_half_norm(node: onnx.NodeProto, half: dict[str, onnx.TensorProto]) -> bool:
    return node.op_type == "BatchNormalization" and all(name in half for name in node.input[1:5])


def _widen(
    name: str, half: dict[str, onnx.TensorProto], widened: dict[str, str], graph: onnx.GraphProto
) -> str:
    if name not in widened:
        widened[name] = f"{name}/wide"
        array = numpy_helper.to_array(half[name]).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(array, widened[name]))
    return widened[name]
