"""Channel rules of operators that compute: convolutions, products, normalisation, element-wise, reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from dlas.graph.channels.labels import (
    AxisIds,
    Ids,
    Keep,
    Labels,
    Refusal,
    Rule,
    attribute,
    constant_of,
    label_of,
    sizes,
    sizes_of,
)

UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitShift Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink
    Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
"""
ELEMENTWISE = "Add And Div Equal Greater Less Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor"


def same(labels: Labels, node: ir.Node) -> None:
    """One input, one output of the same shape."""
    data, out = node.inputs[0], node.outputs[0]
    if data is None:
        return
    labels.put(out, dict(labels.of(data)))
    if labels.stored(data) is not None:
        labels.derive(out, data)


def _aligned(
    labels: Labels, operands: Sequence[tuple[list[int | None], AxisIds]], rank: int, reason: str
) -> AxisIds:
    """Ids of the result of broadcasting ``operands`` (their sizes and ids) to ``rank`` axes."""
    result: AxisIds = {}
    for axis in range(rank):
        wide: list[Ids | None] = []
        narrow: list[Ids | None] = []
        for dims, ids in operands:
            own = axis - rank + len(dims)
            if own >= 0:
                (narrow if dims[own] == 1 else wide).append(ids.get(own))
        if wide:
            for ids in narrow:
                labels.freeze(ids, f"{reason} spreads it over a longer axis")
        joined = labels.join(wide or narrow, f"{reason} joins it with a tensor that cannot lose channels")
        if joined is not None:
            result[axis] = joined
    return result


def elementwise(labels: Labels, node: ir.Node) -> None:
    """Unite position by position, with NumPy broadcasting."""
    operands = [(sizes(v), labels.of(v)) for v in node.inputs if v is not None]
    rank = max((len(dims) for dims, _ in operands), default=0)
    labels.put(node.outputs[0], _aligned(labels, operands, rank, label_of(node)))
    if node.op_type in ("Div", "Mod", "Pow"):
        stored = labels.stored(node.inputs[1])
        if stored is not None:
            labels.unmaskable.add(stored)


def convolution(labels: Labels, node: ir.Node) -> None:
    """Conv: outputs are the channels of the weight's first axis; depthwise passes its input's channels on."""
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None
    assert weight is not None
    shape, ids = sizes(weight), labels.of(weight)
    if 0 not in ids or 1 not in ids:
        raise Refusal("has weights that are computed while the network runs")
    groups = attribute(node, "group", 1)
    out, inner, given = ids[0], ids[1], labels.of(data).get(1)
    labels.freeze_value(data, f"{label_of(node)} slides over it", but=(1,))
    depthwise = groups > 1 and shape[1] == 1
    if groups == 1:
        labels.join([given, inner], f"{label_of(node)} reads a tensor that cannot lose channels")
    elif depthwise:
        spread = None if given is None else np.repeat(given, out.size // groups)
        labels.join([out, spread], f"{label_of(node)} reads a tensor that cannot lose channels")
        _adjust_groups(labels, node, given)
    else:
        _unite_groups(labels, given, inner, groups)
        _unite_groups(labels, out, out[: out.size // groups], groups)
    _finish(labels, node, data, weight, out, depthwise)


def transposed_convolution(labels: Labels, node: ir.Node) -> None:
    """ConvTranspose: the weight is (in, out / groups, ...)."""
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None
    assert weight is not None
    shape, ids = sizes(weight), labels.of(weight)
    if 0 not in ids or 1 not in ids:
        raise Refusal("has weights that are computed while the network runs")
    groups = attribute(node, "group", 1)
    inner, given = ids[0], labels.of(data).get(1)
    labels.freeze_value(data, f"{label_of(node)} slides over it", but=(1,))
    labels.join([given, inner], f"{label_of(node)} reads a tensor that cannot lose channels")
    depthwise = groups > 1 and shape[1] == 1 and groups == inner.size
    out = ids[1]
    if depthwise:
        out = inner
        _adjust_groups(labels, node, inner)
    elif groups > 1:
        _unite_groups(labels, inner, inner[: inner.size // groups], groups)
        out = np.tile(ids[1], groups)
    _finish(labels, node, data, weight, out, depthwise)


def _unite_groups(labels: Labels, channels: Ids | None, offsets: Ids, groups: int) -> None:
    """The same offset in every group is one channel: all groups shrink alike and their number stays."""
    if channels is None:
        labels.freeze(offsets, "a grouped convolution reads a tensor that cannot lose channels")
        return
    for row in channels.reshape(groups, -1):
        labels.unite(offsets, row)


def _adjust_groups(labels: Labels, node: ir.Node, channels: Ids | None) -> None:
    if channels is not None:

        def adjust(keep: Keep) -> None:
            node.attributes["group"] = ir.AttrInt64("group", int(keep(channels).sum()))

        labels.adjustments.append(adjust)


def _finish(
    labels: Labels, node: ir.Node, data: ir.Value, weight: ir.Value, out: Ids, depthwise: bool
) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        labels.join([out, labels.of(bias).get(0)], f"{label_of(node)} has a computed bias")
    result = node.outputs[0]
    labels.put(result, {1: out})
    over = data if node.op_type == "ConvTranspose" else result
    space = math.prod(n or 1 for n in (sizes_of(over) or [])[2:])
    weights = math.prod(n or 1 for n in sizes(weight))
    labels.produce(node, weight, out, weights * space, depthwise)


def gemm(labels: Labels, node: ir.Node) -> None:
    """Gemm: ``alpha A' B' + beta C``."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None
    assert b is not None
    rows, a_inner = (1, 0) if attribute(node, "transA", 0) else (0, 1)
    b_inner, columns = (1, 0) if attribute(node, "transB", 0) else (0, 1)
    _product(labels, node, (a, rows, a_inner), (b, b_inner, columns))
    result = node.outputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        shape = [sizes(a)[rows], sizes(b)[columns]]
        operands = [(shape, labels.of(result)), (sizes(bias), labels.of(bias))]
        labels.put(result, _aligned(labels, operands, 2, label_of(node)))


def matmul(labels: Labels, node: ir.Node) -> None:
    """MatMul: the last two axes are multiplied, the others broadcast."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None
    assert b is not None
    ra, rb = len(sizes(a)), len(sizes(b))
    if ra < 2 or rb < 2:
        raise Refusal("multiplies by a vector, which has no rule")
    _product(labels, node, (a, ra - 2, ra - 1), (b, rb - 2, rb - 1))
    rank = max(ra, rb)
    batch = [({k: v for k, v in labels.of(x).items() if k < r - 2}, x, r) for x, r in ((a, ra), (b, rb))]
    operands = [(sizes(x)[: r - 2], ids) for ids, x, r in batch]
    joined = _aligned(labels, operands, rank - 2, label_of(node))
    labels.put(node.outputs[0], {**joined, **labels.of(node.outputs[0])})


def _product(
    labels: Labels, node: ir.Node, left: tuple[ir.Value, int, int], right: tuple[ir.Value, int, int]
) -> None:
    """Contract ``left`` (tensor, free axis, summed axis) with ``right`` (tensor, summed axis, free axis)."""
    a, rows, a_inner = left
    b, b_inner, columns = right
    first, second = labels.of(a), labels.of(b)
    labels.join(
        [first.get(a_inner), second.get(b_inner)],
        f"{label_of(node)} reads a tensor that cannot lose channels",
    )
    rank = len(sizes_of(node.outputs[0]) or [0, 0])
    result = {}
    if rows in first:
        result[rank - 2] = first[rows]
    if columns in second:
        result[rank - 1] = second[columns]
    labels.put(node.outputs[0], result)
    for weight, other, other_axis, ids in (
        (b, a, a_inner, second.get(columns)),
        (a, b, b_inner, first.get(rows)),
    ):
        if labels.stored(weight) is not None and ids is not None:
            repeats = math.prod(n or 1 for i, n in enumerate(sizes(other)) if i and i != other_axis)
            weights = math.prod(n or 1 for n in sizes(weight))
            labels.produce(node, weight, ids, weights * repeats)
            break


def per_channel_norm(labels: Labels, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization: parameters follow the channels."""
    data = node.inputs[0]
    parameters = [labels.of(v).get(0) for v in node.inputs[1:] if v is not None]
    joined = labels.join(
        [labels.of(data).get(1), *parameters], f"{label_of(node)} reads a tensor that cannot lose channels"
    )
    rest = {}
    if node.op_type == "BatchNormalization":
        rest = {axis: ids for axis, ids in labels.of(data).items() if axis != 1}
    else:
        labels.freeze_value(data, f"{label_of(node)} takes statistics over it", but=(1,))
    labels.put(node.outputs[0], rest if joined is None else {**rest, 1: joined})


def over_axes_norm(labels: Labels, node: ir.Node) -> None:
    """LayerNormalization and its kin: every channel changes the others."""
    data = node.inputs[0]
    rank = len(sizes(data))
    first = attribute(node, "axis", -1) % rank
    reason = f"{label_of(node)} normalises over channels, so each one changes the others"
    for axis, ids in labels.of(data).items():
        if axis >= first:
            labels.freeze(ids, reason)
    for parameter in node.inputs[1:]:
        labels.freeze_value(parameter, reason)
    labels.put(node.outputs[0], dict(labels.of(data)))


def softmax(labels: Labels, node: ir.Node) -> None:
    """Softmax: every channel of its axis changes the others."""
    data = node.inputs[0]
    axis = attribute(node, "axis", -1) % len(sizes(data))
    labels.freeze(labels.of(data).get(axis), f"{label_of(node)} ({node.op_type}) runs over channels")
    labels.put(node.outputs[0], dict(labels.of(data)))


def pooling(labels: Labels, node: ir.Node) -> None:
    """Pooling over space: the channel axis passes."""
    data = node.inputs[0]
    labels.freeze_value(data, f"{label_of(node)} slides over it", but=(1,))
    given = labels.of(data).get(1)
    labels.put(node.outputs[0], {} if given is None else {1: given})


def reduction(labels: Labels, node: ir.Node) -> None:
    """Reduce*: a reduced channel axis is frozen, except that a sum may lose channels that are zero."""
    data = node.inputs[0]
    dims = sizes(data)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    listed = constant_of(given)
    if listed is None and given is not None:
        raise Refusal("reduces over axes that are computed while the network runs")
    if listed is None and "axes" in node.attributes:
        listed = np.asarray(node.attributes["axes"].as_ints())
    if listed is None or listed.size == 0:
        if attribute(node, "noop_with_empty_axes", 0):
            labels.put(node.outputs[0], dict(labels.of(data)))
            return
        listed = np.arange(len(dims))
    reduced = {int(a) % len(dims) for a in listed}
    keep_axes = attribute(node, "keepdims", 1)
    result: AxisIds = {}
    for axis, ids in labels.of(data).items():
        if axis not in reduced:
            shift = 0 if keep_axes else sum(a < axis for a in reduced)
            result[axis - shift] = ids
        elif node.op_type != "ReduceSum":
            labels.freeze(ids, f"{label_of(node)} ({node.op_type}) runs over channels")
    labels.put(node.outputs[0], result)


def quantisation(labels: Labels, node: ir.Node) -> None:
    """QuantizeLinear and DequantizeLinear: pass, with scales and zero points that may run along one axis."""
    data, out = node.inputs[0], node.outputs[0]
    assert data is not None
    if attribute(node, "block_size", 0):
        raise Refusal("quantises in blocks, which has no rule")
    axis = attribute(node, "axis", 1)
    dims, ids = sizes(data), labels.of(data)
    axis = axis % len(dims) if dims else 0
    for parameter in node.inputs[1:]:
        own = sizes(parameter)
        if len(own) == 1 and own[0] != 1 and parameter is not None:
            labels.join(
                [ids.get(axis), labels.of(parameter).get(0)],
                f"{label_of(node)} quantises a tensor that cannot lose channels per channel",
            )
        stored = labels.stored(parameter)
        if stored is not None:
            labels.unmaskable.add(stored)
    labels.put(out, dict(ids))
    stored = labels.stored(data)
    if stored is None:
        return
    labels.derive(out, data)
    scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type == "DequantizeLinear" and scale is not None:
        labels.scales[stored] = (scale, axis)
        if zero is not None:
            labels.zero_points[stored] = zero


RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY.split(), same),
    **dict.fromkeys(ELEMENTWISE.split(), elementwise),
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": per_channel_norm,
    "InstanceNormalization": per_channel_norm,
    "LayerNormalization": over_axes_norm,
    "RMSNormalization": over_axes_norm,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "Hardmax": softmax,
    **dict.fromkeys(
        ("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), pooling
    ),
    **{
        f"Reduce{kind}": reduction
        for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    },
    "QuantizeLinear": quantisation,
    "DequantizeLinear": quantisation,
}
