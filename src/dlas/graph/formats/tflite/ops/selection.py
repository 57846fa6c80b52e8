"""Writing of operators that pick, count or repeat elements, where a tflite builtin does the same."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.ops.elementwise import write_binary
from dlas.graph.formats.tflite.places import Constant
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.writer import Writer


def _plain(w: Writer, value: ir.Value) -> layout.Perm:
    return layout.identity(len(w.shape(value)))


def _number(w: Writer, node: ir.Node, index: int) -> float:
    return float(w.need(w.input(node, index)).reshape(-1)[0])


def _write_topk(w: Writer, node: ir.Node) -> None:
    value, (values, indices) = w.input(node, 0), node.outputs
    rank = len(w.shape(value))
    axis = layout.normal_axis(w.attribute(node, "axis", -1), rank)
    order = (*(a for a in range(rank) if a != axis), axis)
    largest = bool(w.attribute(node, "largest", 1))
    count = int(_number(w, node, 1))
    x = w.place(value, order) if largest else w.real(value, order)
    shape = layout.permute(w.shape(values), order)
    if not largest:  # the least are the largest of the negatives
        x = _negated(w, x)
    cell = w.file.cells[x]
    found = [w.file.tensor(shape, cell.dtype, cell.quant), w.file.tensor(shape, "int32")]
    w.file.add(
        "TOPK_V2", [x, w.file.constant(np.array(count, np.int32))], found, w.file.options("TopKV2Options")
    )
    w.bind(values, found[0] if largest else _negated(w, found[0]), order)
    w.bind(indices, found[1], order)


def _negated(w: Writer, tensor: int) -> int:
    cell = w.file.cells[tensor]
    return w.add("NEG", [tensor], cell.shape, dtype=cell.dtype, options=w.file.options("NegOptions"))


def _write_gather_nd(w: Writer, node: ir.Node) -> None:
    if w.attribute(node, "batch_dims", 0):
        raise UnsupportedError(f"GatherND {node.name!r} with batch dimensions cannot be written")
    value, picked, out = w.input(node, 0), w.input(node, 1), node.outputs[0]
    tensor, index = w.place(value, _plain(w, value)), w.place(picked, _plain(w, picked))
    found = w.constant(picked)
    if found is not None:
        limits = np.array(w.shape(value)[: found.array.shape[-1]])
        index = w.ints(np.where(found.array < 0, found.array + limits, found.array))
    table = w.file.options("GatherNdOptions")
    w.bind(out, w.add("GATHER_ND", [tensor, index], w.shape(out), like=tensor, options=table), _plain(w, out))


def _write_scatter_nd(w: Writer, node: ir.Node) -> None:
    value, picked, updates, out = *(w.input(node, i) for i in range(3)), node.outputs[0]
    index = w.need(picked)
    shape = w.shape(value)
    index = np.where(index < 0, index + np.array(shape[: index.shape[-1]]), index).astype(np.int32)
    taken = index.reshape(-1, index.shape[-1])
    if w.attribute(node, "reduction", "none") != "none" or len(np.unique(taken, axis=0)) != len(taken):
        raise UnsupportedError(
            f"ScatterND {node.name!r} adds up or writes a place twice: it cannot be written"
        )
    mask = np.zeros(shape, np.bool_)
    mask[tuple(taken.T)] = True
    data, new = w.real(value, _plain(w, value)), w.real(updates, _plain(w, updates))
    dtype = w.file.cells[data].dtype
    spread = w.add("SCATTER_ND", [w.ints(index), new, w.ints(shape)], shape, dtype=dtype,
                   options=w.file.options("ScatterNdOptions"))  # fmt: skip
    inputs = [w.file.constant(mask), spread, data]
    made = w.add("SELECT_V2", inputs, shape, dtype=dtype, options=w.file.options("SelectV2Options"))
    w.bind(out, made, _plain(w, out))


def _write_cumsum(w: Writer, node: ir.Node) -> None:
    value, out = w.input(node, 0), node.outputs[0]
    perm = w.perm(value)
    axis = layout.normal_axis(int(_number(w, node, 1)), len(perm))
    x = w.real(value, perm)
    table = w.file.options(
        "CumsumOptions",
        exclusive=bool(w.attribute(node, "exclusive", 0)),
        reverse=bool(w.attribute(node, "reverse", 0)),
    )
    cell = w.file.cells[x]
    index = w.file.constant(np.array(perm.index(axis), np.int32))
    w.bind(out, w.add("CUMSUM", [x, index], cell.shape, dtype=cell.dtype, options=table), perm)


def _write_tile(w: Writer, node: ir.Node) -> None:
    value, out = w.input(node, 0), node.outputs[0]
    perm = w.perm(value)
    times = [int(n) for n in w.need(w.input(node, 1)).reshape(-1)]
    x = w.place(value, perm)
    shape = layout.permute(w.shape(out), perm)
    table = w.file.options("TileOptions")
    w.bind(out, w.add("TILE", [x, w.ints(layout.permute(times, perm))], shape, like=x, options=table), perm)


def _write_reverse_sequence(w: Writer, node: ir.Node) -> None:
    value, lengths, out = w.input(node, 0), w.input(node, 1), node.outputs[0]
    perm = w.perm(value)
    batch, time = (int(w.attribute(node, name, d)) for name, d in (("batch_axis", 1), ("time_axis", 0)))
    x = w.place(value, perm)
    table = w.file.options("ReverseSequenceOptions", seqDim=perm.index(time), batchDim=perm.index(batch))
    made = w.add("REVERSE_SEQUENCE", [x, w.place(lengths)], w.file.cells[x].shape, like=x, options=table)
    w.bind(out, made, perm)


def _write_one_hot(w: Writer, node: ir.Node) -> None:
    picked, out = w.input(node, 0), node.outputs[0]
    depth = int(_number(w, node, 1))
    values = w.need(w.input(node, 2)).reshape(-1)
    rank = len(w.shape(out))
    axis = layout.normal_axis(int(w.attribute(node, "axis", -1)), rank)
    found = w.constant(picked)
    if found is not None:
        index = w.ints(np.where(found.array < 0, found.array + depth, found.array))
    else:
        index = _from_start(w, node, w.place(picked, _plain(w, picked)), depth)
    dtype = w.wide(out)
    off, on = (w.file.constant(np.array(v, dtype)) for v in values)
    inputs = [index, w.file.constant(np.array(depth, np.int32)), on, off]
    made = w.add(
        "ONE_HOT", inputs, w.shape(out), dtype=dtype, options=w.file.options("OneHotOptions", axis=axis)
    )
    w.bind(out, made, layout.identity(rank))


def _from_start(w: Writer, node: ir.Node, index: int, depth: int) -> int:
    """Computed indices, those that count from the end made to count from the start."""
    shape, dtype = w.file.cells[index].shape, w.file.cells[index].dtype
    if dtype != "int32":
        raise UnsupportedError(
            f"{node.op_type} {node.name!r} with computed indices of {dtype} cannot be written"
        )
    zero, end = (w.file.constant(np.array(n, np.int32)) for n in (0, depth))
    below = w.add("LESS", [index, zero], shape, dtype="bool", options=w.file.options("LessOptions"))
    turned = w.add("ADD", [index, end], shape, dtype=dtype, options=w.file.options("AddOptions"))
    inputs, table = [below, turned, index], w.file.options("SelectV2Options")
    return w.add("SELECT_V2", inputs, shape, dtype=dtype, options=table)


def _write_atan(w: Writer, node: ir.Node) -> None:
    value, out = w.input(node, 0), node.outputs[0]
    x = w.real(value)
    shape = w.file.cells[x].shape
    ones = w.numbers(np.ones(shape))  # the kernel does not broadcast
    w.bind(out, w.add("ATAN2", [x, ones], shape, options=w.file.options("ATan2Options")), w.perm(value))


def _write_known(w: Writer, node: ir.Node, what: str) -> None:
    """Shape and Size: every tensor of the file has fixed sizes."""
    shape = np.array(w.shape(w.input(node, 0)), np.int64)
    if what == "Size":
        w.keep(node.outputs[0], Constant(np.array(shape.prod())))
        return
    rank = len(shape)
    start, end = (int(w.attribute(node, name, d)) for name, d in (("start", 0), ("end", rank)))
    w.keep(node.outputs[0], Constant(shape[slice(start, end)]))


def _write_mod(w: Writer, node: ir.Node) -> None:
    if w.attribute(node, "fmod", 0) or w.wide(node.outputs[0]) == "float32":
        raise UnsupportedError(
            f"Mod {node.name!r}: the remainder of integers, with the divisor's sign, is written"
        )
    write_binary(w, node, "FLOOR_MOD", "FloorModOptions", False)


RULES = [
    Rule((), ("Mod",), None, _write_mod),
    Rule(
        (), ("Xor",), None, partial(write_binary, kind="NOT_EQUAL", options="NotEqualOptions", integer=False)
    ),
    Rule((), ("TopK",), None, _write_topk),
    Rule((), ("GatherND",), None, _write_gather_nd),
    Rule((), ("ScatterND",), None, _write_scatter_nd),
    Rule((), ("CumSum",), None, _write_cumsum),
    Rule((), ("Tile",), None, _write_tile),
    Rule((), ("ReverseSequence",), None, _write_reverse_sequence),
    Rule((), ("OneHot",), None, _write_one_hot),
    Rule((), ("Atan",), None, _write_atan),
    Rule((), ("Shape",), None, partial(_write_known, what="Shape")),
    Rule((), ("Size",), None, partial(_write_known, what="Size")),
]
