"""Normalisations. What ``stash_type`` asks for is done in single precision, whatever the input is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_ops.table import DTYPES, Call, Node, op


@op("BatchNormalization")
def _batch_norm(node: Node) -> Call:
    if node.attr("training_mode", 0) or any(node.wants(i) for i in range(1, node.outputs)):
        raise node.refuse("training mode is not supported: it is the module's own")
    return _BatchNorm(node.attr("epsilon", 1e-5))


class _BatchNorm:
    """Normalises by the stored statistics, or in training by those of the batch, which it adds to the stored ones."""

    momentum = 0.1  # share of the batch in the new statistics, as in torch.nn.BatchNorm2d

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon
        self.training = False

    def __call__(self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, scale, bias, self.training, self.momentum, self.epsilon)


def _wide(x: Tensor, stash: torch.dtype) -> Tensor:
    """In the precision that is asked for, or the input's own where that is higher."""
    return x.to(torch.promote_types(x.dtype, stash))


def _normalised(x: Tensor, axes: list[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` with mean 0 and variance 1 over the axes, the mean, and the inverse deviation."""
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)
    return (x - mean) * inverse, mean, inverse


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.dim() - 2))


@op("InstanceNormalization")
def _instance_norm(node: Node) -> Call:
    epsilon = node.attr("epsilon", 1e-5)

    def call(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        y, _, _ = _normalised(x, list(range(2, x.dim())), epsilon)
        return y * _per_channel(scale, x) + _per_channel(bias, x)

    return call


@op("GroupNormalization")
def _group_norm(node: Node) -> Call:
    groups, epsilon = node.attr("num_groups"), node.attr("epsilon", 1e-5)
    stash = DTYPES[node.attr("stash_type", 1)]
    per_group = node.opset < 21  # scale and bias: one number per group, later one per channel

    def call(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        y, _, _ = _normalised(_wide(x, stash).reshape(x.shape[0], groups, -1), [2], epsilon)
        if per_group:
            scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
        return y.reshape(x.shape).to(x.dtype) * _per_channel(scale, x) + _per_channel(bias, x)

    return call


@op("LayerNormalization")
def _layer_norm(node: Node) -> Call:
    axis, epsilon = node.attr("axis", -1), node.attr("epsilon", 1e-5)
    stash = DTYPES[node.attr("stash_type", 1)]

    def call(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        shape = x.shape[axis:]
        fits = (
            x.dtype == torch.promote_types(x.dtype, stash)
            and scale.shape == shape
            and (bias is None or bias.shape == shape)
        )
        if fits and node.outputs == 1:
            return F.layer_norm(x, shape, scale, bias, epsilon)
        y, mean, inverse = _normalised(_wide(x, stash), list(range(axis % x.dim(), x.dim())), epsilon)
        y = y.to(x.dtype) * scale
        y = y if bias is None else y + bias
        return y if node.outputs == 1 else (y, mean, inverse)[: node.outputs]

    return call


@op("RMSNormalization")
def _rms_norm(node: Node) -> Call:
    axis, epsilon = node.attr("axis", -1), node.attr("epsilon", 1e-5)
    stash = DTYPES[node.attr("stash_type", 1)]

    def call(x: Tensor, scale: Tensor) -> Tensor:
        wide = _wide(x, stash)
        mean = torch.mean(wide * wide, list(range(axis % x.dim(), x.dim())), keepdim=True)
        return ((wide * torch.rsqrt(mean + epsilon)).to(scale.dtype) * scale).to(scale.dtype)

    return call


@op("MeanVarianceNormalization")
def _mean_variance(node: Node) -> Call:
    axes = list(node.attr("axes", (0, 2, 3)))

    def call(x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        return (x - mean) / (torch.sqrt(variance) + 1e-9)

    return call


@op("LpNormalization")
def _lp_norm(node: Node) -> Call:
    axis, order = node.attr("axis", -1), node.attr("p", 2)

    def call(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, order, axis, keepdim=True)
        return x / torch.where(norm == 0, 1, norm)  # zeros stay zeros

    return call


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
