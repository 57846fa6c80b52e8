"""Operators that move, cut, repeat or make up elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_ops.table import Call, Node, held, op, torch_dtype


@op("Constant")
def _constant(node: Node) -> Call:
    array = node.constants[str(node.ir.outputs[0].name)]
    value = held(array)
    return lambda: value


@op("Shape")
def _shape(node: Node) -> Call:
    start, end = node.attr("start", 0), node.attr("end", None)
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


@op("Size")
def _size(node: Node) -> Call:
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


@op("Flatten")
def _flatten(node: Node) -> Call:
    axis = node.attr("axis", 1)

    def call(x: Tensor) -> Tensor:
        at = axis + x.dim() if axis < 0 else axis
        rows = int(np.prod(x.shape[:at], dtype=np.int64))
        return x.reshape(rows, -1 if x.numel() else 0)

    return call


@op("Reshape")
def _reshape(node: Node) -> Call:
    shape = node.ints(1, "shape")
    assert shape is not None
    if node.attr("allowzero", 0):
        return lambda *args: args[0].reshape(shape(args))

    def call(*args: Any) -> Tensor:
        x = args[0]
        return x.reshape([x.shape[i] if d == 0 else d for i, d in enumerate(shape(args))])

    return call


@op("Squeeze")
def _squeeze(node: Node) -> Call:
    axes = node.ints(1, "axes")
    if axes is None:
        return lambda x: x.squeeze()
    return lambda *args: args[0].squeeze(tuple(axes(args)))


@op("Unsqueeze")
def _unsqueeze(node: Node) -> Call:
    axes = node.ints(1, "axes")
    assert axes is not None

    def call(*args: Any) -> Tensor:
        x, at = args[0], axes(args)
        rank = x.dim() + len(at)
        for axis in sorted(a % rank for a in at):
            x = x.unsqueeze(axis)
        return x

    return call


@op("Transpose")
def _transpose(node: Node) -> Call:
    perm = node.attr("perm")
    if perm is None:
        return lambda x: x.permute(*reversed(range(x.dim())))
    return lambda x: x.permute(perm)


@op("Slice")
def _slice(node: Node) -> Call:
    starts, ends = node.ints(1, "starts"), node.ints(2, "ends")
    axes, steps = node.ints(3, "axes"), node.ints(4, "steps")
    assert starts is not None
    assert ends is not None

    def call(*args: Any) -> Tensor:
        x = args[0]
        first, last = starts(args), ends(args)
        over = axes(args) if axes is not None else range(len(first))
        jumps = steps(args) if steps is not None else [1] * len(first)
        index = [slice(None)] * x.dim()
        for axis, start, end, step in zip(over, first, last, jumps, strict=True):
            if step > 0:
                index[axis] = slice(start, end, step)
            else:  # torch has no negative steps
                picked = range(*slice(start, end, step).indices(x.shape[axis]))
                x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64, device=x.device))
        return x[tuple(index)]

    return call


@op("Pad")
def _pad(node: Node) -> Call:
    pads, axes = node.ints(1, "pads"), node.ints(3)
    number = node.number(2, "value", 0.0)
    mode = node.attr("mode", "constant")
    assert pads is not None

    def call(*args: Any) -> Tensor:
        x, flat, value = args[0], pads(args), number(args)
        over = [a % x.dim() for a in axes(args)] if axes is not None else list(range(x.dim()))
        pairs = {axis: (flat[i], flat[i + len(over)]) for i, axis in enumerate(over)}
        if mode == "constant":
            around = [p for axis in reversed(range(x.dim())) for p in pairs.get(axis, (0, 0))]
            if not isinstance(value, Tensor):
                return F.pad(x, around, value=value)
            inside = F.pad(torch.ones_like(x, dtype=torch.bool), around)
            return torch.where(inside, F.pad(x, around), value.to(x.dtype))
        for axis, pair in pairs.items():
            if any(pair):
                rows = np.pad(np.arange(x.shape[axis]), pair, mode=mode)
                x = x.index_select(axis, torch.from_numpy(rows).to(x.device))
        return x

    return call


@op("Concat")
def _concat(node: Node) -> Call:
    axis = node.attr("axis")
    return lambda *args: torch.cat(args, axis)


@op("Split")
def _split(node: Node) -> Call:
    axis, count = node.attr("axis", 0), node.outputs
    sizes = node.ints(1, "split")

    def call(*args: Any) -> tuple[Tensor, ...]:
        x = args[0]
        size = -(-x.shape[axis] // count)
        return tuple(torch.split(x, sizes(args) if sizes is not None else size, axis))

    return call


@op("Expand")
def _expand(node: Node) -> Call:
    shape = node.ints(1)
    assert shape is not None
    return lambda *args: args[0].expand(torch.broadcast_shapes(args[0].shape, shape(args)))


@op("Tile")
def _tile(node: Node) -> Call:
    repeats = node.ints(1)
    assert repeats is not None
    return lambda *args: args[0].repeat(repeats(args))


@op("ConstantOfShape")
def _constant_of_shape(node: Node) -> Call:
    shape = node.ints(0)
    assert shape is not None
    fill = node.attr("value")
    value = held(fill.numpy()).reshape(()) if fill is not None else torch.tensor(0.0)
    return lambda *args: value.expand(shape(args)).clone()


@op("Range")
def _range(node: Node) -> Call:
    return lambda start, limit, step: torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


@op("DepthToSpace")
def _depth_to_space(node: Node) -> Call:
    block, rows_first = node.attr("blocksize"), node.attr("mode", "DCR") == "DCR"

    def call(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if rows_first:
            x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            x = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(n, c // block**2, h * block, w * block)

    return call


@op("SpaceToDepth")
def _space_to_depth(node: Node) -> Call:
    block = node.attr("blocksize")
    order = (0, 3, 5, 1, 2, 4) if node.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)

    def call(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // block, block, w // block, block).permute(order)
        return x.reshape(n, c * block**2, h // block, w // block)

    return call


@op("Trilu")
def _trilu(node: Node) -> Call:
    keep = torch.triu if node.attr("upper", 1) else torch.tril
    diagonal = node.number(1, "", 0)
    return lambda *args: keep(args[0], int(diagonal(args)))


@op("EyeLike")
def _eye_like(node: Node) -> Call:
    code, diagonal = node.attr("dtype"), node.attr("k", 0)
    dtype = None if code is None else torch_dtype(node, code)

    def call(x: Tensor) -> Tensor:
        rows, columns = (torch.arange(n, device=x.device) for n in x.shape)
        return (columns - rows.unsqueeze(1) == diagonal).to(dtype or x.dtype)

    return call


@op("CenterCropPad")
def _center_crop_pad(node: Node) -> Call:
    axes, shape = node.attr("axes"), node.ints(1)
    assert shape is not None

    def call(*args: Any) -> Tensor:
        x, wanted = args[0], shape(args)
        for axis, size in zip(axes or range(x.dim()), wanted, strict=True):
            missing = size - x.shape[axis]
            before = missing // 2 if missing > 0 else -(-missing // 2)
            pads = [0, 0] * (x.dim() - 1 - axis % x.dim()) + [before, missing - before]
            x = F.pad(x, pads)
        return x

    return call
