"""Shapes, slices, reductions, and calls that leave a tensor as it is."""

from __future__ import annotations

import operator
import sys
from typing import Any

import onnx_ir as ir
import torch
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_trace.table import Call, Traced, function, ints, need

_LAST = sys.maxsize


@function("contiguous", "detach", "float", "to", "type_as", "clone")
def _unchanged(call: Call, input: Traced, *rest: Any, **options: Any) -> ir.Value | None:
    del rest, options
    need(input.dtype == call.result[0].dtype, "a change of dtype")
    return input.value


@function(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def _dropout(
    call: Call, input: Traced, p: float = 0.5, training: bool = True, inplace: bool = False
) -> ir.Value | None:
    del call, p, inplace
    need(not training, "dropout in training")
    return input.value


@function(
    "view", "reshape", torch.reshape, torch.flatten, "flatten", torch.unflatten, "unflatten", sizes=True
)
def _reshape(call: Call, input: Traced, *_: Any, **__: Any) -> ir.Value | None:
    runs = call.result
    if all(run.shape == old.shape for run, old in zip(runs, input.runs, strict=True)):
        need(input.dtype == runs[0].dtype, "a view as another dtype")
        return input.value
    need(input.dtype == runs[0].dtype and runs[0].numel() > 0, "a view as another dtype, or of nothing")
    target: list[int] = []
    open_axis = False
    for axis, dim in enumerate(call.writer.dims(runs)):
        same = axis < input.rank and all(
            run.shape[axis] == old.shape[axis] for run, old in zip(runs, input.runs, strict=True)
        )
        if isinstance(dim, int):
            target.append(dim)
        elif not open_axis:
            target.append(-1)
            open_axis = True
        else:
            need(same, "two sizes that depend on the batch")
            target.append(0)
    return call.emit("Reshape", input, ints(*target))


@function(torch.permute, "permute")
def _permute(call: Call, input: Traced, *dims: Any) -> ir.Value:
    listed = dims[0] if len(dims) == 1 and isinstance(dims[0], list | tuple) else dims
    return call.emit("Transpose", input, perm=[input.axis(d) for d in listed])


@function(torch.transpose, torch.swapaxes, "transpose", "swapaxes")
def _transpose(call: Call, input: Traced, dim0: int, dim1: int) -> ir.Value:
    order = list(range(input.rank))
    first, second = input.axis(dim0), input.axis(dim1)
    order[first], order[second] = second, first
    return call.emit("Transpose", input, perm=order)


@function(torch.unsqueeze, "unsqueeze")
def _unsqueeze(call: Call, input: Traced, dim: int) -> ir.Value:
    return call.emit("Unsqueeze", input, ints(dim))


@function(torch.squeeze, "squeeze")
def _squeeze(call: Call, input: Traced, dim: Any) -> ir.Value | None:
    asked = dim if isinstance(dim, list | tuple) else [dim]
    axes = [d for d in asked if input.fixed(d) == 1]
    return call.emit("Squeeze", input, ints(*axes)) if axes else input.value


@function(torch.cat, torch.concat)
def _cat(call: Call, tensors: Any, dim: int = 0) -> ir.Value:
    need(all(t.dtype == call.result[0].dtype and t.rank > 1 for t in tensors), "different dtypes")
    return call.emit("Concat", *tensors, axis=dim)


@function(torch.chunk, torch.split, "chunk", "split")
def _split(call: Call, input: Traced, _: Any, dim: int = 0) -> list[ir.Value]:
    input.fixed(dim)
    count = len(call.result[0])
    like = [tuple(run[i] for run in call.result) for i in range(count)]
    sizes = ints(*(part.shape[dim] for part in call.result[0]))
    return call.emit_all("Split", input, sizes, like=like, axis=dim)


@function(F.pad)
def _pad(call: Call, input: Traced, pad: Any, mode: str = "constant", value: float | None = None) -> ir.Value:
    need(mode == "constant", f"padding by {mode}")
    before, after = [0] * input.rank, [0] * input.rank
    for place in range(len(pad) // 2):
        axis = input.rank - 1 - place
        before[axis], after[axis] = pad[2 * place], pad[2 * place + 1]
        need(not (before[axis] or after[axis]) or input.fixed(axis) >= 0, "padding the batch")
    given = [call.number(value)] if value else []
    return call.emit("Pad", input, ints(*before, *after), *given, mode="constant")


@function(torch.pixel_shuffle, F.pixel_shuffle)
def _pixel_shuffle(call: Call, input: Traced, upscale_factor: int) -> ir.Value:
    need(input.rank == 4, "pixels shuffled without batch")
    return call.emit("DepthToSpace", input, mode="CRD", blocksize=upscale_factor)


def _reduction(kind: str, *targets: Any) -> None:
    def build(call: Call, input: Traced, dim: Any, keepdim: bool = False) -> ir.Value:
        axes: tuple[int, ...] = tuple(dim) if isinstance(dim, list | tuple) else (dim,)
        need(len(axes) > 0 and input.dtype == call.result[0].dtype, f"{kind} over everything")
        return call.emit(kind, input, ints(*axes), keepdims=int(keepdim))

    function(*targets)(build)


_reduction("ReduceMean", torch.mean, "mean")
_reduction("ReduceSum", torch.sum, "sum")
_reduction("ReduceMax", torch.amax, "amax")
_reduction("ReduceMin", torch.amin, "amin")


@function(operator.getitem)
def _getitem(call: Call, input: Traced, index: Any) -> Any:
    """Slices, whole numbers, None and an ellipsis; one node for each axis."""
    if input.parts:
        return input.parts[index].value
    listed: list[Any] = list(index) if isinstance(index, tuple) else [index]
    need(
        all(i is None or i is Ellipsis or type(i) in (int, slice) for i in listed),
        "an index that is computed",
    )
    if Ellipsis in listed:
        place = listed.index(Ellipsis)
        missing = input.rank - sum(i is not None and i is not Ellipsis for i in listed)
        listed[place : place + 1] = [slice(None)] * missing
        need(Ellipsis not in listed, "two ellipses")
    current: Any = input
    runs, axis = input.runs, 0
    for entry in listed:
        picked = (slice(None),) * axis + (entry,)
        if entry == slice(None):
            axis += 1
            continue
        if entry is not None:
            need(len({run.shape[axis] for run in runs}) == 1, "an index along the batch")
        runs = tuple(run[picked] for run in runs)
        if entry is None:
            current = call.emit("Unsqueeze", current, ints(axis), like=runs)
            axis += 1
        elif isinstance(entry, slice):
            start, stop, step = entry.start or 0, _LAST if entry.stop is None else entry.stop, entry.step or 1
            current = call.emit("Slice", current, ints(start), ints(stop), ints(axis), ints(step), like=runs)
            axis += 1
        else:
            current = call.emit("Gather", current, ints(entry).reshape(()), like=runs, axis=axis)
    return current.value if isinstance(current, Traced) else current
