"""Convolutions, products, normalisations and pooling."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_ops.table import Call, Node, op

Pads = tuple[tuple[int, int], ...]
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _rank(node: Node, shape: Sequence[int] | None, position: int = 1) -> int:
    """Number of spatial dimensions."""
    if shape is not None:
        return len(shape)
    value = node.ir.inputs[position]
    if value is None or value.shape is None:
        raise node.refuse("the kernel shape is not known")
    return len(value.shape) - 2


def _padding(
    node: Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Pads | Callable:
    """Fixed (begin, end) per spatial dimension, or a function of the spatial size for SAME padding."""
    rank = len(kernel)
    mode = node.attr("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):

        def same(sizes: Sequence[int]) -> Pads:
            pads = []
            for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
                total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
                small, large = total // 2, total - total // 2
                pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
            return tuple(pads)

        return same
    flat = node.attr("pads", (0,) * 2 * rank) if mode != "VALID" else (0,) * 2 * rank
    return tuple((flat[i], flat[i + rank]) for i in range(rank))


def _torch_pad(pads: Pads) -> list[int]:
    """Torch counts from the last dimension."""
    return [p for pair in reversed(pads) for p in pair]


@op("Conv")
def _conv(node: Node) -> Call:
    weight = node.peek(1)
    kernel = node.attr("kernel_shape") or (weight.shape[2:] if weight is not None else None)
    rank = _rank(node, kernel)
    if rank not in _CONV:
        raise node.refuse(f"{rank} spatial dimensions")
    strides = node.attr("strides", (1,) * rank)
    dilations = node.attr("dilations", (1,) * rank)
    groups = node.attr("group", 1)
    conv = _CONV[rank]
    if kernel is None:
        raise node.refuse("the kernel shape is not known")
    pads = _padding(node, kernel, strides, dilations)
    if isinstance(pads, tuple) and all(begin == end for begin, end in pads):
        both = tuple(begin for begin, _ in pads)
        return lambda x, w, b=None: conv(x, w, b, strides, both, dilations, groups)

    def call(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        around = pads if isinstance(pads, tuple) else pads(x.shape[2:])
        return conv(F.pad(x, _torch_pad(around)), w, b, strides, 0, dilations, groups)

    return call


@op("ConvTranspose")
def _conv_transpose(node: Node) -> Call:
    weight = node.peek(1)
    kernel = node.attr("kernel_shape") or (weight.shape[2:] if weight is not None else None)
    rank = _rank(node, kernel)
    if rank not in _CONV_TRANSPOSE or kernel is None:
        raise node.refuse(f"{rank} spatial dimensions")
    strides = node.attr("strides", (1,) * rank)
    dilations = node.attr("dilations", (1,) * rank)
    extra = node.attr("output_padding", (0,) * rank)
    groups = node.attr("group", 1)
    wanted = node.attr("output_shape")
    mode = node.attr("auto_pad", "NOTSET")
    flat = node.attr("pads", (0,) * 2 * rank)
    conv = _CONV_TRANSPOSE[rank]

    def crop(sizes: Sequence[int]) -> Pads:
        if wanted is None and mode in ("NOTSET", "VALID"):
            return tuple((flat[i], flat[i + rank]) for i in range(rank))
        pads = []
        for i, size in enumerate(sizes):
            full = (size - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 + extra[i]
            total = max(full - (wanted[-rank:][i] if wanted is not None else size * strides[i]), 0)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
        return tuple(pads)

    def call(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        y = conv(x, w, b, strides, 0, extra, groups, dilations)
        return F.pad(y, [-p for p in _torch_pad(crop(x.shape[2:]))])

    return call


@op("Gemm")
def _gemm(node: Node) -> Call:
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    flip_a, flip_b = node.attr("transA", 0), node.attr("transB", 0)
    bias = node.peek(2)
    plain = (
        alpha == 1.0
        and not flip_a
        and (not node.has(2) or (beta == 1.0 and bias is not None and bias.ndim == 1))
    )
    if plain:
        return lambda a, b, c=None: F.linear(a, b if flip_b else b.t(), c)

    def call(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        y = alpha * ((a.t() if flip_a else a) @ (b.t() if flip_b else b))
        return y if c is None else y + beta * c

    return call


@op("MatMul")
def _matmul(node: Node) -> Call:
    return torch.matmul


@op("Einsum")
def _einsum(node: Node) -> Call:
    equation = node.attr("equation")
    return lambda *args: torch.einsum(equation, *args)


@op("BatchNormalization")
def _batch_norm(node: Node) -> Call:
    if node.attr("training_mode", 0) or sum(bool(o.name) for o in node.ir.outputs) > 1:
        raise node.refuse("training mode is not supported")
    return _BatchNorm(node.attr("epsilon", 1e-5))


class _BatchNorm:
    """Normalises by the stored statistics, or in training by those of the batch, which it adds to the stored ones."""

    momentum = 0.1  # share of the batch in the new statistics, as in torch.nn.BatchNorm2d

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon
        self.training = False

    def __call__(self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, scale, bias, self.training, self.momentum, self.epsilon)


@op("InstanceNormalization")
def _instance_norm(node: Node) -> Call:
    epsilon = node.attr("epsilon", 1e-5)
    return lambda x, scale, bias: F.instance_norm(x, None, None, scale, bias, eps=epsilon)


@op("LayerNormalization")
def _layer_norm(node: Node) -> Call:
    if node.outputs > 1:
        raise node.refuse("the mean and deviation outputs are not available")
    axis, epsilon = node.attr("axis", -1), node.attr("epsilon", 1e-5)
    return lambda x, scale, bias=None: F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


@op("LRN")
def _lrn(node: Node) -> Call:
    size, alpha = node.attr("size"), node.attr("alpha", 1e-4)
    beta, offset = node.attr("beta", 0.75), node.attr("bias", 1.0)

    def call(x: Tensor) -> Tensor:
        before = (size - 1) // 2
        squares = F.pad((x * x).movedim(1, -1), [before, size - 1 - before])
        total = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
        return x / (offset + alpha / size * total) ** beta

    return call


@op("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node) -> Call:
    if node.kind == "GlobalAveragePool":
        return lambda x: torch.mean(x, list(range(2, x.dim())), keepdim=True)
    return lambda x: torch.amax(x, list(range(2, x.dim())), keepdim=True)


def _window(node: Node) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]:
    kernel = tuple(node.attr("kernel_shape"))
    strides = tuple(node.attr("strides", (1,) * len(kernel)))
    dilations = tuple(node.attr("dilations", (1,) * len(kernel)))
    return kernel, strides, dilations, bool(node.attr("ceil_mode", 0))


def _overhang(
    sizes: Sequence[int], pads: Pads, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Pads:
    """Elements by which the last window of ``ceil_mode`` reaches beyond the padded input.

    A window that would start in the padding is left out, as torch and the later ONNX operator sets have it.
    """
    extra = []
    for size, (begin, end), k, s, d in zip(sizes, pads, kernel, strides, dilations, strict=True):
        span, width = size + begin + end, (k - 1) * d + 1
        count = -(-(span - width) // s) + 1
        if (count - 1) * s >= size + begin:
            count -= 1
        extra.append((0, max((count - 1) * s + width - span, 0)))
    return tuple(extra)


@op("MaxPool")
def _max_pool(node: Node) -> Call:
    if node.outputs > 1:
        raise node.refuse("the indices output is not available")
    kernel, strides, dilations, ceil = _window(node)
    if len(kernel) not in _MAX_POOL:
        raise node.refuse(f"{len(kernel)} spatial dimensions")
    pool = _MAX_POOL[len(kernel)]
    pads = _padding(node, kernel, strides, dilations)
    fits = isinstance(pads, tuple) and all(
        b == e and b <= k // 2 for (b, e), k in zip(pads, kernel, strict=True)
    )
    if fits and not ceil:
        both = tuple(begin for begin, _ in pads)  # type: ignore[union-attr]
        return lambda x: pool(x, kernel, strides, both, dilations)

    def call(x: Tensor) -> Tensor:
        around = pads if isinstance(pads, tuple) else pads(x.shape[2:])
        lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        if ceil:
            over = _overhang(x.shape[2:], around, kernel, strides, dilations)
            around = tuple((b, e + o) for (b, e), (_, o) in zip(around, over, strict=True))
        return pool(F.pad(x, _torch_pad(around), value=lowest), kernel, strides, 0, dilations)

    return call


@op("AveragePool")
def _average_pool(node: Node) -> Call:
    kernel, strides, dilations, ceil = _window(node)
    if len(kernel) not in _AVG_POOL or any(d != 1 for d in dilations):
        raise node.refuse("only 1 to 3 spatial dimensions without dilation")
    pool: Any = _AVG_POOL[len(kernel)]
    pads = _padding(node, kernel, strides, dilations)
    whole = bool(node.attr("count_include_pad", 0))
    if isinstance(pads, tuple) and not ceil and not any(itertools.chain(*pads)):
        return lambda x: pool(x, kernel, strides)

    def call(x: Tensor) -> Tensor:
        around = pads if isinstance(pads, tuple) else pads(x.shape[2:])
        counted = F.pad(torch.ones_like(x[:1, :1]), _torch_pad(around), value=1.0 if whole else 0.0)
        x = F.pad(x, _torch_pad(around))
        if ceil:
            sizes = [n - b - e for n, (b, e) in zip(x.shape[2:], around, strict=True)]
            over = _torch_pad(_overhang(sizes, around, kernel, strides, dilations))
            x, counted = F.pad(x, over), F.pad(counted, over)
        return pool(x, kernel, strides) / pool(counted, kernel, strides)  # the window size cancels out

    return call
