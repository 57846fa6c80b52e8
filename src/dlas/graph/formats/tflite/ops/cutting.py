"""Reading of operators that cut a tensor or put something around it: SLICE, STRIDED_SLICE and the pads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation

_END = 2**31 - 1


def _read_pad(r: Reader, op: Operation) -> None:
    i, out = op.inputs[0], op.outputs[0]
    perm = r.perm(i)
    pairs = r.tensor(op.inputs[1]).constant()
    if pairs.shape != (len(perm), 2) or (pairs.size and pairs.min() < 0):
        raise ValueError(f"pads {pairs.tolist()}")
    r.batch_free &= not pairs[:1].any()
    pads = r.int64([int(pairs[a, 0]) for a in perm] + [int(pairs[a, 1]) for a in perm])
    tensor = r.tensor(i)
    if op.kind == "MIRROR_PAD":
        if r.options(op, "MirrorPadOptions").mode == 1:
            _mirror(r, op, pairs, perm)
        else:
            r.give_moved(out, i, r.emit("Pad", [r.value(i, perm), pads], mode="reflect"), perm)
        return
    fill = np.zeros((), np.float32 if r.is_on_grid(i) else tensor.dtype)
    if op.kind == "PADV2" and len(op.inputs) > 2:
        given = r.tensor(op.inputs[2])
        number = given.constant().reshape(-1)[:1]
        fill = (number if given.quant is None else given.quant.real(number)).astype(fill.dtype).reshape(())
    name = r.emit("Pad", [r.value(i, perm), pads, r.initializer(fill, "fill")])
    r.give_moved(out, i, name, perm)


def _mirror(r: Reader, op: Operation, pairs: np.ndarray, perm: layout.Perm) -> None:
    """Pads with what stands before the edge, the edge included: ONNX knows it only as picking by index."""
    i = op.inputs[0]
    name, shape = r.value(i, perm), r.shape(i)
    for axis, (before, after) in enumerate(pairs.tolist()):
        if max(before, after) > shape[axis]:
            raise ValueError(f"symmetric pads {before} and {after} of an axis of {shape[axis]}")
        if before or after:
            r.bounded(before + shape[axis] + after)
            index = np.pad(np.arange(shape[axis]), (before, after), mode="symmetric")
            name = r.emit("Gather", [name, r.int64(index)], axis=perm.index(axis))
    r.give_moved(op.outputs[0], i, name, perm)


def _read_slice(r: Reader, op: Operation) -> None:
    i, out = op.inputs[0], op.outputs[0]
    if not r.is_constant(op.inputs[1]) or not r.is_constant(op.inputs[2]):
        starts = r.cast(r.raw(op.inputs[1]), "int64")
        sizes = r.cast(r.raw(op.inputs[2]), "int64")
        open_end = r.emit("Less", [sizes, r.number(0, "int64")])
        ends = r.emit("Where", [open_end, r.number(_END, "int64"), r.emit("Add", [starts, sizes])])
        _cut_computed(r, op, starts, ends, [1] * len(r.shape(i)), [])
        return
    begins, sizes = r.ints(op.inputs[1]), r.ints(op.inputs[2])
    ends = [b + s if s >= 0 else n for b, s, n in zip(begins, sizes, r.shape(i), strict=True)]
    _cut(r, i, out, begins, ends, [1] * len(begins))


def _read_strided_slice(r: Reader, op: Operation) -> None:
    """Every mask: the spec is first written out for all axes of the input, as TensorFlow defines it."""
    i, out = op.inputs[0], op.outputs[0]
    o = r.options(op, "StridedSliceOptions")
    steps, shape = r.ints(op.inputs[3]), r.shape(i)
    if 0 in steps:
        raise ValueError(f"steps {steps}")
    if not r.is_constant(op.inputs[1]) or not r.is_constant(op.inputs[2]):
        if o.ellipsisMask or o.newAxisMask or o.offset:
            raise UnsupportedError("STRIDED_SLICE with computed bounds, and ellipsis, new axes or offsets")
        _cut_masked(r, op, o, steps)
        return
    begins, ends = (r.ints(t) for t in op.inputs[1:3])
    count = len(begins)
    fresh_at = [k for k in range(count) if o.newAxisMask >> k & 1 and not o.ellipsisMask >> k & 1]
    dots = [k for k in range(count) if o.ellipsisMask >> k & 1]
    used = count - len(fresh_at) - len(dots)
    if not count == len(ends) == len(steps) or used > len(shape) or len(dots) > 1:
        raise ValueError(f"{count} begins, {len(ends)} ends, {len(steps)} steps for {len(shape)} axes")
    spec: list[tuple[int, int, int]] = []
    shrunk: list[int] = []
    fresh: list[int] = []
    for k in [*range(count), *([] if dots else [count])]:
        if k == count or k in dots:
            spec += [(0, _END, 1)] * (len(shape) - used)
        elif k in fresh_at:
            fresh.append(len(spec) - len(shrunk) + len(fresh))
        else:
            axis = len(spec)
            first, last, step = begins[k], ends[k], steps[k]
            if o.offset:
                first += shape[axis] if first < 0 else 0
                last += first
            if o.shrinkAxisMask >> k & 1:
                first = layout.normal_axis(first, shape[axis])
                last, step = first + 1, 1
                shrunk.append(axis)
            else:
                first = (0 if step > 0 else _END) if o.beginMask >> k & 1 else first
                last = (_END if step > 0 else -_END) if o.endMask >> k & 1 else last
            spec.append((first, last, step))
    first, last, stride = ([s[n] for s in spec] for n in range(3))
    _cut(r, i, out, first, last, stride, shrunk, fresh)


def _cut(
    r: Reader,
    i: int,
    out: int,
    begins: list[int],
    ends: list[int],
    steps: list[int],
    shrunk: Sequence[int] = (),
    fresh: Sequence[int] = (),
) -> None:
    """A slice of tensor ``i``, without the axes ``shrunk`` and with new ones at ``fresh`` of the result."""
    tensor = r.tensor(i)
    axes_all = range(len(begins))
    if tensor.data is not None and tensor.quant is None:
        index = tuple(slice(begins[a], None if ends[a] == -_END else ends[a], steps[a]) for a in axes_all)
        r.give_constant(out, tensor.data[index])
        return
    whole = [a for a in axes_all if (begins[a], steps[a]) == (0, 1) and ends[a] >= tensor.shape[a]]
    axes = [a for a in axes_all if a not in whole]
    perm = layout.identity(len(tensor.shape)) if shrunk or fresh else r.perm(i)
    name = r.value(i, perm)
    r.batch_free &= 0 not in axes and 0 not in shrunk and 0 not in fresh
    if axes:
        picked = [[values[a] for a in axes] for values in (begins, ends)]
        inputs = [
            name,
            *(r.int64(p) for p in picked),
            r.int64([perm.index(a) for a in axes]),
            r.int64([steps[a] for a in axes]),
        ]
        name = r.emit("Slice", inputs)
    if shrunk:
        name = r.emit("Squeeze", [name, r.int64(shrunk)])
    if fresh:
        name = r.emit("Unsqueeze", [name, r.int64(fresh)])
    if shrunk or fresh:
        perm = layout.identity(len(tensor.shape) - len(shrunk) + len(fresh))
    r.give_moved(out, i, name, perm)


def _cut_masked(r: Reader, op: Operation, o: Any, steps: list[int]) -> None:
    """STRIDED_SLICE between computed bounds."""
    count = len(steps)
    starts, ends = (r.cast(r.raw(t), "int64") for t in op.inputs[1:3])
    chosen = [np.array([mask >> k & 1 for k in range(count)], bool) for mask in (o.beginMask, o.endMask)]
    whole = [[0 if s > 0 else _END for s in steps], [_END if s > 0 else -_END for s in steps]]
    starts, ends = (
        r.emit("Where", [r.initializer(m, "mask"), r.int64(w), name]) if m.any() else name
        for m, w, name in zip(chosen, whole, (starts, ends), strict=True)
    )
    shrunk = [k for k in range(count) if o.shrinkAxisMask >> k & 1]
    if shrunk:
        mask = r.initializer(np.array([k in shrunk for k in range(count)]), "mask")
        last = r.emit("Equal", [starts, r.number(-1, "int64")])
        following = r.emit("Add", [starts, r.number(1, "int64")])
        following = r.emit("Where", [last, r.number(_END, "int64"), following])
        ends = r.emit("Where", [mask, following, ends])
    _cut_computed(r, op, starts, ends, steps, shrunk)


def _cut_computed(
    r: Reader, op: Operation, starts: str, ends: str, steps: list[int], shrunk: list[int]
) -> None:
    i, out = op.inputs[0], op.outputs[0]
    r.batch_free = False
    name = r.value(i, layout.identity(len(r.shape(i))))
    name = r.emit("Slice", [name, starts, ends, r.int64(range(len(steps))), r.int64(steps)])
    if shrunk:
        name = r.emit("Squeeze", [name, r.int64(shrunk)])
    shape = r.shape(out)
    if 0 not in shape:  # the file knows the size, inference of shapes cannot
        name = r.emit("Reshape", [name, r.int64(shape)])
    r.give_moved(out, i, name, layout.identity(len(shape)))


RULES = [
    Rule(("PAD", "PADV2", "MIRROR_PAD"), (), _read_pad),
    Rule(("SLICE",), (), _read_slice),
    Rule(("STRIDED_SLICE",), (), _read_strided_slice),
]
