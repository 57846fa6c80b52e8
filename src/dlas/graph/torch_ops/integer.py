"""Operators that compute on quantised values themselves (QOperator form), bit for bit as integers would.

Sums of products are taken in double precision, which holds every 32-bit integer exactly. A gradient passes through
what was carried as floats (see ``quantize``); weights stored as integers have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_ops.activations import MICROSOFT
from dlas.graph.torch_ops.convolution import convolution
from dlas.graph.torch_ops.pooling import average_pool
from dlas.graph.torch_ops.quantize import RANGES, rounded
from dlas.graph.torch_ops.table import Call, Node, op
from dlas.graph.torch_ops.window import once_known

Maybe = Tensor | None


def _centred(x: Tensor, zero: Maybe, axis: int | None = None) -> Tensor:
    """``x - zero`` in double precision; several zero points run along the axis."""
    wide = x.double()
    if zero is None:
        return wide
    if zero.numel() == 1:
        return wide - zero.reshape(()).double()
    if axis is not None and zero.dim() == 1:
        zero = zero.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    return wide - zero.double()


def _along(values: Tensor, axis: int, rank: int) -> Tensor:
    if values.numel() == 1:
        return values.reshape(())
    return (
        values.reshape([-1 if i == axis % rank else 1 for i in range(rank)]) if values.dim() == 1 else values
    )


def _range(node: Node, zero: int) -> tuple[int, int]:
    """The range of the output, from the dtype of its zero point or of the node's output."""
    kind = node.dtype(zero) or node.ir.outputs[0].dtype or node.dtype(0)
    if kind is None or kind not in RANGES:
        raise node.refuse(f"the dtype {kind} is not known, or not supported")
    return RANGES[kind]


def _requantised(y: Tensor, zero: Maybe, limits: tuple[int, int]) -> Tensor:
    """Numbers in steps of the output, rounded, moved to its zero point and clipped."""
    q = rounded(y)
    return torch.clamp(q if zero is None else q + zero.to(q.dtype), *limits)


def _int32(total: Tensor) -> Tensor:
    """A sum as the operator declares it; as floats where a gradient passes."""
    return total if total.requires_grad else total.to(torch.int32)


@op("ConvInteger")
def _conv_integer(node: Node) -> Call:
    def build(node: Node, rank: int) -> Call:
        conv = convolution(node, rank)
        return lambda x, w, xz=None, wz=None: _int32(conv(_centred(x, xz), _centred(w, wz, 0)))

    return once_known(node, build, weight=1)


@op("QLinearConv")
def _qlinear_conv(node: Node) -> Call:
    limits = _range(node, 7)

    def build(node: Node, rank: int) -> Call:
        conv = convolution(node, rank)

        def call(
            x: Tensor, xs: Tensor, xz: Tensor, w: Tensor, ws: Tensor, wz: Tensor, ys: Tensor, yz: Tensor,
            b: Maybe = None,
        ) -> Tensor:  # fmt: skip
            total = conv(_centred(x, xz), _centred(w, wz, 0), None if b is None else b.double())
            scale = _along(xs * ws / ys, 1, x.dim())
            return _requantised(total.float() * scale, yz, limits)

        return call

    return once_known(node, build, weight=3)


@op("MatMulInteger")
def _matmul_integer(node: Node) -> Call:
    return lambda a, b, az=None, bz=None: _int32(torch.matmul(_centred(a, az, -2), _centred(b, bz, -1)))


@op("QLinearMatMul")
def _qlinear_matmul(node: Node) -> Call:
    limits = _range(node, 7)

    def call(
        a: Tensor, sa: Tensor, za: Tensor, b: Tensor, sb: Tensor, zb: Tensor, sy: Tensor, zy: Tensor
    ) -> Tensor:
        total = torch.matmul(_centred(a, za, -2), _centred(b, zb, -1)).float()
        scale = _along(sa, -2, a.dim()) * _along(sb, -1, b.dim()) / sy
        return _requantised(total * scale.float(), zy, limits)

    return call


@op("QGemm", domain=MICROSOFT)
def _qgemm(node: Node) -> Call:
    alpha, flip_a, flip_b = node.attr("alpha", 1.0), node.attr("transA", 0), node.attr("transB", 0)
    limits = _range(node, 8) if node.has(7) else None

    def call(
        a: Tensor, sa: Tensor, za: Tensor, b: Tensor, sb: Tensor, zb: Tensor,
        c: Maybe = None, sy: Maybe = None, zy: Maybe = None,
    ) -> Tensor:  # fmt: skip
        a, b = (a.t() if flip_a else a), (b.t() if flip_b else b)
        total = _centred(a, za) @ _centred(b, zb, -1)
        total = (total if c is None else total + c.double()).float()
        scale = alpha * sa * sb
        if limits is None:
            return total * scale
        assert sy is not None
        return _requantised(total * (scale / sy), zy, limits)

    return call


@op("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def _qlinear_pair(node: Node) -> Call:
    limits, add = _range(node, 7), node.kind == "QLinearAdd"

    def call(
        a: Tensor, sa: Tensor, za: Maybe, b: Tensor, sb: Tensor, zb: Maybe, sy: Tensor, zy: Maybe = None
    ) -> Tensor:
        a, b = _centred(a, za).float(), _centred(b, zb).float()
        y = a * (sa / sy) + b * (sb / sy) if add else a * b * (sa * sb / sy)
        return _requantised(y, zy, limits)

    return call


def _through_float(node: Node, apply: Callable[[Tensor], Tensor]) -> Call:
    """Inputs ``(x, scale, zero, y_scale, y_zero)``: dequantised, computed, quantised."""
    limits = _range(node, 4)

    def call(x: Tensor, sx: Tensor, zx: Maybe, sy: Tensor, zy: Maybe = None) -> Tensor:
        return _requantised(apply(_centred(x, zx).float() * sx) / sy, zy, limits)

    return call


@op("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", domain=MICROSOFT)
def _qlinear_activation(node: Node) -> Call:
    if node.kind == "QLinearSigmoid":
        return _through_float(node, torch.sigmoid)
    if node.kind == "QLinearSoftmax":
        axis, newer = node.attr("axis", -1), node.attr("opset", 13) >= 13
        if newer:
            return _through_float(node, lambda x: torch.softmax(x, axis))
        return _through_float(node, lambda x: torch.softmax(x.flatten(axis), -1).reshape(x.shape))
    alpha = node.attr("alpha", 0.01)
    return _through_float(node, lambda x: F.leaky_relu(x, alpha))


@op("QLinearGlobalAveragePool", domain=MICROSOFT)
def _qlinear_global_average(node: Node) -> Call:
    last = node.attr("channels_last", 0)

    def mean(x: Tensor) -> Tensor:
        axes = list(range(1, x.dim() - 1)) if last else list(range(2, x.dim()))
        return torch.mean(x, axes, keepdim=True)

    return _through_float(node, mean)


@op("QLinearAveragePool", domain=MICROSOFT)
def _qlinear_average_pool(node: Node) -> Call:
    if node.attr("channels_last", 0):
        raise node.refuse("channels_last is not supported")
    return _through_float(node, average_pool(node))


@op("QLinearConcat", domain=MICROSOFT)
def _qlinear_concat(node: Node) -> Call:
    limits, axis = _range(node, 1), node.attr("axis")

    def call(scale: Tensor, zero: Tensor, *args: Any) -> Tensor:
        parts = [_centred(x, z).float() * s for x, s, z in zip(*[iter(args)] * 3, strict=True)]
        return _requantised(torch.cat(parts, axis) / scale, zero, limits)

    return call
