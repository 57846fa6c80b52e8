"""Operators that give a tensor another shape or order of axes, or bring tensors together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.ops.convolution import activation_code
from dlas.graph.formats.tflite.ops.elementwise import common_perm, order_of
from dlas.graph.formats.tflite.places import Constant
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation
from dlas.graph.formats.tflite.writer import Writer


def _read_reshape(r: Reader, op: Operation) -> None:
    """RESHAPE, SQUEEZE and EXPAND_DIMS: the file says the resulting shape itself."""
    i, out = op.inputs[0], op.outputs[0]
    source, shape = r.tensor(i), r.shape(out)
    if source.data is not None and source.quant is None:
        r.give_constant(out, source.data.reshape(shape))
        return
    if int(np.prod(source.shape)) != int(np.prod(shape)):
        raise ValueError(f"{list(source.shape)} cannot become {list(shape)}")
    name = r.flat(i)
    keeps = bool(shape) and bool(source.shape) and shape[0] == source.shape[0]
    r.batch_free &= keeps
    target = [0, *shape[1:]] if keeps and 0 not in shape else list(shape)
    if source.dtype == "complex64":  # kept as pairs, see spectrum.py
        target.append(2)
    r.give_moved(out, i, r.emit("Reshape", [name, r.int64(target)]), layout.identity(len(shape)))


def _read_transpose(r: Reader, op: Operation) -> None:
    i, out = op.inputs[0], op.outputs[0]
    perm = tuple(r.ints(op.inputs[1]))
    if sorted(perm) != list(range(len(r.shape(i)))):
        raise ValueError(f"permutation {perm} of {len(r.shape(i))} axes")
    r.batch_free &= perm[0] == 0
    held = r.perm(i)
    after = layout.after_transpose(held, perm)
    quant = r.tensor(i).quant
    if quant is None or quant.same(r.tensor(out).quant):
        r.give_raw(out, r.raw(i, held), after)
    else:
        r.give(out, r.real(i, held), after)


def _read_concat(r: Reader, op: Operation) -> None:
    out = op.outputs[0]
    rank = len(r.shape(out))
    o = r.options(op, "ConcatenationOptions")
    axis = layout.normal_axis(o.axis, rank)
    r.batch_free &= axis != 0
    if all(r.is_constant(i) for i in op.inputs) and r.tensor(out).quant is None:
        r.give_constant(out, np.concatenate([r.tensor(i).constant() for i in op.inputs], axis))
        return
    perm = common_perm(r, op.inputs, rank)
    stored = perm.index(axis)
    name = r.emit("Concat", [r.real(i, perm) for i in op.inputs], axis=stored)
    r.give(out, r.activate(name, o.fusedActivationFunction), perm)


def _read_shape(r: Reader, op: Operation) -> None:
    r.give_constant(op.outputs[0], np.array(r.shape(op.inputs[0])))


def _read_pack(r: Reader, op: Operation) -> None:
    out = op.outputs[0]
    rank = len(r.shape(out))
    axis = layout.normal_axis(r.options(op, "PackOptions").axis, rank)
    if all(r.is_constant(i) for i in op.inputs):
        r.give_constant(out, np.stack([r.tensor(i).constant() for i in op.inputs], axis))
        return
    r.batch_free &= axis != 0
    plain = layout.identity(rank - 1)
    parts = [r.emit("Unsqueeze", [r.real(i, plain), r.int64([axis])]) for i in op.inputs]
    r.give(out, r.emit("Concat", parts, axis=axis), layout.identity(rank))


def _read_gather(r: Reader, op: Operation) -> None:
    x, indices = op.inputs
    out = op.outputs[0]
    o = r.options(op, "GatherOptions")
    rank = len(r.shape(x))
    axis = layout.normal_axis(o.axis, rank)
    shared = o.batchDims + (len(r.shape(indices)) if o.batchDims < 0 else 0)
    if not 0 <= shared <= min(axis, len(r.shape(indices))):
        raise ValueError(f"{o.batchDims} batch dimensions for axis {axis}")
    known = r.is_constant(x) and r.is_constant(indices) and r.tensor(x).quant is None
    if known and not shared:
        r.give_constant(out, np.take(r.tensor(x).constant(), r.tensor(indices).constant(), axis))
        return
    r.batch_free = False
    name, index = (r.value(i, layout.identity(len(r.shape(i)))) for i in (x, indices))
    if not shared:
        found = r.emit("Gather", [name, index], axis=axis)
    else:  # the axis moves up to the batch dimensions; what stood between follows the indices and moves back
        between = list(range(shared, axis))
        name = r.transposed(name, [*range(shared), axis, *between, *range(axis + 1, rank)])
        index = r.emit("Unsqueeze", [r.cast(index, "int64"), r.int64([len(r.shape(indices))])])
        found = r.emit("GatherND", [name, index], batch_dims=shared)
        deep = len(r.shape(indices))
        moved = list(range(deep, deep + len(between)))
        rest = range(deep + len(between), deep + rank - shared - 1)
        found = r.transposed(found, [*range(shared), *moved, *range(shared, deep), *rest])
    r.give_moved(out, x, found, layout.identity(len(r.shape(out))))


def _read_blocks(r: Reader, op: Operation, kind: str) -> None:
    block = r.options(
        op, "SpaceToDepthOptions" if kind == "SpaceToDepth" else "DepthToSpaceOptions"
    ).blockSize
    perm = layout.NHWC_TO_NCHW
    # DepthToSpace: the default mode DCR is tflite's order too.
    r.give(op.outputs[0], r.emit(kind, [r.real(op.inputs[0], perm)], blocksize=block), perm)


def _read_resize(r: Reader, op: Operation, mode: str) -> None:
    linear = mode == "linear"
    o = r.options(op, "ResizeBilinearOptions" if linear else "ResizeNearestNeighborOptions")
    place = "align_corners" if o.alignCorners else "half_pixel" if o.halfPixelCenters else "asymmetric"
    perm = layout.NHWC_TO_NCHW
    size = r.ints(op.inputs[1])
    before = r.shape(op.inputs[0])
    if len(size) != 2 or min(size) < 1 or len(before) != 4 or min(before) < 1:
        raise ValueError(f"{list(before)} to {size}")
    whole = all(new % old == 0 for new, old in zip(size, before[1:3], strict=True))
    if not linear and (o.alignCorners or not whole):
        _pick_nearest(r, op, size, place)
        return
    if not linear:
        place = "asymmetric"  # by whole factors, half pixels come to the same
    scales = [_scale(new, old) for new, old in zip(size, before[1:3], strict=True)]
    inputs = [r.real(op.inputs[0], perm), "", r.initializer(np.array([1, 1, *scales], np.float32), "scales")]
    if place == "align_corners":
        inputs = [inputs[0], "", "", r.int64([before[0], before[3], *size])]
        r.batch_free = False
    common = {"mode": mode, "coordinate_transformation_mode": place}
    name = r.emit("Resize", inputs, attributes=common if linear else {**common, "nearest_mode": "floor"})
    r.give(op.outputs[0], name, perm)


def _scale(new: int, old: int) -> np.float32:
    """``new / old``, not rounded down so far that ``old`` times it falls short of ``new``."""
    scale = np.float32(new / old)
    return scale if float(scale) * old >= new else np.nextafter(scale, np.float32(np.inf))


def _pick_nearest(r: Reader, op: Operation, size: Sequence[int], place: str) -> None:
    """Nearest neighbours by index, in the kernels' own float32 arithmetic: at a tie every rounding counts."""
    i = op.inputs[0]
    perm = layout.NHWC_TO_NCHW
    name = r.value(i, perm)
    for axis, (old, new) in enumerate(zip(r.shape(i)[1:3], size, strict=True), start=2):
        r.bounded(new)
        corners = place == "align_corners" and new > 1
        scale = np.float32((old - 1) / (new - 1) if corners else old / new)
        scaled = (np.arange(new, dtype=np.float32) + np.float32(0.5 if place == "half_pixel" else 0)) * scale
        index = np.floor(scaled + np.float32(0.5)) if place == "align_corners" else np.floor(scaled)
        picked = np.clip(index.astype(np.int64), 0, old - 1)
        if not np.array_equal(picked, np.arange(old)):
            name = r.emit("Gather", [name, r.int64(picked)], axis=axis)
    r.give_moved(op.outputs[0], i, name, perm)


def _read_broadcast(r: Reader, op: Operation) -> None:
    i, out = op.inputs[0], op.outputs[0]
    r.batch_free = False
    name = r.value(i, layout.identity(len(r.shape(i))))
    shape = r.shape(out)
    r.give_moved(out, i, r.emit("Expand", [name, r.int64(shape)]), layout.identity(len(shape)))


# Writing


def _write_reshape(w: Writer, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: shape inference says the resulting shape."""
    value, out = w.input(node, 0), node.outputs[0]
    constant = w.constant(value)
    if constant is not None and (constant.quant is None or constant.quant.axis is None):
        w.keep(out, Constant(constant.array.reshape(w.shape(out)), constant.quant))
        return
    w.bind(out, w.reshape(w.flat(value), w.shape(out)), layout.identity(len(w.shape(out))))


def _write_transpose(w: Writer, node: ir.Node) -> None:
    value, out = w.input(node, 0), node.outputs[0]
    rank = len(w.shape(value))
    perm = tuple(w.attribute(node, "perm", list(range(rank))[::-1]))
    constant = w.constant(value)
    if constant is not None:
        quant = constant.quant and constant.quant.permuted(perm)
        w.keep(out, Constant(constant.array.transpose(perm), quant))
        return
    w.bind(out, w.place(value), layout.after_transpose(w.perm(value), perm))


def _write_concat(w: Writer, node: ir.Node) -> None:
    values, out = [v for v in node.inputs if v is not None], node.outputs[0]
    rank = len(w.shape(out))
    axis = layout.normal_axis(w.attribute(node, "axis"), rank)
    perm = order_of(w, values, rank)
    quants = [w.quant(v) for v in values]
    first = quants[0]
    table = w.file.options(
        "ConcatenationOptions", axis=perm.index(axis), fusedActivationFunction=activation_code(w, "NONE")
    )
    shape = layout.permute(w.shape(out), perm)
    site = w.site(node, values)
    if first is not None and all(
        first.same(q) for q in quants
    ):  # exact: the integers are only brought together
        tensors = [w.place(v, perm) for v in values]
        w.bind(out, w.add("CONCATENATION", tensors, shape, like=tensors[0], options=table), perm)
        return
    tensors = [w.argument(site, v, perm) for v in values]
    if site.quant is not None:  # the kernel demands one quantisation
        tensors = [
            t if site.quant.same(w.file.cells[t].quant) else w.requantize(t, site.quant, site.dtype)
            for t in tensors
        ]
    made = w.add("CONCATENATION", tensors, shape, dtype=site.dtype, quant=site.quant, options=table)
    w.done(site, made, perm)


def _write_gather(w: Writer, node: ir.Node) -> None:
    value, indices, out = w.input(node, 0), w.input(node, 1), node.outputs[0]
    axis = layout.normal_axis(w.attribute(node, "axis", 0), len(w.shape(value)))
    found = w.constant(indices)
    if found is not None:
        size = w.shape(value)[axis]
        picked = np.where(found.array < 0, found.array + size, found.array).astype(np.int32)
        if picked.ndim < 2 and picked.size and _is_run(picked.reshape(-1)) and w.constant(value) is None:
            _write_run(w, value, out, axis, picked)
            return
        index = w.file.constant(picked)
    else:
        index = w.place(indices, layout.identity(len(w.shape(indices))))
    tensor = w.place(value, layout.identity(len(w.shape(value))))
    made = w.add(
        "GATHER",
        [tensor, index],
        w.shape(out),
        like=tensor,
        options=w.file.options("GatherOptions", axis=axis),
    )
    w.bind(out, made, layout.identity(len(w.shape(out))))


def _is_run(picked: np.ndarray) -> bool:
    return bool((np.diff(picked) == 1).all())


def _write_run(w: Writer, value: ir.Value, out: ir.Value, axis: int, picked: np.ndarray) -> None:
    """Neighbours along an axis (or a single one of them) are a SLICE, which more hardware can do than GATHER."""
    perm = w.perm(value)
    begin, size = [0] * len(perm), list(layout.permute(w.shape(value), perm))
    begin[perm.index(axis)], size[perm.index(axis)] = int(picked.reshape(-1)[0]), picked.size
    part = w.cut(w.place(value), begin, size)
    if picked.ndim == 0:
        left = [a for a in perm if a != axis]
        part = w.reshape(part, [n for n, a in zip(size, perm, strict=True) if a != axis])
        perm = tuple(a - (a > axis) for a in left)
    w.bind(out, part, perm)


def _write_blocks(w: Writer, node: ir.Node, kind: str, options: str) -> None:
    value, out = w.input(node, 0), node.outputs[0]
    tensor = w.place(value, layout.NCHW_TO_NHWC)
    block = int(w.attribute(node, "blocksize"))
    if w.attribute(node, "mode", "DCR") == "CRD":
        tensor = _to_depth_first(w, tensor, block)
    shape = layout.permute(w.shape(out), layout.NCHW_TO_NHWC)
    made = w.add(kind, [tensor], shape, like=tensor, options=w.file.options(options, blockSize=block))
    w.bind(out, made, layout.NCHW_TO_NHWC)


def _to_depth_first(w: Writer, tensor: int, block: int) -> int:
    """Channels ordered (C, block, block), as PyTorch's pixel shuffle has them, to (block, block, C)."""
    channels = w.file.cells[tensor].shape[-1]
    order = np.arange(channels, dtype=np.int32).reshape(-1, block * block).T.reshape(-1)
    return w.add("GATHER", [tensor, w.file.constant(order)], w.file.cells[tensor].shape, like=tensor,
                 options=w.file.options("GatherOptions", axis=3))  # fmt: skip


def _write_resize(w: Writer, node: ir.Node) -> None:
    value, out = w.input(node, 0), node.outputs[0]
    if len(w.shape(value)) != 4 or w.shape(value)[:2] != w.shape(out)[:2]:
        raise UnsupportedError(f"Resize {node.name!r}: height and width of (N, C, H, W) are written")
    mode = w.attribute(node, "mode", "nearest")
    place = w.attribute(node, "coordinate_transformation_mode", "half_pixel")
    rounding = w.attribute(node, "nearest_mode", "round_prefer_floor")
    grown = all(o % i == 0 for i, o in zip(w.shape(value)[2:], w.shape(out)[2:], strict=True))
    half = place in ("half_pixel", "pytorch_half_pixel")
    fits = mode == "linear" and (half or place in ("align_corners", "asymmetric"))
    if mode == "nearest":
        # Enlarging by whole factors, all of these spellings mean "repeat each pixel".
        fits = (place == "asymmetric" and rounding == "floor") or (
            grown and (half or (place == "asymmetric" and rounding == "floor"))
        ) or (half and rounding == "round_prefer_ceil")  # fmt: skip
    if not fits or w.attribute(node, "antialias", 0):
        raise UnsupportedError(
            f"Resize {node.name!r}: {mode} with {place} and {rounding} has no tflite counterpart"
        )
    single = any(o == 1 != i for i, o in zip(w.shape(value)[2:], w.shape(out)[2:], strict=True))
    if place == "pytorch_half_pixel" and single:
        raise UnsupportedError(
            f"Resize {node.name!r}: pytorch_half_pixel takes the first pixel for a length of 1, tflite the middle"
        )
    kind, options = ("RESIZE_BILINEAR", "ResizeBilinearOptions")
    if mode == "nearest":
        kind, options = ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions")
        half = half and not grown
    shape = layout.permute(w.shape(out), layout.NCHW_TO_NHWC)
    table = w.file.options(options, alignCorners=place == "align_corners", halfPixelCenters=half)
    site = w.site(node, [value], exact=mode == "nearest")
    tensor = w.argument(site, value, layout.NCHW_TO_NHWC)
    made = w.add(kind, [tensor, w.ints(shape[1:3])], shape, like=tensor, options=table)
    w.done(site, w.on_grid(site, made), layout.NCHW_TO_NHWC)


def _write_expand(w: Writer, node: ir.Node) -> None:
    value, out = w.input(node, 0), node.outputs[0]
    tensor = w.place(value, layout.identity(len(w.shape(value))))
    shape = w.shape(out)
    made = w.add(
        "BROADCAST_TO",
        [tensor, w.ints(shape)],
        shape,
        like=tensor,
        options=w.file.options("BroadcastToOptions"),
    )
    w.bind(out, made, layout.identity(len(shape)))


RULES = [
    Rule(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), ("Reshape", "Flatten", "Squeeze", "Unsqueeze"),
         _read_reshape, _write_reshape),
    Rule(("TRANSPOSE",), ("Transpose",), _read_transpose, _write_transpose),
    Rule(("CONCATENATION",), ("Concat",), _read_concat, _write_concat),
    Rule(("GATHER",), ("Gather",), _read_gather, _write_gather),
    Rule(("SHAPE",), (), _read_shape),
    Rule(("PACK",), (), _read_pack),
    Rule(("SPACE_TO_DEPTH",), ("SpaceToDepth",), partial(_read_blocks, kind="SpaceToDepth"),
         partial(_write_blocks, kind="SPACE_TO_DEPTH", options="SpaceToDepthOptions")),
    Rule(("DEPTH_TO_SPACE",), ("DepthToSpace",), partial(_read_blocks, kind="DepthToSpace"),
         partial(_write_blocks, kind="DEPTH_TO_SPACE", options="DepthToSpaceOptions")),
    Rule(("RESIZE_BILINEAR",), ("Resize",), partial(_read_resize, mode="linear"), _write_resize),
    Rule(("RESIZE_NEAREST_NEIGHBOR",), (), partial(_read_resize, mode="nearest")),
    Rule(("BROADCAST_TO",), ("Expand",), _read_broadcast, _write_expand),
]  # fmt: skip
