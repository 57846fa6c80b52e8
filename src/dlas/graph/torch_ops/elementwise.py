"""Operators that work element by element, and reductions."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_ops.table import Call, Node, op, torch_dtype

_SIMPLE: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSwish": F.hardswish,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Mish": F.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Where": torch.where,
}


@op(*_SIMPLE)
def _simple(node: Node) -> Call:
    return _SIMPLE[node.kind]


@op("Identity", "Dropout")
def _identity(node: Node) -> Call:
    if node.outputs > 1:
        raise node.refuse("the mask output is not available")
    return lambda x, *_: x


@op("Div")
def _div(node: Node) -> Call:
    def call(a: Tensor, b: Tensor) -> Tensor:
        whole = not (a.is_floating_point() or b.is_floating_point())
        return torch.div(a, b, rounding_mode="trunc" if whole else None)

    return call


@op("Mod")
def _mod(node: Node) -> Call:
    return torch.fmod if node.attr("fmod", 0) else torch.remainder


@op("Pow")
def _pow(node: Node) -> Call:
    return lambda a, b: torch.pow(a, b).to(a.dtype)


@op("Min", "Max", "Sum", "Mean")
def _variadic(node: Node) -> Call:
    pair = {"Min": torch.minimum, "Max": torch.maximum}.get(node.kind, torch.add)
    count = len(node.ir.inputs) if node.kind == "Mean" else 1
    return lambda *args: reduce(pair, args) / count if count > 1 else reduce(pair, args)


@op("Clip")
def _clip(node: Node) -> Call:
    low, high = node.scalar(1, "min", None), node.scalar(2, "max", None)
    if low is None and high is None:
        return lambda x, *_: x
    return lambda x, *_: torch.clamp(x, low, high)


@op("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "HardSigmoid", "Selu", "Gelu")
def _activation(node: Node) -> Call:
    kind = node.kind
    alpha = float(
        node.attr(
            "alpha", {"LeakyRelu": 0.01, "HardSigmoid": 0.2, "Selu": 1.67326319217681884765625}.get(kind, 1.0)
        )
    )
    if kind == "LeakyRelu":
        return lambda x: F.leaky_relu(x, alpha)
    if kind == "Elu":
        return lambda x: F.elu(x, alpha)
    if kind == "Celu":
        return lambda x: F.celu(x, alpha)
    if kind == "ThresholdedRelu":
        return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))
    if kind == "HardSigmoid":
        beta = float(node.attr("beta", 0.5))
        return lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)
    if kind == "Selu":
        gamma = float(node.attr("gamma", 1.05070102214813232421875))
        return lambda x: gamma * F.elu(x, alpha)
    approximate = node.attr("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


@op("PRelu")
def _prelu(node: Node) -> Call:
    return lambda x, slope: torch.where(x >= 0, x, x * slope)


@op("Softmax", "LogSoftmax")
def _softmax(node: Node) -> Call:
    apply = torch.softmax if node.kind == "Softmax" else torch.log_softmax
    axis = node.attr("axis", -1 if node.opset >= 13 else 1)
    if node.opset >= 13:
        return lambda x: apply(x, axis)

    def flattened(x: Tensor) -> Tensor:  # before opset 13 everything from the axis on is one dimension
        return apply(x.flatten(axis), -1).reshape(x.shape)

    return flattened


@op("Cast")
def _cast(node: Node) -> Call:
    dtype = torch_dtype(node, node.attr("to"))
    return lambda x: x.to(dtype)


@op("CastLike")
def _cast_like(node: Node) -> Call:
    return lambda x, other: x.to(other.dtype)


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sqrt(torch.sum(x * x, axes, keepdim=keep))


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": lambda x, axes, keep: torch.mean(x, axes, keepdim=keep),
    "ReduceSum": lambda x, axes, keep: torch.sum(x, axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: torch.amax(x, axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: torch.amin(x, axes, keepdim=keep),
    "ReduceProd": _prod,
    "ReduceSumSquare": lambda x, axes, keep: torch.sum(x * x, axes, keepdim=keep),
    "ReduceL1": lambda x, axes, keep: torch.sum(torch.abs(x), axes, keepdim=keep),
    "ReduceL2": _l2,
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}


@op(*_REDUCTIONS)
def _reduce(node: Node) -> Call:
    apply = _REDUCTIONS[node.kind]
    keep = bool(node.attr("keepdims", 1))
    nothing = bool(node.attr("noop_with_empty_axes", 0))
    axes = node.ints(1, "axes")

    def call(*args: Any) -> Tensor:
        x = args[0]
        over = axes(args) if axes is not None else []
        if not over:
            if nothing:
                return x
            over = list(range(x.dim()))
        return apply(x, over, keep)

    return call


@op("ArgMax", "ArgMin")
def _arg(node: Node) -> Call:
    apply = torch.argmax if node.kind == "ArgMax" else torch.argmin
    if node.attr("select_last_index", 0):
        raise node.refuse("select_last_index is not supported")
    axis, keep = node.attr("axis", 0), bool(node.attr("keepdims", 1))
    return lambda x: apply(x, axis, keepdim=keep)
