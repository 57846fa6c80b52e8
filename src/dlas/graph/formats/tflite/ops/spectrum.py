"""Reading of the Fourier transform and of what takes complex numbers apart: RFFT2D, REAL, IMAG, COMPLEX_ABS.

ONNX operators do not take complex numbers, so such a tensor is kept as float32 with a last axis of two. The transform
is a product with a matrix of cosines and sines, which every runtime has.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation


def _waves(r: Reader, rows: int, columns: int, size: int) -> list[str]:
    """Real and imaginary part of exp(-2 pi i jk / size), ``(rows, columns)`` float32 each."""
    r.bounded(2 * rows * columns)
    angle = -2 * np.pi * (np.outer(np.arange(rows), np.arange(columns)) % size) / size
    return [r.initializer(part.astype(np.float32), "waves") for part in (np.cos(angle), np.sin(angle))]


def _cut_or_fill(r: Reader, name: str, axis: int, rank: int, have: int, want: int) -> str:
    if want < have:
        return r.emit("Slice", [name, r.int64([0]), r.int64([want]), r.int64([axis])])
    if want > have:
        pads = [0] * (2 * rank)
        pads[rank + axis] = want - have
        return r.emit("Pad", [name, r.int64(pads), r.number(0.0)])
    return name


def _read_rfft(r: Reader, op: Operation) -> None:
    i, out = op.inputs[0], op.outputs[0]
    height, width = r.ints(op.inputs[1])
    shape = r.shape(i)
    rank = len(shape)
    if rank < 2 or min(height, width) < 1 or r.tensor(i).dtype != "float32":
        raise ValueError(f"a transform of {[height, width]} points over {list(shape)}")
    r.batch_free &= rank > 2
    name = _cut_or_fill(r, r.raw(i, layout.identity(rank)), rank - 1, rank, shape[-1], width)
    name = _cut_or_fill(r, name, rank - 2, rank, shape[-2], height)
    kept = width // 2 + 1
    parts = [r.emit("MatMul", [name, wave]) for wave in _waves(r, width, kept, width)]
    if height > 1:
        waves = _waves(r, height, height, height)
        (a, b), (c, d) = ([r.emit("MatMul", [wave, part]) for part in parts] for wave in waves)
        parts = [r.emit("Sub", [a, d]), r.emit("Add", [b, c])]
    wide = [r.emit("Unsqueeze", [part, r.int64([rank])]) for part in parts]
    r.give_raw(out, r.emit("Concat", wide, axis=rank), layout.identity(rank))


def _read_part(r: Reader, op: Operation, part: int) -> None:
    i, out = op.inputs[0], op.outputs[0]
    rank = len(r.shape(i))
    name = r.emit("Gather", [r.raw(i, layout.identity(rank)), r.number(part, "int64")], axis=rank)
    r.give_raw(out, name, layout.identity(rank))


def _read_magnitude(r: Reader, op: Operation) -> None:
    i, out = op.inputs[0], op.outputs[0]
    rank = len(r.shape(i))
    if r.tensor(out).dtype != "float32":
        raise UnsupportedError("COMPLEX_ABS to another type than float32 cannot be read")
    name = r.emit("ReduceL2", [r.raw(i, layout.identity(rank)), r.int64([rank])], keepdims=0)
    r.give_raw(out, name, layout.identity(rank))


RULES = [
    Rule(("RFFT2D",), (), _read_rfft),
    Rule(("REAL",), (), partial(_read_part, part=0)),
    Rule(("IMAG",), (), partial(_read_part, part=1)),
    Rule(("COMPLEX_ABS",), (), _read_magnitude),
]
