"""Reading of operators that make, repeat or spread elements: FILL, RANGE, TILE, diagonals, blocks of space."""

from __future__ import annotations

import math

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation


def _read_fill(r: Reader, op: Operation) -> None:
    i, out = op.inputs[1], op.outputs[0]
    shape = r.ints(op.inputs[0]) if r.is_constant(op.inputs[0]) else list(r.shape(out))
    r.batch_free = False
    name = r.emit("Expand", [r.value(i, layout.identity(len(r.shape(i)))), r.int64(shape)])
    r.give_moved(out, i, name, layout.identity(len(shape)))


def _read_range(r: Reader, op: Operation) -> None:
    out = op.outputs[0]
    if all(r.is_constant(i) for i in op.inputs):
        start, limit, delta = (r.tensor(i).constant().reshape(-1)[0].item() for i in op.inputs)
        count = max(math.ceil((limit - start) / delta), 0)
        r.bounded(count)
        steps = np.arange(count)
        dtype = r.tensor(out).dtype
        values = (np.asarray(start, dtype) + steps.astype(dtype) * np.asarray(delta, dtype)).astype(dtype)
        if r.shape(out) == values.shape:
            r.give_constant(out, values)
            return
        name = r.initializer(values, "range")
    else:
        r.batch_free = False
        name = r.emit("Range", [r.emit("Reshape", [r.real(i), r.int64([])]) for i in op.inputs])
    r.leave_open(out, ("range",))
    r.give_raw(out, name, (0,))


def _read_tile(r: Reader, op: Operation) -> None:
    i, out = op.inputs[0], op.outputs[0]
    times = r.ints(op.inputs[1])
    perm = r.perm(i)
    if len(times) != len(perm) or min(times, default=1) < 0:
        raise ValueError(f"multiples {times} for {len(perm)} axes")
    r.batch_free &= times[:1] == [1]
    r.give_moved(out, i, r.emit("Tile", [r.value(i, perm), r.int64(layout.permute(times, perm))]), perm)


def _read_rank(r: Reader, op: Operation) -> None:
    r.give_constant(op.outputs[0], np.array(len(r.shape(op.inputs[0]))))


def _read_broadcast_args(r: Reader, op: Operation) -> None:
    shapes = [tuple(r.ints(i)) for i in op.inputs]
    r.give_constant(op.outputs[0], np.array(np.broadcast_shapes(*shapes)))


def _read_densify(r: Reader, op: Operation) -> None:
    r.give_constant(op.outputs[0], r.tensor(op.inputs[0]))  # constants are unfolded when the file is read


def _diagonal(r: Reader, rows: int, columns: int) -> str:
    r.bounded(rows * columns)
    return r.initializer(np.eye(rows, columns, dtype=bool), "diagonal")


def _read_matrix_diag(r: Reader, op: Operation) -> None:
    i, out = op.inputs[0], op.outputs[0]
    rank, size = len(r.shape(i)), r.shape(i)[-1]
    wide = r.emit("Unsqueeze", [r.value(i, layout.identity(rank)), r.int64([rank])])
    dtype = "float32" if r.is_on_grid(i) else r.tensor(i).dtype
    name = r.emit("Where", [_diagonal(r, size, size), wide, r.number(0, dtype)])
    r.give_moved(out, i, name, layout.identity(rank + 1))


def _read_matrix_set_diag(r: Reader, op: Operation) -> None:
    i, diagonal = op.inputs
    rank = len(r.shape(i))
    rows, columns = r.shape(i)[-2:]
    x, d = r.value(i, layout.identity(rank)), r.value(diagonal, layout.identity(rank - 1))
    # The diagonal is as long as the shorter side; along that side it can be laid over the matrix.
    wide = r.emit("Unsqueeze", [d, r.int64([rank - 1 if rows <= columns else rank - 2])])
    name = r.emit("Where", [_diagonal(r, rows, columns), wide, x])
    r.give_moved(op.outputs[0], i, name, layout.identity(rank))


def _read_space_to_batch(r: Reader, op: Operation) -> None:
    """Pads, then deals the pixels of each block out to as many images."""
    i, out = op.inputs[0], op.outputs[0]
    blocks = r.ints(op.inputs[1])
    pairs = r.tensor(op.inputs[2]).constant()
    shape = list(r.shape(i))
    axes = len(blocks)
    if pairs.shape != (axes, 2) or min(blocks) < 1 or pairs.min() < 0 or axes >= len(shape):
        raise ValueError(f"blocks {blocks}, pads {pairs.tolist()} for {len(shape)} axes")
    name = r.value(i, layout.identity(len(shape)))
    if pairs.any():
        rest = [0] * (len(shape) - axes - 1)
        pads = [0, *pairs[:, 0].tolist(), *rest, 0, *pairs[:, 1].tolist(), *rest]
        dtype = "float32" if r.is_on_grid(i) else r.tensor(i).dtype
        name = r.emit("Pad", [name, r.int64(pads), r.number(0, dtype)])
    padded = [n + int(b) + int(a) for n, (b, a) in zip(shape[1:], pairs, strict=False)]
    if any(n % block for n, block in zip(padded, blocks, strict=True)):
        raise ValueError(f"blocks {blocks} do not divide {padded}")
    split = [d for n, block in zip(padded, blocks, strict=True) for d in (n // block, block)]
    tail = shape[1 + axes :]
    name = r.emit("Reshape", [name, r.int64([-1, *split, *tail])])
    inner, outer = [2 + 2 * a for a in range(axes)], [1 + 2 * a for a in range(axes)]
    last = range(1 + 2 * axes, 1 + 2 * axes + len(tail))
    name = r.transposed(name, [*inner, 0, *outer, *last])
    small = [n // block for n, block in zip(padded, blocks, strict=True)]
    name = r.emit("Reshape", [name, r.int64([-1, *small, *tail])])
    r.give_moved(out, i, name, layout.identity(len(shape)))


def _read_batch_to_space(r: Reader, op: Operation) -> None:
    """The way back: collects the pixels of each block, then cuts."""
    i, out = op.inputs[0], op.outputs[0]
    blocks = r.ints(op.inputs[1])
    pairs = r.tensor(op.inputs[2]).constant()
    shape = list(r.shape(i))
    axes = len(blocks)
    fits = pairs.shape == (axes, 2) and min(blocks) >= 1 and pairs.min() >= 0 and axes < len(shape)
    if not fits or shape[0] % math.prod(blocks):
        raise ValueError(f"blocks {blocks}, crops {pairs.tolist()} for {shape}")
    sizes, tail = shape[1 : 1 + axes], shape[1 + axes :]
    name = r.value(i, layout.identity(len(shape)))
    name = r.emit("Reshape", [name, r.int64([*blocks, -1, *sizes, *tail])])
    pairing = [d for a in range(axes) for d in (axes + 1 + a, a)]
    name = r.transposed(name, [axes, *pairing, *range(1 + 2 * axes, 1 + 2 * axes + len(tail))])
    large = [n * block for n, block in zip(sizes, blocks, strict=True)]
    name = r.emit("Reshape", [name, r.int64([-1, *large, *tail])])
    if pairs.any():
        begins = [int(b) for b, _ in pairs]
        ends = [n - int(a) for n, (_, a) in zip(large, pairs, strict=True)]
        name = r.emit("Slice", [name, r.int64(begins), r.int64(ends), r.int64(range(1, 1 + axes))])
    r.give_moved(out, i, name, layout.identity(len(shape)))


def _read_dilate(r: Reader, op: Operation) -> None:
    """Puts a number between neighbouring elements."""
    i, out = op.inputs[0], op.outputs[0]
    factors = r.ints(op.inputs[1])
    if r.is_on_grid(i):
        raise UnsupportedError("DILATE of quantised tensors cannot be read")
    name, filler = r.raw(i, layout.identity(len(factors))), r.raw(op.inputs[2])
    filler = r.emit("Reshape", [filler, r.int64([])])
    r.batch_free &= factors[:1] == [1]
    for axis, factor in enumerate(factors):
        size = r.shape(i)[axis]
        if factor == 1:
            continue
        name = r.emit("Unsqueeze", [name, r.int64([axis + 1])])
        pads = [0] * (2 * len(factors) + 2)
        pads[len(factors) + 1 + axis + 1] = factor - 1
        name = r.emit("Pad", [name, r.int64(pads), filler])
        before = [r.shape(out)[a] for a in range(axis)]
        after = [r.shape(i)[a] for a in range(axis + 1, len(factors))]
        shape = [*before, size * factor, *after]
        if axis > 0:
            shape[0] = 0
        name = r.emit("Reshape", [name, r.int64(shape)])
        ends = (size - 1) * factor + 1
        name = r.emit("Slice", [name, r.int64([0]), r.int64([ends]), r.int64([axis])])
    r.give_raw(out, name, layout.identity(len(factors)))


RULES = [
    Rule(("FILL",), (), _read_fill),
    Rule(("RANGE",), (), _read_range),
    Rule(("TILE",), (), _read_tile),
    Rule(("RANK",), (), _read_rank),
    Rule(("BROADCAST_ARGS",), (), _read_broadcast_args),
    Rule(("DENSIFY",), (), _read_densify),
    Rule(("MATRIX_DIAG",), (), _read_matrix_diag),
    Rule(("MATRIX_SET_DIAG",), (), _read_matrix_set_diag),
    Rule(("SPACE_TO_BATCH_ND",), (), _read_space_to_batch),
    Rule(("BATCH_TO_SPACE_ND",), (), _read_batch_to_space),
    Rule(("DILATE",), (), _read_dilate),
]
