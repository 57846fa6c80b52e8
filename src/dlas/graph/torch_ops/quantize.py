"""Quantisation and its reverse.

Quantised values are carried as floats that hold integers, so that a gradient can pass: rounding is the identity for
the gradient (straight-through estimator, Bengio et al. 2013, arXiv:1308.3432), clipping is not.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from dlas.graph.torch_ops.activations import MICROSOFT
from dlas.graph.torch_ops.table import Call, Node, held, op, torch_dtype

RANGES = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT2: (0, 3),
}


def rounded(x: Tensor) -> Tensor:
    """The nearest integers, halves to even; the gradient passes as if nothing happened."""
    y = torch.round(x)
    return x + (y - x).detach() if x.requires_grad else y


def spread(values: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """Scales or zero points shaped to stand on the elements of ``x``.

    Args:
        values: One number, one per index of the axis, or one per block of them (then of the rank of ``x``).
        x: What they belong to.
        axis: Dimension they run along.
        block: Indices per block; 0: no blocks.
    """
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


def _fixed(node: Node, position: int) -> Tensor | None:
    """A constant input as a tensor; it is then no longer passed to the call."""
    known = None if node.peek(position) is None else node.constant(position)
    return None if known is None else held(known)


class _Parameters:
    """Scale and zero point of a node, known before the graph runs or computed by it."""

    def __init__(self, node: Node) -> None:
        self._axis, self._block = node.attr("axis", 1), node.attr("block_size", 0)
        self._scale, self._zero = _fixed(node, 1), _fixed(node, 2)

    def __call__(self, x: Tensor, scale: Tensor | None, zero: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale = scale if self._scale is None else self._scale.to(x.device)
        zero = zero if self._zero is None else self._zero.to(x.device)
        assert scale is not None
        scales = spread(scale, x, self._axis, self._block)
        return scales, None if zero is None else spread(zero, x, self._axis, self._block).to(scale.dtype)


def _kind(node: Node) -> ir.DataType:
    """The dtype of what a QuantizeLinear makes."""
    kind = node.dtype(2)
    if kind is None:
        kind = node.ir.outputs[0].dtype
    code = node.attr("output_dtype", 0)
    return ir.DataType(code) if code else kind or ir.DataType.UINT8


@op("QuantizeLinear")
@op("QuantizeLinear", domain=MICROSOFT)
def _quantize(node: Node) -> Call:
    parameters, kind = _Parameters(node), _kind(node)
    if kind not in RANGES:
        raise node.refuse(f"dtype {kind.name} is not supported")
    low, high = RANGES[kind]

    def call(x: Tensor, scale: Tensor | None = None, zero: Tensor | None = None) -> Tensor:
        scales, zeros = parameters(x, scale, zero)
        q = rounded(x.to(scales.dtype) / scales)
        return torch.clamp(q if zeros is None else q + zeros, low, high)

    return call


@op("DequantizeLinear")
@op("DequantizeLinear", domain=MICROSOFT)
def _dequantize(node: Node) -> Call:
    parameters = _Parameters(node)
    if node.dtype(0) is not None and node.dtype(0) not in {*RANGES, ir.DataType.INT32}:
        raise node.refuse(f"dtype {node.dtype(0).name} is not supported")  # type: ignore[union-attr]
    code = node.attr("output_dtype", 0)
    dtype = torch_dtype(node, code) if code else None

    def call(x: Tensor, scale: Tensor | None = None, zero: Tensor | None = None) -> Tensor:
        scales, zeros = parameters(x, scale, zero)
        x = x.to(scales.dtype)
        y = (x if zeros is None else x - zeros) * scales
        return y if dtype is None else y.to(dtype)

    return call


@op("DynamicQuantizeLinear")
def _dynamic_quantize(node: Node) -> Call:
    def call(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        least, most = x.min().clamp(max=0), x.max().clamp(min=0)
        scale = (most - least) / 255
        scale = torch.where(scale == 0, 1, scale)  # all zeros: any scale will do
        zero = rounded(-least / scale).clamp(0, 255)
        return torch.clamp(rounded(x / scale) + zero, 0, 255), scale, zero

    return call
