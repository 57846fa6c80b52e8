"""Reading of operators that pick elements by index, put them at an index, or order them."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation


def _plain(r: Reader, i: int) -> layout.Perm:
    return layout.identity(len(r.shape(i)))


def _indices(r: Reader, i: int) -> str:
    """An integer tensor as int64, its axes in the plain order."""
    name = r.raw(i, _plain(r, i))
    return name if r.tensor(i).dtype == "int64" else r.cast(name, "int64")


def _held(r: Reader, i: int) -> str:
    """The dtype that :meth:`Reader.value` gives tensor ``i`` in."""
    return "float32" if r.is_on_grid(i) else r.tensor(i).dtype


def _read_gather_nd(r: Reader, op: Operation) -> None:
    x, indices = op.inputs
    r.batch_free = False
    name = r.emit("GatherND", [r.value(x, _plain(r, x)), _indices(r, indices)])
    r.give_moved(op.outputs[0], x, name, _plain(r, op.outputs[0]))


def _read_embedding(r: Reader, op: Operation) -> None:
    ids, table = op.inputs
    out = op.outputs[0]
    r.batch_free = False
    r.note_hybrid(table)
    name = r.emit("Gather", [r.real(table, _plain(r, table)), _indices(r, ids)], axis=0)
    r.give(out, name, _plain(r, out))


def _zeros(r: Reader, shape: list[int], dtype: str, value: float = 0) -> str:
    return r.emit("Expand", [r.number(value, dtype), r.int64(shape)])


def _read_scatter_nd(r: Reader, op: Operation) -> None:
    """Updates at equal indices add up, as in TensorFlow."""
    indices, updates, shape = op.inputs
    out = op.outputs[0]
    r.batch_free = False
    name = r.value(updates, _plain(r, updates))
    dtype = _held(r, updates)
    onto = _zeros(r, r.ints(shape), "int32" if dtype == "bool" else dtype)
    if dtype == "bool":  # the sum of truths is whether any is true
        added = r.emit("ScatterND", [onto, _indices(r, indices), r.cast(name, "int32")], reduction="add")
        name = r.cast(added, "bool")
    else:
        name = r.emit("ScatterND", [onto, _indices(r, indices), name], reduction="add")
    r.give_moved(out, updates, name, _plain(r, out))


def _read_sparse_to_dense(r: Reader, op: Operation) -> None:
    indices, _, values, default = op.inputs
    out = op.outputs[0]
    shape = list(r.shape(out))
    r.batch_free = False
    where = r.shape(indices)
    count = 1 if not where else where[0]
    index = r.emit("Reshape", [_indices(r, indices), r.int64([count, len(shape)])])
    onto = r.emit("Expand", [r.emit("Reshape", [r.raw(default), r.int64([])]), r.int64(shape)])
    name = r.emit("Expand", [r.raw(values), r.int64([count])])
    r.give_raw(out, r.emit("ScatterND", [onto, index, name]), _plain(r, out))


def _read_segment_sum(r: Reader, op: Operation) -> None:
    ids, out = op.inputs[1], op.outputs[0]
    rows = int(r.tensor(ids).constant().max(initial=-1)) + 1 if r.is_constant(ids) else r.shape(out)[0]
    _segments(r, op, rows, "add", 0)


def _read_unsorted(r: Reader, op: Operation, reduction: str) -> None:
    dtype = _held(r, op.inputs[0])
    limits = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    start = {"add": 0, "mul": 1, "max": limits.min, "min": limits.max}[reduction]
    _segments(r, op, r.ints(op.inputs[2])[0], reduction, start)


def _segments(r: Reader, op: Operation, rows: int, reduction: str, start: float) -> None:
    """Rows of the first input brought together by their segment; those of a negative segment are dropped."""
    x, ids = op.inputs[:2]
    out = op.outputs[0]
    deep, shape = len(r.shape(ids)), r.shape(x)
    if shape[:deep] != r.shape(ids) or rows < 0:
        raise ValueError(f"segments of {list(r.shape(ids))} for {list(shape)}, {rows} rows")
    r.batch_free = False
    tail = list(shape[deep:])
    where = _indices(r, ids)
    spare = r.number(rows, "int64")
    where = r.emit("Where", [r.emit("Less", [where, r.number(0, "int64")]), spare, where])
    where = r.emit("Unsqueeze", [where, r.int64([deep])])
    onto = _zeros(r, [rows + 1, *tail], _held(r, x), start)
    name = r.emit("ScatterND", [onto, where, r.value(x, _plain(r, x))], reduction=reduction)
    name = r.emit("Slice", [name, r.int64([0]), r.int64([rows]), r.int64([0])])
    r.give_moved(out, x, name, _plain(r, out))


def _read_update_slice(r: Reader, op: Operation) -> None:
    """Writes a block into a tensor, pushed inside where it would stick out."""
    x, update, begins = op.inputs
    out = op.outputs[0]
    shape, size = r.shape(x), r.shape(update)
    if len(shape) != len(size) or any(n > d for n, d in zip(size, shape, strict=True)):
        raise ValueError(f"a block of {list(size)} for {list(shape)}")
    r.batch_free = False
    # An axis that the block fills leaves no choice; the last of those need no indices.
    deep = max((a + 1 for a in range(len(shape)) if size[a] != shape[a]), default=0)
    if deep == 0:
        r.give_moved(out, update, r.value(update, _plain(r, update)), _plain(r, out))
        return
    r.bounded(math.prod(size[:deep]) * deep)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in size[:deep]), indexing="ij"), -1)
    start = r.emit("Slice", [_indices(r, begins), r.int64([0]), r.int64([deep]), r.int64([0])])
    room = r.int64([d - n for d, n in zip(shape[:deep], size[:deep], strict=True)])
    start = r.emit("Max", [r.emit("Min", [start, room]), r.number(0, "int64")])
    index = r.emit("Add", [r.initializer(grid.astype(np.int64), "grid"), start])
    names = [r.value(x, _plain(r, x)), index, r.value(update, _plain(r, update))]
    r.give_moved(out, x, r.emit("ScatterND", names), _plain(r, out))


def _read_top_k(r: Reader, op: Operation) -> None:
    i = op.inputs[0]
    rank = len(r.shape(i))
    count = r.ints(op.inputs[1])
    r.batch_free &= rank > 1
    dtype = _held(r, i)
    name = r.value(i, layout.identity(rank))
    if dtype not in ("float32", "float64", "int32", "int64"):
        name = r.cast(name, "int32")
    name = r.emit("TopK", [name, r.int64(count)], 2, axis=rank - 1)
    values = name if dtype in ("float32", "float64", "int32", "int64") else r.cast(name, dtype)
    r.give_moved(op.outputs[0], i, values, layout.identity(rank))
    found = op.outputs[1]
    r.give_raw(found, r.cast(f"{name}:1", r.tensor(found).dtype), layout.identity(rank))


def _read_one_hot(r: Reader, op: Operation) -> None:
    """Not ONNX's OneHot, which counts negative indices from the end; here they mark nothing."""
    indices, depth, on, off = op.inputs
    out = op.outputs[0]
    rank = len(r.shape(out))
    axis = layout.normal_axis(r.options(op, "OneHotOptions").axis, rank)
    r.batch_free &= axis != 0
    count = r.ints(depth)[0]
    r.bounded(count)
    places = np.arange(count, dtype=np.int64).reshape([-1 if a == axis else 1 for a in range(rank)])
    wide = r.emit("Unsqueeze", [_indices(r, indices), r.int64([axis])])
    hit = r.emit("Equal", [wide, r.initializer(places, "places")])
    choices = [r.emit("Reshape", [r.value(i, _plain(r, i)), r.int64([])]) for i in (on, off)]
    if _held(r, on) == "bool":  # onnxruntime chooses between numbers only
        choices = [r.cast(name, "int32") for name in choices]
        r.give_raw(out, r.cast(r.emit("Where", [hit, *choices]), "bool"), layout.identity(rank))
        return
    r.give_moved(out, on, r.emit("Where", [hit, *choices]), layout.identity(rank))


def _read_reverse(r: Reader, op: Operation) -> None:
    i, out = op.inputs[0], op.outputs[0]
    perm = r.perm(i)
    axes = sorted({layout.normal_axis(a, len(perm)) for a in r.ints(op.inputs[1])})
    r.batch_free &= 0 not in axes
    stored = r.int64([perm.index(a) for a in axes])
    count = len(axes)
    name = r.value(i, perm)
    if axes:
        ends = r.int64([-(2**62)] * count)
        name = r.emit("Slice", [name, r.int64([-1] * count), ends, stored, r.int64([-1] * count)])
    r.give_moved(out, i, name, perm)


def _read_reverse_sequence(r: Reader, op: Operation) -> None:
    i, lengths = op.inputs
    out = op.outputs[0]
    o = r.options(op, "ReverseSequenceOptions")
    rank = len(r.shape(i))
    time, batch = layout.normal_axis(o.seqDim, rank), layout.normal_axis(o.batchDim, rank)
    if time == batch:
        raise ValueError(f"time and batch are both axis {time}")
    r.batch_free = False
    order = (time, batch, *(a for a in range(rank) if a not in (time, batch)))
    names = [r.value(i, order), _indices(r, lengths)]
    name = r.emit("ReverseSequence", names, time_axis=0, batch_axis=1)
    r.give_moved(out, i, name, order)


def _read_cumsum(r: Reader, op: Operation) -> None:
    i, out = op.inputs[0], op.outputs[0]
    o = r.options(op, "CumsumOptions")
    rank = len(r.shape(i))
    axis = layout.normal_axis(r.ints(op.inputs[1])[0], rank)
    r.batch_free &= axis != 0
    names = [r.real(i, layout.identity(rank)), r.number(axis, "int64")]
    name = r.emit("CumSum", names, exclusive=int(o.exclusive), reverse=int(o.reverse))
    r.give(out, name, layout.identity(rank))


def _read_where(r: Reader, op: Operation) -> None:
    """The places of what is not zero; how many there are depends on the data."""
    i, out = op.inputs[0], op.outputs[0]
    r.batch_free = False
    found = r.emit("Transpose", [r.emit("NonZero", [r.raw(i, _plain(r, i))])], perm=[1, 0])
    dtype = r.tensor(out).dtype
    r.give_raw(out, found if dtype == "int64" else r.cast(found, dtype), (0, 1))
    r.leave_open(out, ("found", len(r.shape(i))))


def _read_unique(r: Reader, op: Operation) -> None:
    i = op.inputs[0]
    values, places = op.outputs
    r.batch_free = False
    name = r.emit("Unique", [r.raw(i, _plain(r, i))], 3, sorted=0)
    r.give_raw(values, name, (0,))
    r.leave_open(values, ("unique",))
    r.give_raw(places, r.cast(f"{name}:2", r.tensor(places).dtype), (0,))


def _read_suppression(r: Reader, op: Operation) -> None:
    """NON_MAX_SUPPRESSION_V4 and V5: a fixed number of places, filled up with zeros, and how many count."""
    boxes, scores, most, overlap, least = op.inputs[:5]
    soft = op.kind.endswith("V5")
    if soft and float(r.tensor(op.inputs[5]).constant().reshape(-1)[0]) != 0:
        raise UnsupportedError("NON_MAX_SUPPRESSION_V5 with a soft sigma has no ONNX counterpart")
    count = r.ints(most)[0]
    r.bounded(count)
    r.batch_free = False
    chosen = suppressed(
        r,
        r.emit("Unsqueeze", [r.real(boxes, (0, 1)), r.int64([0])]),
        r.emit("Unsqueeze", [r.real(scores, (0,)), r.int64([0, 1])]),
        count,
        r.emit("Reshape", [r.real(overlap), r.int64([1])]),
        r.emit("Reshape", [r.real(least), r.int64([1])]),
    )
    picked = r.emit(
        "Squeeze", [r.emit("Slice", [chosen, r.int64([2]), r.int64([3]), r.int64([1])]), r.int64([1])]
    )
    found = r.emit("Shape", [picked])
    filled, inside = filled_up(r, picked, found, count)
    r.give_raw(op.outputs[0], r.cast(filled, "int32"), (0,))
    if soft:
        held = r.emit("Gather", [r.real(scores, (0,)), filled], axis=0)
        r.give_raw(op.outputs[1], r.emit("Where", [inside, held, r.number(0.0)]), (0,))
    number = r.cast(r.emit("Squeeze", [found, r.int64([0])]), "int32")
    r.give_raw(op.outputs[-1], number, ())


def suppressed(r: Reader, boxes: str, scores: str, most: int, overlap: str, least: str) -> str:
    """ONNX's NonMaxSuppression: ``(found, 3)`` int64 rows of image, class and box."""
    return r.emit("NonMaxSuppression", [boxes, scores, r.int64([most]), overlap, least])


def filled_up(r: Reader, picked: str, found: str, count: int) -> tuple[str, str]:
    """``picked`` (found,) int64 stretched to ``count`` by zeros, and which of its places were there before."""
    zeros = r.int64([0] * count)
    longer = r.emit("Concat", [picked, zeros], axis=0)
    cut = r.emit("Slice", [longer, r.int64([0]), r.int64([count]), r.int64([0])])
    return cut, r.emit("Less", [r.int64(range(count)), found])


RULES = [
    Rule(("GATHER_ND",), (), _read_gather_nd),
    Rule(("EMBEDDING_LOOKUP",), (), _read_embedding),
    Rule(("SCATTER_ND",), (), _read_scatter_nd),
    Rule(("SPARSE_TO_DENSE",), (), _read_sparse_to_dense),
    Rule(("SEGMENT_SUM",), (), _read_segment_sum),
    *(
        Rule((f"UNSORTED_SEGMENT_{kind}",), (), partial(_read_unsorted, reduction=reduction))
        for kind, reduction in (("SUM", "add"), ("PROD", "mul"), ("MAX", "max"), ("MIN", "min"))
    ),
    Rule(("DYNAMIC_UPDATE_SLICE",), (), _read_update_slice),
    Rule(("TOPK_V2",), (), _read_top_k),
    Rule(("ONE_HOT",), (), _read_one_hot),
    Rule(("REVERSE_V2",), (), _read_reverse),
    Rule(("REVERSE_SEQUENCE",), (), _read_reverse_sequence),
    Rule(("CUMSUM",), (), _read_cumsum),
    Rule(("WHERE",), (), _read_where),
    Rule(("UNIQUE",), (), _read_unique),
    Rule(("NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5"), (), _read_suppression),
]
