"""Rewrites that turn float nodes into ones that have an integer form, with the same result up to rounding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dlas.compress.qdq import QdqWriter
from dlas.compress.quantize._int8.scheme import attribute, constant, input_at


def lower(graph: ir.Graph) -> None:
    """Rewrite ``graph`` in place.

    A batch normalisation that could not be folded becomes a depthwise 1x1 convolution, a mean over all image axes a
    global average pool, a matrix product followed by a bias a Gemm; alpha and beta of a Gemm go into its weights.
    """
    writer = QdqWriter(graph)
    for node in list(graph):
        rewrite = _REWRITES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rewrite is not None and node.graph is graph:
            rewrite(graph, node, writer)


def restore_weights(graph: ir.Graph) -> None:
    """Turn weights stored as integers behind a DequantizeLinear back into float32, in place."""
    writer = QdqWriter(graph)
    for node in list(graph):
        codes = constant(input_at(node, 0)) if node.op_type == "DequantizeLinear" else None
        scale = constant(input_at(node, 1))
        out = node.outputs[0]
        if codes is None or scale is None or "block_size" in node.attributes or out.is_graph_output():
            continue
        zero = constant(input_at(node, 2))
        zero = np.zeros_like(scale) if zero is None else zero
        if scale.ndim:
            shape = [1] * codes.ndim
            shape[int(attribute(node, "axis", 1))] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        values = ((codes.astype(np.float32) - zero.astype(np.float32)) * scale).astype(scale.dtype)
        ir.convenience.replace_all_uses_with(out, writer.constant(values, f"{out.name}_restored"))
        graph.remove(node, safe=True)


def _replace(graph: ir.Graph, old: list[ir.Node], new: list[ir.Node]) -> None:
    """Put ``new`` where ``old`` stands; the last output of ``new`` takes over name, type and users of ``old``'s."""
    was, now = old[-1].outputs[0], new[-1].outputs[0]
    now.shape, now.type = was.shape, was.type
    name = was.name
    graph.insert_before(old[-1], new)
    ir.convenience.replace_all_uses_with(was, now, replace_graph_outputs=True)
    graph.remove(list(reversed(old)), safe=True)
    now.name = name


def _batch_norm(graph: ir.Graph, node: ir.Node, writer: QdqWriter) -> None:
    x = node.inputs[0]
    params = [constant(input_at(node, i)) for i in range(1, 5)]
    if x is None or x.shape is None or len(x.shape) not in (3, 4) or any(p is None for p in params):
        return
    if len(node.outputs) > 1 and any(out.uses() for out in node.outputs[1:]):
        return
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in params)
    factor = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    channels, ones = len(factor), [1] * (len(x.shape) - 2)
    name = node.name or "batch_norm"
    weight = writer.constant(factor.reshape(channels, 1, *ones).astype(np.float32), f"{name}_weight")
    bias = writer.constant((beta - mean * factor).astype(np.float32), f"{name}_bias")
    conv = ir.node("Conv", [x, weight, bias], {"group": channels, "kernel_shape": ones}, name=node.name)
    _replace(graph, [node], [conv])


def _mean(graph: ir.Graph, node: ir.Node, writer: QdqWriter) -> None:
    x, axes, stated = node.inputs[0], constant(input_at(node, 1)), node.attributes.get("axes")
    if stated is not None:  # how opset 17 and older say it
        axes = np.asarray(stated.value)
    if x is None or x.shape is None or axes is None or len(x.shape) < 3:
        return
    rank = len(x.shape)
    if {int(a) % rank for a in axes.reshape(-1)} != set(range(2, rank)):
        return
    pool = ir.node("GlobalAveragePool", [x], name=node.name)
    new = [pool]
    if not attribute(node, "keepdims", 1):
        middle = pool.outputs[0]
        middle.name = writer.name(f"{node.outputs[0].name}_pooled")
        middle.type = x.type
        middle.shape = ir.Shape([*x.shape.dims[:2], *[1] * (rank - 2)])
        squeezed = writer.constant(np.arange(2, rank, dtype=np.int64), f"{node.name}_axes")
        new.append(ir.node("Squeeze", [middle, squeezed], name=writer.name(f"{node.name}_squeeze")))
    _replace(graph, [node], new)


def _matmul(graph: ir.Graph, node: ir.Node, writer: QdqWriter) -> None:
    x, weight = node.inputs[0], constant(input_at(node, 1))
    out = node.outputs[0]
    if x is None or x.shape is None or len(x.shape) != 2 or weight is None or weight.ndim != 2:
        return
    uses = list(out.uses())
    if len(uses) != 1 or out.is_graph_output() or uses[0].node.op_type != "Add":
        return
    add = uses[0].node
    bias = constant(add.inputs[1 - uses[0].idx])
    if add.graph is not graph or bias is None or bias.ndim > 2 or bias.size != weight.shape[1]:
        return
    if bias.ndim == 2 and bias.shape[0] != 1:
        return
    stored = writer.constant(np.ascontiguousarray(bias.reshape(-1)), f"{node.name}_bias")
    _replace(graph, [node, add], [ir.node("Gemm", [x, node.inputs[1], stored], name=node.name)])


def _gemm(graph: ir.Graph, node: ir.Node, writer: QdqWriter) -> None:
    weight, bias = constant(input_at(node, 1)), constant(input_at(node, 2))
    if weight is None or weight.ndim != 2:
        return
    columns = weight.shape[0 if attribute(node, "transB", 0) else 1]
    if bias is not None and bias.shape != (columns,):
        if bias.size not in (1, columns) or bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1):
            return
        bias = np.broadcast_to(bias.reshape(-1), (columns,)).copy()
        node.replace_input_with(2, writer.constant(bias, f"{node.name}_bias"))
    for name, index, array in (("alpha", 1, weight), ("beta", 2, bias)):
        factor = attribute(node, name, 1.0)
        if factor == 1.0 or array is None:
            node.attributes.pop(name, None)
        elif index == 1 or input_at(node, 2) is not None:
            scaled = (array * np.float32(factor)).astype(np.float32)
            node.replace_input_with(index, writer.constant(scaled, f"{node.name}_{name}"))
            node.attributes.pop(name)


_REWRITES = {
    "BatchNormalization": _batch_norm,
    "ReduceMean": _mean,
    "MatMul": _matmul,
    "Gemm": _gemm,
}
