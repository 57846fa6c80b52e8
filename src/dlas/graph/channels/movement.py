"""Channel rules of operators that move data: reshape, transpose, concatenate, slice, split, pad, resize."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from dlas.graph.channels.labels import (
    AxisIds,
    Ids,
    Keep,
    Labels,
    Refusal,
    Rule,
    attribute,
    constant_of,
    label_of,
    replace_operand,
    sizes,
)

_DYNAMIC = 2_147_483_647  # a prime stands for the one dynamic size, so that products still factor uniquely


def transpose(labels: Labels, node: ir.Node) -> None:
    """Transpose: ids follow the permutation."""
    data = node.inputs[0]
    assert data is not None
    rank = len(sizes(data))
    found = node.attributes.get("perm")
    order = list(found.as_ints()) if found is not None else list(range(rank))[::-1]
    ids = labels.of(data)
    labels.put(node.outputs[0], {i: ids[source] for i, source in enumerate(order) if source in ids})
    if labels.stored(data) is not None:
        labels.derive(node.outputs[0], data)


def reshape(labels: Labels, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: axes merge (each id repeats) or split (ids unite within a block)."""
    data, out = node.inputs[0], node.outputs[0]
    assert data is not None
    source, target = sizes(data), sizes(out)
    ids = labels.of(data)
    if not ids:
        return
    result: AxisIds = {}
    for axis, axis_ids in ids.items():
        if source[axis] == 1:
            labels.freeze(axis_ids, f"{label_of(node)} reshapes its only channel")
    for before, after in _segments(source, target):
        tracked = [a for a in before if a in ids]
        if not tracked:
            continue
        if len(before) == 1 and len(after) == 1:
            result[after[0]] = ids[before[0]]
        elif len(before) == 1:
            axis, kept = _split(labels, ids[before[0]], [target[a] for a in after])
            result[after[axis]] = kept
        elif len(after) == 1 and len(tracked) == 1 and all(source[a] is not None for a in before):
            lengths = [source[a] or 1 for a in before]
            aligned = [n if a == tracked[0] else 1 for a, n in zip(before, lengths, strict=True)]
            result[after[0]] = np.broadcast_to(ids[tracked[0]].reshape(aligned), lengths).reshape(-1)
        else:
            for a in tracked:
                labels.freeze(ids[a], f"{label_of(node)} mixes it with other axes")
    labels.put(out, result)
    if node.op_type == "Reshape" and result:
        _adjust_shape(labels, node, target, result)


def _segments(source: list[int | None], target: list[int | None]) -> list[tuple[list[int], list[int]]]:
    """Shortest runs of axes with equal products; axes of length 1 belong to none."""
    if source.count(None) > 1 or target.count(None) > 1:
        raise Refusal("reshapes a tensor with more than one dynamic size")
    before = [_DYNAMIC if n is None else n for n in source]
    total = math.prod(before)
    known = math.prod(n for n in target if n is not None)
    if None in target and (known == 0 or total % known):
        raise Refusal("reshapes to sizes that are not known")
    after = [total // known if n is None else n for n in target]
    if math.prod(after) != total or total == 0:
        raise Refusal("reshapes to sizes that are not known")
    left, right = ([i for i, n in enumerate(dims) if n != 1] for dims in (before, after))
    found = []
    while left:
        run_left, run_right = [left.pop(0)], [right.pop(0)]
        one, other = before[run_left[0]], after[run_right[0]]
        while one != other:
            if one < other:
                run_left.append(left.pop(0))
                one *= before[run_left[-1]]
            else:
                run_right.append(right.pop(0))
                other *= after[run_right[-1]]
        found.append((run_left, run_right))
    return found


def _split(labels: Labels, ids: Ids, lengths: list[int | None]) -> tuple[int, Ids]:
    """Which of the axes ``ids`` is split into carries channels, and their ids.

    An axis along which all others already repeat the same channels (the undoing of a merge) is taken as it is;
    else the first axis becomes the channels, whole blocks each, as for the heads of an attention layer.
    """
    if None in lengths:
        raise Refusal("splits channels into a dynamic number of blocks")
    block = ids.reshape([n or 1 for n in lengths])
    roots = labels.roots(block)
    for axis in range(block.ndim):
        along = np.moveaxis(roots, axis, 0).reshape(block.shape[axis], -1)
        if (along == along[:, :1]).all():
            return axis, np.moveaxis(block, axis, 0).reshape(block.shape[axis], -1)[:, 0].copy()
    rows = block.reshape(block.shape[0], -1)
    for column in rows.T[1:]:
        labels.unite(rows[:, 0].copy(), column)
    return 0, rows[:, 0].copy()


def _adjust_shape(labels: Labels, node: ir.Node, target: list[int | None], result: AxisIds) -> None:
    def adjust(keep: Keep) -> None:
        kept = {axis: int(keep(ids).sum()) for axis, ids in result.items()}
        if any(kept[a] != target[a] for a in kept):
            dims = [-1 if n is None else kept.get(a, n) for a, n in enumerate(target)]
            replace_operand(node, 1, np.asarray(dims, np.int64))

    labels.adjustments.append(adjust)


def concat(labels: Labels, node: ir.Node) -> None:
    """Concat: lists of ids one after the other; the other axes unite."""
    operands = [v for v in node.inputs if v is not None]
    rank = len(sizes(operands[0]))
    axis = attribute(node, "axis", 0) % rank
    result: AxisIds = {}
    for other in range(rank):
        given = [labels.of(v).get(other) for v in operands]
        if other != axis:
            joined = labels.join(given, f"{label_of(node)} stacks it on a tensor that cannot lose channels")
            if joined is not None:
                result[other] = joined
        elif any(ids is not None for ids in given):
            result[axis] = np.concatenate(
                [_or_frozen(labels, v, axis, ids) for v, ids in zip(operands, given, strict=True)]
            )
    labels.put(node.outputs[0], result)


def _or_frozen(labels: Labels, value: ir.Value, axis: int, ids: Ids | None) -> Ids:
    if ids is not None:
        return ids
    size = sizes(value)[axis]
    if size is None:
        raise Refusal("concatenates channels with an axis of unknown length")
    made = labels.fresh(size)
    labels.freeze(made, f"it is part of {value.name!r}, which cannot lose channels")
    return made


def slice_(labels: Labels, node: ir.Node) -> None:
    """Slice: a sub-list of the ids, in steps of one; strided slices of space pass."""
    data = node.inputs[0]
    dims = sizes(data)
    operands = [constant_of(v) for v in node.inputs[1:]]
    if any(o is None and v is not None for o, v in zip(operands, node.inputs[1:], strict=True)):
        raise Refusal("slices at bounds that are computed while the network runs")
    starts, ends = operands[0], operands[1]
    assert starts is not None
    assert ends is not None
    axes = operands[2] if len(operands) > 2 and operands[2] is not None else np.arange(len(starts))
    steps = operands[3] if len(operands) > 3 and operands[3] is not None else np.ones(len(starts), np.int64)
    result = dict(labels.of(data))
    bounds: dict[int, tuple[Ids, int, int]] = {}
    for k, axis in enumerate(int(a) % len(dims) for a in axes):
        if axis not in result:
            continue
        ids = result[axis]
        start, stop, step = slice(int(starts[k]), int(ends[k]), int(steps[k])).indices(ids.size)
        if step != 1 or stop <= start:
            labels.freeze(ids, f"{label_of(node)} takes channels in steps of {step}")
            result[axis] = ids[start:stop:step]
            continue
        bounds[k] = (ids, start, stop)
        result[axis] = ids[start:stop]
    labels.put(node.outputs[0], result)

    def adjust(keep: Keep) -> None:
        if all(keep(ids).all() for ids, _, _ in bounds.values()):
            return
        low, high = np.array(starts, np.int64), np.array(ends, np.int64)
        for k, (ids, start, stop) in bounds.items():
            kept = keep(ids)
            low[k], high[k] = kept[:start].sum(), kept[:stop].sum()
        replace_operand(node, 1, low)
        replace_operand(node, 2, high)

    if bounds:
        labels.adjustments.append(adjust)


def split(labels: Labels, node: ir.Node) -> None:
    """Split: consecutive sub-lists."""
    data = node.inputs[0]
    axis = attribute(node, "axis", 0) % len(sizes(data))
    ids = labels.of(data)
    lengths = [sizes(out)[axis] for out in node.outputs]
    rest = {a: v for a, v in ids.items() if a != axis}
    if axis not in ids:
        for out in node.outputs:
            labels.put(out, dict(rest))
        return
    if None in lengths or sum(n or 0 for n in lengths) != ids[axis].size:
        raise Refusal("splits channels into parts of unknown length")
    ends = np.cumsum([n or 0 for n in lengths])
    parts = np.split(ids[axis], ends[:-1])
    for out, part in zip(node.outputs, parts, strict=True):
        labels.put(out, {**rest, axis: part})

    def adjust(keep: Keep) -> None:
        counts = [int(keep(part).sum()) for part in parts]
        if counts != lengths:
            node.attributes.pop("num_outputs", None)
            replace_operand(node, 1, np.asarray(counts, np.int64))

    labels.adjustments.append(adjust)


def pad(labels: Labels, node: ir.Node) -> None:
    """Pad: padded channels are constants that live and die with what they are added to (option-A shortcut)."""
    data = node.inputs[0]
    dims = sizes(data)
    amounts = constant_of(node.inputs[1])
    given = node.inputs[3] if len(node.inputs) > 3 else None
    axes = constant_of(given) if given is not None else np.arange(len(dims))
    if amounts is None or axes is None:
        raise Refusal("pads by amounts that are computed while the network runs")
    mode = node.attributes.get("mode")
    constant = mode is None or mode.as_string() == "constant"
    fill = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    zero = constant and fill is not None and not np.any(fill)
    result = dict(labels.of(data))
    padded: dict[int, tuple[Ids, Ids]] = {}
    for k, axis in enumerate(int(a) % len(dims) for a in axes):
        before, after = int(amounts[k]), int(amounts[k + len(axes)])
        if axis not in result or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0 or not zero:
            labels.freeze(result[axis], f"{label_of(node)} pads channels with something else than zeros")
            if before < 0 or after < 0:
                raise Refusal("crops channels by a negative padding")
        front, back = labels.fresh(before), labels.fresh(after)
        if not zero:
            labels.freeze(
                np.concatenate([front, back]), f"{label_of(node)} pads it with something else than zeros"
            )
        padded[k] = (front, back)
        result[axis] = np.concatenate([front, result[axis], back])
    labels.put(node.outputs[0], result)

    def adjust(keep: Keep) -> None:
        new = np.array(amounts, np.int64)
        for k, (front, back) in padded.items():
            new[k], new[k + len(axes)] = keep(front).sum(), keep(back).sum()
        if (new != amounts).any():
            replace_operand(node, 1, new)

    if padded:
        labels.adjustments.append(adjust)


def gather(labels: Labels, node: ir.Node) -> None:
    """Gather with constant indices: a list of channels is re-ordered; a single index drops its axis."""
    data, indices = node.inputs[0], node.inputs[1]
    dims = sizes(data)
    axis = attribute(node, "axis", 0) % len(dims)
    ids, wanted = labels.of(data), constant_of(indices)
    width = len(sizes(indices))
    result = {a if a < axis else a + width - 1: v for a, v in ids.items() if a != axis}
    labels.freeze_value(indices, f"{label_of(node)} uses it as an index")
    if axis in ids and (wanted is None or wanted.ndim != 1):
        labels.freeze(ids[axis], f"{label_of(node)} picks single channels")
    elif axis in ids and wanted is not None:
        channels, order = ids[axis], wanted % ids[axis].size
        result[axis] = channels[order]

        def adjust(keep: Keep) -> None:
            kept = keep(channels)
            if kept.all():
                return
            place = np.cumsum(kept) - 1
            replace_operand(node, 1, place[order[kept[order]]].astype(np.int64))

        labels.adjustments.append(adjust)
    labels.put(node.outputs[0], result)


def resize(labels: Labels, node: ir.Node) -> None:
    """Resize: space changes, channels pass."""
    data = node.inputs[0]
    before, after = sizes(data), sizes(node.outputs[0])
    result: AxisIds = {}
    for axis, ids in labels.of(data).items():
        if before[axis] != after[axis]:
            labels.freeze(ids, f"{label_of(node)} interpolates over it")
        else:
            result[axis] = ids
    labels.put(node.outputs[0], result)
    wanted = node.inputs[3] if len(node.inputs) > 3 else None
    if wanted is None or "axes" in node.attributes:
        return
    target = constant_of(wanted)
    if target is None and result:
        raise Refusal("resizes to a size that is computed while the network runs")

    def adjust(keep: Keep) -> None:
        assert target is not None
        dims = [int(keep(result[a]).sum()) if a in result else int(n) for a, n in enumerate(target)]
        if dims != target.tolist():
            replace_operand(node, 3, np.asarray(dims, np.int64))

    if result:
        labels.adjustments.append(adjust)


def depth_to_space(labels: Labels, node: ir.Node) -> None:
    """DepthToSpace: the block's copies of one output channel are removed together."""
    data = node.inputs[0]
    labels.freeze_value(data, f"{label_of(node)} rearranges it", but=(1,))
    ids = labels.of(data).get(1)
    if ids is None:
        return
    area = attribute(node, "blocksize", 1) ** 2
    mode = node.attributes.get("mode")
    column_row = mode is not None and mode.as_string() == "CRD"
    rows = ids.reshape(-1, area).T if column_row else ids.reshape(area, -1)
    for row in rows[1:]:
        labels.unite(rows[0], row)
    labels.put(node.outputs[0], {1: rows[0].copy()})


def space_to_depth(labels: Labels, node: ir.Node) -> None:
    """SpaceToDepth: each channel appears once per position of the block."""
    data = node.inputs[0]
    labels.freeze_value(data, f"{label_of(node)} rearranges it", but=(1,))
    ids = labels.of(data).get(1)
    if ids is not None:
        labels.put(node.outputs[0], {1: np.tile(ids, attribute(node, "blocksize", 1) ** 2)})


def shape_only(labels: Labels, node: ir.Node) -> None:
    """Shape: its value follows the tensor by itself; what it is used for has its own rule."""
    labels.put(node.outputs[0], {})


RULES: dict[str, Rule] = {
    "Transpose": transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    "Concat": concat,
    "Slice": slice_,
    "Split": split,
    "Pad": pad,
    "Gather": gather,
    "Resize": resize,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Shape": shape_only,
    "Constant": shape_only,
    "ConstantOfShape": shape_only,
}
