"""Operators that look elements up by index, or write them there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_ops.table import Call, Node, op


def _positive(index: Tensor, size: int) -> Tensor:
    """Indices from the end counted from the begin."""
    index = index.long()
    return torch.where(index < 0, index + size, index)


@op("Gather")
def _gather(node: Node) -> Call:
    axis = node.attr("axis", 0)

    def call(x: Tensor, index: Tensor) -> Tensor:
        at = axis % x.dim()
        flat = _positive(index, x.shape[at]).reshape(-1)
        return x.index_select(at, flat).reshape([*x.shape[:at], *index.shape, *x.shape[at + 1 :]])

    return call


@op("GatherElements")
def _gather_elements(node: Node) -> Call:
    axis = node.attr("axis", 0)
    return lambda x, index: torch.gather(x, axis, _positive(index, x.shape[axis]))


def _places(x: Tensor, index: Tensor, batch: int) -> tuple[Tensor, ...]:
    """The last dimension of ``index`` split into one index per dimension of ``x`` after the batch dimensions."""
    lead = []
    for i in range(batch):
        shape = [-1 if j == i else 1 for j in range(index.dim() - 1)]
        lead.append(torch.arange(x.shape[i], device=x.device).reshape(shape))
    depth = index.shape[-1]
    return (*lead, *(_positive(index[..., i], x.shape[batch + i]) for i in range(depth)))


@op("GatherND")
def _gather_nd(node: Node) -> Call:
    batch = node.attr("batch_dims", 0)
    return lambda x, index: x[_places(x, index, batch)]


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op("ScatterElements", "Scatter")
def _scatter_elements(node: Node) -> Call:
    axis, how = node.attr("axis", 0), node.attr("reduction", "none")

    def call(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        at = _positive(index, x.shape[axis])
        if how == "none":
            return x.scatter(axis, at, updates)
        return x.scatter_reduce(axis, at, updates, _REDUCE[how])

    return call


@op("ScatterND")
def _scatter_nd(node: Node) -> Call:
    how = node.attr("reduction", "none")

    def call(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        places = _places(x, index, 0)
        if how in ("none", "add"):
            return x.index_put(places, updates, accumulate=how == "add")
        numbers = torch.arange(x.numel(), device=x.device).reshape(x.shape)[places]  # of the elements written
        flat = x.reshape(-1).scatter_reduce(0, numbers.reshape(-1), updates.reshape(-1), _REDUCE[how])
        return flat.reshape(x.shape)

    return call


@op("OneHot")
def _one_hot(node: Node) -> Call:
    axis, depth = node.attr("axis", -1), node.ints(1)
    assert depth is not None

    def call(*args: Any) -> Tensor:
        index, count, (off, on) = args[0], depth(args)[0], args[2]
        at = axis % (index.dim() + 1)
        steps = torch.arange(count, device=index.device)
        steps = steps.reshape([-1] + [1] * (index.dim() - at))
        return torch.where(_positive(index, count).unsqueeze(at) == steps, on, off)

    return call


@op("NonZero")
def _non_zero(node: Node) -> Call:
    return lambda x: torch.nonzero(x).t()


@op("Compress")
def _compress(node: Node) -> Call:
    axis = node.attr("axis", None)

    def call(x: Tensor, keep: Tensor) -> Tensor:
        x, at = (x.reshape(-1), 0) if axis is None else (x, axis)
        return x.index_select(at, torch.nonzero(keep).reshape(-1))

    return call


@op("ReverseSequence")
def _reverse_sequence(node: Node) -> Call:
    time, batch = node.attr("time_axis", 0), node.attr("batch_axis", 1)

    def call(x: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(x.shape[time], device=x.device)
        ends = lengths.long().unsqueeze(1)
        index = torch.where(steps < ends, ends - 1 - steps, steps)  # (batch, time)
        index = index if batch < time else index.t()
        shape = [x.shape[i] if i in (time, batch) else 1 for i in range(x.dim())]
        return torch.gather(x, time, index.reshape(shape).expand(x.shape))

    return call


@op("GridSample")
def _grid_sample(node: Node) -> Call:
    asked: str = node.attr("mode", "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(asked, asked)
    padding, corners = node.attr("padding_mode", "zeros"), bool(node.attr("align_corners", 0))
    return lambda x, grid: F.grid_sample(x, grid, mode, padding, corners)


@op("AffineGrid")
def _affine_grid(node: Node) -> Call:
    size, corners = node.ints(1), bool(node.attr("align_corners", 0))
    assert size is not None
    return lambda *args: F.affine_grid(args[0], size(args), align_corners=corners)


@op("NonMaxSuppression")
def _non_max_suppression(node: Node) -> Call:
    """Selection of boxes; nothing to differentiate."""
    centred = bool(node.attr("center_point_box", 0))
    most = node.number(2, "", 0)
    overlap, least = node.number(3, "", 0.0), node.number(4, "", None)

    def call(*args: Any) -> Tensor:
        boxes, scores = _corners(args[0].detach(), centred), args[1].detach()
        limit, threshold, score = int(most(args) or 0), float(overlap(args) or 0), least(args)
        chosen: list[tuple[int, int, int]] = []
        for batch in range(scores.shape[0]):
            for kind in range(scores.shape[1]):
                kept = _kept(boxes[batch], scores[batch, kind], limit, threshold, score)
                chosen += [(batch, kind, i) for i in kept]
        return torch.tensor(chosen, dtype=torch.int64, device=boxes.device).reshape(-1, 3)

    return call


def _corners(boxes: Tensor, centred: bool) -> Tensor:
    """``(..., 4)``: least y, least x, largest y, largest x, whichever way the corners were given."""
    if centred:
        x, y, width, height = boxes.unbind(-1)
        return torch.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], -1)
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _kept(boxes: Tensor, scores: Tensor, limit: int, threshold: float, least: Any) -> list[int]:
    """The best boxes one by one, each unless it overlaps one of those before by more than the threshold."""
    order = torch.argsort(scores, descending=True, stable=True)
    if least is not None:
        order = order[scores[order] > least]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    kept: list[int] = []
    for i in order.tolist():
        if len(kept) >= limit:
            break
        others = boxes[kept]
        sides = torch.minimum(others[:, 2:], boxes[i, 2:]) - torch.maximum(others[:, :2], boxes[i, :2])
        shared = sides.clamp(min=0).prod(-1)
        if not kept or not bool((shared > threshold * (areas[kept] + areas[i] - shared)).any()):
            kept.append(i)
    return kept
