"""Quantisation in QDQ form.

Quantised values are carried as floats that hold integers, so that a gradient can pass: rounding is the identity for
the gradient (straight-through estimator, Bengio et al. 2013, arXiv:1308.3432), clipping is not.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from dlas.graph.torch_ops.table import Call, Node, op


def _broadcast(node: Node, array: np.ndarray, rank: int | None) -> np.ndarray:
    """Per-channel numbers shaped to stand on the node's axis."""
    if array.size == 1:
        return array.reshape(())
    if array.ndim > 1 or node.attr("block_size", 0):
        raise node.refuse("blocked quantisation is not supported")
    if rank is None:
        raise node.refuse("the rank of the input is not known")
    axis = node.attr("axis", 1) % rank
    return array.reshape([-1 if i == axis else 1 for i in range(rank)])


def _parameters(node: Node) -> tuple[Tensor, Tensor, ir.DataType]:
    value = node.ir.inputs[0]
    known = node.peek(0)
    rank = (
        known.ndim if known is not None else len(value.shape) if value is not None and value.shape else None
    )
    scale = node.constant(1)
    assert scale is not None
    zero = node.constant(2)
    kind = ir.DataType.UINT8
    if node.has(2) and node.ir.inputs[2].dtype is not None:  # type: ignore[union-attr]
        kind = node.ir.inputs[2].dtype  # type: ignore[union-attr]
    elif node.attr("output_dtype", 0):
        kind = ir.DataType(node.attr("output_dtype"))
    if zero is None:
        zero = np.zeros(scale.shape, np.float32)
    scales = torch.from_numpy(np.array(_broadcast(node, scale, rank)))
    zeros = torch.from_numpy(np.array(_broadcast(node, zero, rank), scale.dtype))
    return scales, zeros, kind


_RANGES = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
}


@op("QuantizeLinear")
def _quantize(node: Node) -> Call:
    scale, zero, kind = _parameters(node)
    if kind not in _RANGES:
        raise node.refuse(f"dtype {kind.name} is not supported")
    low, high = _RANGES[kind]

    def call(x: Tensor, *_: Tensor) -> Tensor:
        q = x / scale
        rounded = torch.round(q)
        if q.requires_grad:
            rounded = q + (rounded - q).detach()
        return torch.clamp(rounded + zero, low, high)

    return call


@op("DequantizeLinear")
def _dequantize(node: Node) -> Call:
    scale, zero, _ = _parameters(node)
    return lambda x, *_: (x.to(scale.dtype) - zero) * scale
