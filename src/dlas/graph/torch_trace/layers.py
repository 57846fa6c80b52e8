"""Convolutions, products, normalisation and pooling."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_trace.table import Call, Traced, function, ints, need


def _each(value: Any, count: int) -> tuple[int, ...]:
    """One number per spatial axis."""
    listed = tuple(value) if isinstance(value, list | tuple) else (value,)
    return tuple(int(v) for v in (listed * count if len(listed) == 1 else listed))


def _spatial(input: Traced, axes: int) -> None:
    need(input.rank == axes + 2, f"{input.rank} dimensions where {axes + 2} are usual")


@function(torch.conv1d, torch.conv2d, torch.conv3d)
def _conv(
    call: Call,
    input: Traced,
    weight: Traced,
    bias: Traced | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> ir.Value:
    axes = weight.rank - 2
    _spatial(input, axes)
    kernel, dilations = tuple(weight.runs[0].shape[2:]), _each(dilation, axes)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = (*(t // 2 for t in totals), *(t - t // 2 for t in totals))
    else:
        pads = _each(0 if padding == "valid" else padding, axes) * 2
    return call.emit(
        "Conv",
        input,
        weight,
        *([] if bias is None else [bias]),
        kernel_shape=kernel,
        strides=_each(stride, axes),
        pads=pads,
        dilations=dilations,
        group=groups,
    )


@function(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
def _conv_transpose(
    call: Call,
    input: Traced,
    weight: Traced,
    bias: Traced | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> ir.Value:
    axes = weight.rank - 2
    _spatial(input, axes)
    return call.emit(
        "ConvTranspose",
        input,
        weight,
        *([] if bias is None else [bias]),
        kernel_shape=tuple(weight.runs[0].shape[2:]),
        strides=_each(stride, axes),
        pads=_each(padding, axes) * 2,
        output_padding=_each(output_padding, axes),
        dilations=_each(dilation, axes),
        group=groups,
    )


@function(F.linear)
def _linear(call: Call, input: Traced, weight: Traced, bias: Traced | None = None) -> ir.Value:
    # For more dimensions ONNX wants the weight transposed, which is folded into a constant.
    need(input.rank == 2, "a linear layer over more than two dimensions")
    return call.emit("Gemm", input, weight, *([] if bias is None else [bias]), transB=1)


@function(operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm")
def _matmul(call: Call, input: Traced, other: Traced) -> ir.Value:
    return call.emit("MatMul", input, other)


@function(F.batch_norm)
def _batch_norm(
    call: Call,
    input: Traced,
    running_mean: Traced | None,
    running_var: Traced | None,
    weight: Traced | None = None,
    bias: Traced | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> ir.Value:
    need(running_mean is not None and running_var is not None and not training, "statistics of the batch")
    ones = np.ones(input.fixed(1), call.number(0).dtype)
    attributes: dict[str, Any] = {} if momentum is None else {"momentum": 1 - momentum}
    return call.emit(
        "BatchNormalization",
        input,
        ones if weight is None else weight,
        0 * ones if bias is None else bias,
        running_mean,
        running_var,
        epsilon=eps,
        **attributes,
    )


@function(F.layer_norm)
def _layer_norm(
    call: Call,
    input: Traced,
    normalized_shape: Any,
    weight: Traced | None = None,
    bias: Traced | None = None,
    eps: float = 1e-5,
) -> ir.Value:
    scale = np.ones(tuple(normalized_shape), call.number(0).dtype) if weight is None else weight
    given = [] if bias is None else [bias]
    return call.emit("LayerNormalization", input, scale, *given, axis=-len(normalized_shape), epsilon=eps)


@function(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
def _max_pool(
    call: Call,
    input: Traced,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> ir.Value:
    need(not return_indices, "indices of a pooling")
    axes = input.rank - 2
    kernel = _each(kernel_size, axes)
    need(len(kernel) == axes and axes > 0, "a pooling without batch")
    return call.emit(
        "MaxPool",
        input,
        kernel_shape=kernel,
        strides=_each(stride or kernel, axes),
        pads=_each(padding, axes) * 2,
        dilations=_each(dilation, axes),
        ceil_mode=int(ceil_mode),
    )


@function(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
def _avg_pool(
    call: Call,
    input: Traced,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> ir.Value:
    # Rounded up, the last window counts differently in the two.
    need(not ceil_mode and divisor_override is None, "an average pooling with its own count")
    axes = input.rank - 2
    kernel = _each(kernel_size, axes)
    need(len(kernel) == axes and axes > 0, "a pooling without batch")
    return call.emit(
        "AveragePool",
        input,
        kernel_shape=kernel,
        strides=_each(stride or kernel, axes),
        pads=_each(padding, axes) * 2,
        count_include_pad=int(count_include_pad),
    )


def _adaptive(axes: int, reduction: str, pooling: str) -> Any:
    def build(call: Call, input: Traced, output_size: Any, return_indices: bool = False) -> ir.Value:
        _spatial(input, axes)
        need(not return_indices, "indices of a pooling")
        listed = tuple(output_size) if isinstance(output_size, list | tuple) else (output_size,) * axes
        before = tuple(input.fixed(2 + i) for i in range(axes))
        after = tuple(b if a is None else a for a, b in zip(listed, before, strict=True))
        if set(after) == {1}:
            return call.emit(reduction, input, ints(*range(-1, -1 - axes, -1)), keepdims=1)
        need(all(b % a == 0 for a, b in zip(after, before, strict=True)), "windows of different sizes")
        kernel = tuple(b // a for a, b in zip(after, before, strict=True))
        return call.emit(pooling, input, kernel_shape=kernel, strides=kernel)

    return build


for _axes in (1, 2, 3):
    function(getattr(F, f"adaptive_avg_pool{_axes}d"))(_adaptive(_axes, "ReduceMean", "AveragePool"))
    function(getattr(F, f"adaptive_max_pool{_axes}d"))(_adaptive(_axes, "ReduceMax", "MaxPool"))


@function(F.interpolate)
def _interpolate(
    call: Call,
    input: Traced,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> ir.Value:
    del recompute_scale_factor  # the same for whole factors
    need(not antialias and mode in ("nearest", "linear", "bilinear", "trilinear"), f"resizing by {mode}")
    before = [input.fixed(axis) for axis in range(2, input.rank)]
    after = list(call.result[0].shape[2:])
    need(
        all(a % b == 0 for a, b in zip(after, before, strict=True)), "resizing by another than a whole factor"
    )
    if scale_factor is not None:
        asked = scale_factor if isinstance(scale_factor, list | tuple) else [scale_factor] * len(before)
        need([b * f for b, f in zip(before, asked, strict=True)] == after, "a factor that is rounded")
    scales = np.array([1, 1, *(a // b for a, b in zip(after, before, strict=True))], np.float32)
    how: dict[str, Any]
    if mode == "nearest":
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        corners = "align_corners" if align_corners else "half_pixel"
        how = {"mode": "linear", "coordinate_transformation_mode": corners}
    return call.emit("Resize", input, None, scales, **how)
