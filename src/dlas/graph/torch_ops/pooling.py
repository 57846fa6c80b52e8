"""Pools, over a window or over everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_ops.table import Call, Node, op
from dlas.graph.torch_ops.window import Pads, Window, torch_pad

_MAX_POOL: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@op("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(node: Node) -> Call:
    if node.kind == "GlobalAveragePool":
        return lambda x: torch.mean(x, list(range(2, x.dim())), keepdim=True)
    if node.kind == "GlobalMaxPool":
        return lambda x: torch.amax(x, list(range(2, x.dim())), keepdim=True)
    order = node.attr("p", 2)
    return lambda x: torch.linalg.vector_norm(x, order, list(range(2, x.dim())), keepdim=True)


def _around(window: Window, sizes: Sequence[int], kernel: Sequence[int], ceil: bool) -> Pads:
    """Padding with the overhang of ``ceil_mode``."""
    pads = window.padding(sizes, kernel)
    if not ceil:
        return pads
    over = window.overhang(sizes, pads, kernel)
    return tuple((b, e + o) for (b, e), (_, o) in zip(pads, over, strict=True))


@op("MaxPool")
def _max_pool(node: Node) -> Call:
    kernel = tuple(node.attr("kernel_shape"))
    if len(kernel) not in _MAX_POOL:
        raise node.refuse(f"{len(kernel)} spatial dimensions")
    pool, window = _MAX_POOL[len(kernel)], Window.of(node, len(kernel))
    ceil, indices = bool(node.attr("ceil_mode", 0)), node.wants(1)
    strides, dilations, both = window.strides, window.dilations, window.symmetric()
    fits = both is not None and all(p <= k // 2 for p, k in zip(both, kernel, strict=True))
    plain = fits and not ceil and not indices

    def call(x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if plain and x.is_floating_point():
            return pool(x, kernel, strides, both, dilations)
        around = _around(window, x.shape[2:], kernel, ceil)
        wide = x if x.is_floating_point() else x.double()
        padded = F.pad(wide, torch_pad(around), value=-torch.inf)
        if not indices:
            return pool(padded, kernel, strides, 0, dilations).to(x.dtype)
        y, place = pool(padded, kernel, strides, 0, dilations, return_indices=True)
        return y.to(x.dtype), _global(place, padded.shape[2:], x.shape, around, node.attr("storage_order", 0))

    return call


def _global(place: Tensor, padded: Sequence[int], shape: Sequence[int], around: Pads, columns: int) -> Tensor:
    """Positions within the padded planes as positions in the whole tensor, row by row or column by column."""
    coordinates = []
    for size in reversed(padded):
        coordinates.insert(0, place % size)
        place = place // size
    pairs = [(c - b, n) for c, (b, _), n in zip(coordinates, around, shape[2:], strict=True)]
    flat, planes = torch.zeros_like(place), torch.arange(shape[0] * shape[1], device=place.device)
    for coordinate, size in reversed(pairs) if columns else pairs:
        flat = flat * size + coordinate
    size = torch.Size(shape[2:]).numel()
    return flat + planes.reshape(*shape[:2], *[1] * len(padded)) * size


@op("AveragePool")
def average_pool(node: Node) -> Call:
    """The pool ``x -> y`` that a node's attributes describe."""
    kernel = tuple(node.attr("kernel_shape"))
    window, ceil = Window.of(node, len(kernel)), bool(node.attr("ceil_mode", 0))
    strides = window.strides
    whole = bool(node.attr("count_include_pad", 0))
    pool = _AVG_POOL.get(len(kernel))
    if pool is None or any(d != 1 for d in window.dilations):
        axes = list(range(-len(kernel), 0))
        pool = lambda x, kernel, _: torch.mean(window.views(x, kernel), axes)  # noqa: E731
    both = window.symmetric()
    if both is not None and not ceil and not any(both):
        return lambda x: pool(x, kernel, strides)

    def call(x: Tensor) -> Tensor:
        pads = window.padding(x.shape[2:], kernel)
        counted = F.pad(torch.ones_like(x[:1, :1]), torch_pad(pads), value=1.0 if whole else 0.0)
        around = F.pad(x, torch_pad(pads))
        if ceil:
            over = torch_pad(window.overhang(x.shape[2:], pads, kernel))
            around, counted = F.pad(around, over), F.pad(counted, over)
        return pool(around, kernel, strides) / pool(counted, kernel, strides)  # the window size cancels out

    return call


@op("LpPool")
def _lp_pool(node: Node) -> Call:
    kernel, order = tuple(node.attr("kernel_shape")), node.attr("p", 2)
    window, ceil = Window.of(node, len(kernel)), bool(node.attr("ceil_mode", 0))
    axes = list(range(-len(kernel), 0))

    def call(x: Tensor) -> Tensor:
        padded = F.pad(x, torch_pad(_around(window, x.shape[2:], kernel, ceil)))
        return torch.linalg.vector_norm(window.views(padded, kernel), order, axes)

    return call
