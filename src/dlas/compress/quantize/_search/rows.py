"""Matrix products over the last axis, as Gemm on rows: the form whose bias is added before anything is rounded."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dlas.compress.qdq import QdqWriter
from dlas.compress.quantize._int8.scheme import constant


def products_on_rows(graph: ir.Graph) -> int:
    """Rewrite, in place, each MatMul of a tensor of rank 3 or more with a matrix of weights, and a bias that follows.

    It becomes Reshape to rows, Gemm, Reshape back. Left alone where more than the leading dimension is dynamic.

    Returns:
        Number of products rewritten.
    """
    writer = QdqWriter(graph)
    count = 0
    for node in list(graph):
        if node.op_type == "MatMul" and node.domain in ("", "ai.onnx"):
            count += _rewrite(graph, node, writer)
    return count


def _rewrite(graph: ir.Graph, node: ir.Node, writer: QdqWriter) -> bool:
    x, weight = node.inputs[0], constant(node.inputs[1])
    if x is None or x.shape is None or len(x.shape) < 3 or weight is None or weight.ndim != 2:
        return False
    sizes = list(x.shape.dims)
    if constant(x) is not None or any(not isinstance(size, int) for size in sizes[1:]):
        return False
    add, bias = _bias_after(node, weight.shape[1])
    last = node if add is None else add
    out, name = last.outputs[0], str(node.name or node.outputs[0].name)
    rows_in = writer.constant(np.array([-1, weight.shape[0]], np.int64), f"{name}_rows")
    back = writer.constant(np.array([-1, *map(int, sizes[1:-1]), weight.shape[1]], np.int64), f"{name}_shape")  # type: ignore[arg-type]
    flat = ir.node("Reshape", [x, rows_in], name=writer.name(f"{name}_to_rows"))
    inputs = [flat.outputs[0], node.inputs[1]]
    if bias is not None:
        inputs.append(writer.constant(bias, f"{name}_bias"))
    gemm = ir.node("Gemm", inputs, name=node.name)
    whole = ir.node("Reshape", [gemm.outputs[0], back], name=writer.name(f"{name}_from_rows"))
    for made, what, columns in ((flat, "rows", weight.shape[0]), (gemm, "product", weight.shape[1])):
        value = made.outputs[0]
        value.name, value.type = writer.name(f"{name}_{what}_value"), x.type
        value.shape = ir.Shape([None, columns])
    now, was = whole.outputs[0], out.name
    now.shape, now.type = out.shape, out.type
    graph.insert_before(last, [flat, gemm, whole])
    ir.convenience.replace_all_uses_with(out, now, replace_graph_outputs=True)
    graph.remove([last, node] if add is not None else [node], safe=True)
    now.name = was
    return True


def _bias_after(node: ir.Node, columns: int) -> tuple[ir.Node | None, np.ndarray | None]:
    """The Add of a bias that is all that reads the product, and the bias, ``(columns,)``."""
    out = node.outputs[0]
    uses = list(out.uses())
    if len(uses) != 1 or out.is_graph_output() or uses[0].node.op_type != "Add":
        return None, None
    add = uses[0].node
    bias = constant(add.inputs[1 - uses[0].idx])
    if bias is None or bias.size != columns or bias.shape[-1:] != (columns,) or add.graph is not node.graph:
        return None, None
    return add, np.ascontiguousarray(bias.reshape(-1))
