"""Operators that reduce a dimension, or run along one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlas.graph.torch_ops.table import Call, Node, op


def _norm(order: int) -> Callable[[Tensor, list[int], bool], Tensor]:
    def apply(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.is_floating_point():  # whose gradient at zero is zero, not NaN as that of the square root
            return torch.linalg.vector_norm(x, order, axes, keepdim=keep)
        return torch.linalg.vector_norm(x.double(), order, axes, keepdim=keep).to(x.dtype)

    return apply


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _extreme(sign: int) -> Callable[[Tensor, list[int], bool], Tensor]:
    apply = torch.amax if sign > 0 else torch.amin

    def call(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if all(x.shape[a] for a in axes):
            return apply(x, axes, keepdim=keep)
        least, most = (-torch.inf, torch.inf) if x.is_floating_point() else _limits(x.dtype)
        return torch.full_like(_sum(x, axes, keep), least if sign > 0 else most)  # the extreme of nothing

    return call


def _limits(dtype: torch.dtype) -> tuple[int, int]:
    if dtype == torch.bool:
        return 0, 1
    return torch.iinfo(dtype).min, torch.iinfo(dtype).max


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keepdim=keep)
    return torch.mean(x.double(), axes, keepdim=keep).trunc().to(x.dtype)


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": _mean,
    "ReduceSum": _sum,
    "ReduceMax": _extreme(1),
    "ReduceMin": _extreme(-1),
    "ReduceProd": _prod,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
    "ReduceL1": lambda x, axes, keep: _sum(torch.abs(x), axes, keep),
    "ReduceL2": _norm(2),
    "ReduceLogSum": lambda x, axes, keep: torch.log(_sum(x, axes, keep)),
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
            over = [] if nothing else list(range(x.dim()))
        if not over:  # of a single number, or of each element for itself
            return apply(x.unsqueeze(-1), [-1], False)
        return apply(x, over, keep)

    return call


@op("ArgMax", "ArgMin")
def _arg(node: Node) -> Call:
    apply = torch.argmax if node.kind == "ArgMax" else torch.argmin
    axis, keep = node.attr("axis", 0), bool(node.attr("keepdims", 1))
    if node.attr("select_last_index", 0):
        return lambda x: x.shape[axis] - 1 - apply(x.flip(axis), axis, keepdim=keep)
    return lambda x: apply(x, axis, keepdim=keep)


@op("CumSum", "CumProd")
def _cumulative(node: Node) -> Call:
    apply, start = (torch.cumsum, 0) if node.kind == "CumSum" else (torch.cumprod, 1)
    axis = node.ints(1)
    exclusive, reverse = node.attr("exclusive", 0), node.attr("reverse", 0)
    assert axis is not None

    def call(*args: Any) -> Tensor:
        x, at = args[0], axis(args)[0]
        x = x.flip(at) if reverse else x
        if exclusive:
            first = torch.full_like(x.narrow(at, 0, 1), start)
            x = torch.cat([first, x.narrow(at, 0, x.shape[at] - 1)], at)
        y = apply(x, at, dtype=x.dtype)
        return y.flip(at) if reverse else y

    return call


@op("TopK")
def _top_k(node: Node) -> Call:
    count = node.ints(1, "k")
    axis, largest = node.attr("axis", -1), bool(node.attr("largest", 1))
    assert count is not None

    def call(*args: Any) -> tuple[Tensor, Tensor]:
        x, (k,) = args[0], count(args)
        order = torch.sort(x, dim=axis, descending=largest, stable=True)  # of equals the first comes first
        return order.values.narrow(axis, 0, k), order.indices.narrow(axis, 0, k)

    return call
