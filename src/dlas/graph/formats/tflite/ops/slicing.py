"""Operators that cut a tensor, put something around it, or fold an axis."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import onnx_ir as ir

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation
from dlas.graph.formats.tflite.writer import Writer

REDUCTIONS = [
    ("MEAN", "ReduceMean", True),
    ("SUM", "ReduceSum", False),  # LiteRT 2.3 gives wrong sums of integers
    ("REDUCE_MAX", "ReduceMax", True),
    ("REDUCE_MIN", "ReduceMin", True),
    ("REDUCE_PROD", "ReduceProd", False),
]
TRUTHS = [("REDUCE_ANY", "ReduceMax"), ("REDUCE_ALL", "ReduceMin")]


def _read_split(r: Reader, op: Operation) -> None:
    if op.kind == "SPLIT":
        axis_at, i = op.inputs
    else:
        i, _, axis_at = op.inputs
    rank = len(r.shape(i))
    axis = layout.normal_axis(r.ints(axis_at)[0], rank)
    r.batch_free &= axis != 0
    perm = r.perm(i)
    sizes = r.int64([r.shape(out)[axis] for out in op.outputs])
    name = r.emit("Split", [r.value(i, perm), sizes], len(op.outputs), axis=perm.index(axis))
    for n, out in enumerate(op.outputs):
        r.give_moved(out, i, name if n == 0 else f"{name}:{n}", perm)


def _read_unpack(r: Reader, op: Operation) -> None:
    i = op.inputs[0]
    rank = len(r.shape(i))
    axis = layout.normal_axis(r.options(op, "UnpackOptions").axis, rank)
    r.batch_free &= axis != 0
    name = r.emit(
        "Split",
        [r.value(i, layout.identity(rank)), r.int64([1] * len(op.outputs))],
        len(op.outputs),
        axis=axis,
    )
    for n, out in enumerate(op.outputs):
        part = r.emit("Squeeze", [name if n == 0 else f"{name}:{n}", r.int64([axis])])
        r.give_moved(out, i, part, layout.identity(rank - 1))


def _read_reduce(r: Reader, op: Operation, kind: str) -> None:
    i, out = op.inputs[0], op.outputs[0]
    rank = len(r.shape(i))
    axes = sorted({layout.normal_axis(a, rank) for a in r.ints(op.inputs[1])})
    keep = bool(r.options(op, "ReducerOptions").keepDims)
    r.batch_free &= 0 not in axes
    if not axes:  # ONNX would reduce all of them
        r.give(out, r.real(i, r.perm(i)), r.perm(i))
        return
    if kind == "ReduceMean" and rank == 4 and axes == [1, 2] and not _whole(r, i):
        perm = layout.NHWC_TO_NCHW
        name = r.stored(out, r.emit("GlobalAveragePool", [r.real(i, perm)]), perm)
        if not keep:
            name, perm = r.emit("Squeeze", [name, r.int64([2, 3])]), (0, 1)
        r.give_raw(out, name, perm)
        return
    perm = r.perm(i) if keep else layout.identity(rank)
    name = r.real(i, perm)
    if op.kind in ("REDUCE_ANY", "REDUCE_ALL"):
        name = r.cast(name, "int32")
    stored = r.int64(sorted(perm.index(a) for a in axes))
    if kind == "ReduceMean" and _whole(r, i):  # kernels divide the sum, rounding towards zero
        total = r.emit("ReduceSum", [r.cast(name, "int64"), stored], keepdims=int(keep))
        count = math.prod(r.shape(i)[a] for a in axes)
        name = r.cast(r.emit("Div", [total, r.number(count, "int64")]), r.tensor(out).dtype)
    else:
        name = r.emit(kind, [name, stored], keepdims=int(keep))
    if op.kind in ("REDUCE_ANY", "REDUCE_ALL"):
        name = r.cast(name, "bool")
    r.give(out, name, perm if keep else layout.identity(len(r.shape(out))))


def _whole(r: Reader, i: int) -> bool:
    return np.dtype(r.tensor(i).dtype).kind in "iu" and not r.is_on_grid(i)


def _read_arg(r: Reader, op: Operation, kind: str) -> None:
    i, out = op.inputs[0], op.outputs[0]
    rank = len(r.shape(i))
    axis = layout.normal_axis(r.ints(op.inputs[1])[0], rank)
    r.batch_free &= axis != 0
    name = r.emit(kind, [r.real(i, layout.identity(rank))], axis=axis, keepdims=0)
    if r.tensor(out).dtype != "int64":
        name = r.emit("Cast", [name], to=r.element_type(r.tensor(out).dtype))
    r.give_raw(out, name, layout.identity(rank - 1))


# Writing


def _write_pad(w: Writer, node: ir.Node) -> None:
    value, out = w.input(node, 0), node.outputs[0]
    mode = w.attribute(node, "mode", "constant")
    rank = len(w.shape(value))
    pads = [int(p) for p in w.parameter(node, "pads", 1) or []]
    axes = [layout.normal_axis(int(a), rank) for a in (w.parameter(node, "axes", 3) or range(rank))]
    pairs = np.zeros((rank, 2), np.int64)
    for n, axis in enumerate(axes):
        pairs[axis] = pads[n], pads[len(axes) + n]
    fill = (w.parameter(node, "value", 2) or [0.0])[0]
    perm = w.perm(value)
    tensor = w.place(value)
    kept = np.maximum(pairs, 0)
    if (pairs < 0).any():  # ONNX cuts where pads are negative
        shape = [n + min(b, 0) + min(a, 0) for n, (b, a) in zip(w.shape(value), pairs.tolist(), strict=True)]
        begins = [-min(int(b), 0) for b in pairs[:, 0]]
        tensor = w.cut(tensor, layout.permute(begins, perm), layout.permute(shape, perm))
    amounts = w.ints(kept[list(perm)])
    shape = layout.permute(w.shape(out), perm)
    cell = w.file.cells[tensor]
    if mode == "reflect":
        made = w.add(
            "MIRROR_PAD",
            [tensor, amounts],
            shape,
            like=tensor,
            options=w.file.options("MirrorPadOptions", mode=0),
        )
    elif mode != "constant":
        raise UnsupportedError(f"Pad {node.name!r} in mode {mode!r} has no tflite counterpart")
    elif _is_zero(w, node, fill, tensor):
        made = w.add("PAD", [tensor, amounts], shape, like=tensor, options=w.file.options("PadOptions"))
        pairs_stored = kept[list(perm)].tolist()
        w.zero_padded[made] = (tensor, tuple((int(b), int(a)) for b, a in pairs_stored))
    else:
        number = np.array([fill], np.float64)
        if cell.quant is not None and value.dtype == ir.DataType.FLOAT:
            level = cell.quant.store(number, cell.dtype)
            exact = abs(float(cell.quant.real(level)[0]) - fill) <= 1e-3 * float(cell.quant.scale[0])
            tensor = tensor if exact else w.to_real(tensor)
            number = level if exact else number
        cell = w.file.cells[tensor]
        number = w.file.constant(number.astype(cell.dtype), cell.quant)
        made = w.add(
            "PADV2", [tensor, amounts, number], shape, like=tensor, options=w.file.options("PadV2Options")
        )
    w.bind(out, made, perm)


def _is_zero(w: Writer, node: ir.Node, fill: float, tensor: int) -> bool:
    cell = w.file.cells[tensor]
    integer = node.outputs[0].dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    if cell.quant is not None and integer:  # the fill is a stored integer: the zero point means 0.0
        return fill == int(cell.quant.zero_point[0]) or (
            w.optional(node, 2) is None and not cell.quant.zero_point[0]
        )
    return fill == 0


def _write_slice(w: Writer, node: ir.Node) -> None:
    value, out = w.input(node, 0), node.outputs[0]
    shape = w.shape(value)
    starts, ends = w.parameter(node, "starts", 1) or [], w.parameter(node, "ends", 2) or []
    axes = [
        layout.normal_axis(int(a), len(shape)) for a in (w.parameter(node, "axes", 3) or range(len(starts)))
    ]
    steps = w.parameter(node, "steps", 4) or [1] * len(starts)
    begin, stride = [0] * len(shape), [1] * len(shape)
    for axis, start, step in zip(axes, starts, steps, strict=True):
        if step < 0:
            raise UnsupportedError(f"Slice {node.name!r} runs backwards (step {step})")
        begin[axis] = min(max(int(start) + (shape[axis] if start < 0 else 0), 0), shape[axis])
        stride[axis] = int(step)
    if len(ends) != len(starts):
        raise ValueError(f"{len(starts)} starts and {len(ends)} ends")
    perm = w.perm(value)
    size = layout.permute(w.shape(out), perm)
    tensor = w.cut(w.place(value), layout.permute(begin, perm), size, layout.permute(stride, perm))
    w.bind(out, tensor, perm)


def _write_split(w: Writer, node: ir.Node) -> None:
    value = w.input(node, 0)
    axis = layout.normal_axis(w.attribute(node, "axis", 0), len(w.shape(value)))
    perm, start = w.perm(value), 0
    for out in node.outputs:
        begin = [0] * len(perm)
        begin[perm.index(axis)] = start
        w.bind(out, w.cut(w.place(value), begin, layout.permute(w.shape(out), perm)), perm)
        start += w.shape(out)[axis]


def _write_reduce(w: Writer, node: ir.Node, kind: str, integer: bool) -> None:
    value = w.input(node, 0)
    rank = len(w.shape(value))
    stated = w.parameter(node, "axes", 1)
    if not stated and w.attribute(node, "noop_with_empty_axes", 0):
        w.bind(node.outputs[0], w.place(value), w.perm(value))
        return
    axes = sorted(layout.normal_axis(int(a), rank) for a in (stated or range(rank)))
    keep = bool(w.attribute(node, "keepdims", 1))
    site = w.site(node, [value])
    if site.quant is not None and not integer:
        site = w.as_float(site)
    perm = w.perm(value)
    x = w.argument(site, value, perm)
    left = [a for a in perm if a not in axes]
    if keep:
        order = perm
    else:
        names = sorted(left)
        order = tuple(names.index(a) for a in left)
    shape = layout.permute(w.shape(site.result), order)
    table = w.file.options("ReducerOptions", keepDims=keep)
    stored = sorted(perm.index(a) for a in axes)
    # The kernels of the extremes give what they read, on its grid.
    quant = w.file.cells[x].quant if kind in ("REDUCE_MAX", "REDUCE_MIN") else site.quant
    made = w.add(kind, [x, w.ints(stored)], shape, dtype=site.dtype, quant=quant, options=table)
    w.done(site, w.on_grid(site, made), order)


def _write_arg(w: Writer, node: ir.Node, kind: str, options: str) -> None:
    value, out = w.input(node, 0), node.outputs[0]
    if w.attribute(node, "select_last_index", 0):
        raise UnsupportedError(
            f"{node.op_type} {node.name!r} picks the last of equal values (select_last_index); tflite the first"
        )
    rank = len(w.shape(value))
    axis = layout.normal_axis(w.attribute(node, "axis", 0), rank)
    x = w.place(
        value, layout.identity(rank)
    )  # the place of the largest integer is that of the largest number
    shape = [d for a, d in enumerate(w.shape(value)) if a != axis]
    table = w.file.options(options, outputType=w.code("TensorType", "INT32"))
    made = w.add(kind, [x, w.ints([axis])], shape, dtype="int32", options=table)
    if w.attribute(node, "keepdims", 1):
        made = w.reshape(made, w.shape(out))
    w.bind(out, made, layout.identity(len(w.shape(out))))


RULES = [
    Rule((), ("Pad",), None, _write_pad),
    Rule((), ("Slice",), None, _write_slice),
    Rule(("SPLIT", "SPLIT_V"), ("Split",), _read_split, _write_split),
    Rule(("UNPACK",), (), _read_unpack),
    *(
        Rule((kind,), (onnx,), partial(_read_reduce, kind=onnx), partial(_write_reduce, kind=kind, integer=integer))
        for kind, onnx, integer in REDUCTIONS
    ),
    *(Rule((kind,), (), partial(_read_reduce, kind=onnx)) for kind, onnx in TRUTHS),
    Rule(("ARG_MAX",), ("ArgMax",), partial(_read_arg, kind="ArgMax"),
         partial(_write_arg, kind="ARG_MAX", options="ArgMaxOptions")),
    Rule(("ARG_MIN",), ("ArgMin",), partial(_read_arg, kind="ArgMin"),
         partial(_write_arg, kind="ARG_MIN", options="ArgMinOptions")),
]  # fmt: skip
