"""The target expects its samples prepared otherwise: another range, other statistics, BGR, height and width swapped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.graph.signature import encoding_of
from dlas.verify.localize.case import Case, Explanation, Proposal, explanations
from dlas.verify.localize.edits import insert_before, set_input

# name: (mean, standard deviation) of the pixels 0..255, per channel RGB
CONVENTIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "0..255": ((0, 0, 0), (1, 1, 1)),
    "0..1": ((0, 0, 0), (255, 255, 255)),
    "-1..1": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "-128..127": ((128, 128, 128), (1, 1, 1)),
    "ImageNet mean and std": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "CIFAR-10 mean and std": ((125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)),
    "ImageNet mean only": ((123.68, 116.779, 103.939), (1, 1, 1)),
}


@explanations.register("inputs")
class Inputs(Explanation):
    """Undoes usual ways of preparing a sample in front of the target."""

    name = "inputs"
    summary = "the target expects its samples prepared otherwise"
    cost = 10

    def propose(self, case: Case) -> Iterator[Proposal]:
        """Ranges of integer inputs, then colours and statistics, then height and width."""
        if not case.at_input:
            return
        for node in case.nodes:
            for index, value in enumerate(node.inputs):
                name = str(value.name) if value is not None else ""
                if name not in case.target.inputs:
                    continue
                if node.op_type == "DequantizeLinear":
                    yield from _range(case, node, name)
                elif case.given[name].dtype.kind == "f":
                    yield from _prepared(node, index, case.given[name])


def _range(case: Case, node: ir.Node, name: str) -> Iterator[Proposal]:
    known, real = encoding_of(node), case.real_input(name)
    if known is None or real is None:
        return
    info = np.iinfo(case.given[name].dtype)
    scale, zero_point = known
    low, high = (info.min - zero_point) * scale, (info.max - zero_point) * scale
    wanted = [(float(real.min()), float(real.max()))]
    wanted += [((0 - m[0]) / s[0], (255 - m[0]) / s[0]) for m, s in CONVENTIONS.values()]
    rows = case.walk.source_inputs[case.source.inputs[case.target.inputs.index(name)]]
    wanted.sort(key=lambda w: abs(w[0] - float(rows.min())) + abs(w[1] - float(rows.max())))
    for begin, end in wanted:
        if abs(begin - low) + abs(end - high) <= 0.02 * (end - begin):
            continue
        new_scale = (end - begin) / (info.max - info.min)
        new_zero = round(info.min - begin / new_scale)
        if not info.min <= new_zero <= info.max:
            continue

        def change(graph: ir.Model, scale: float = new_scale, zero: int = new_zero) -> None:
            set_input(graph, str(node.name), 1, np.array(scale, np.float32))
            set_input(graph, str(node.name), 2, np.array(zero, info.dtype))

        yield Proposal(
            "input",
            "range of the input",
            f"the input {name!r} holds {low:.4g} to {high:.4g}, the source's samples lie in "
            f"{float(rows.min()):.4g} to {float(rows.max()):.4g}; with {begin:.4g} to {end:.4g} it agrees",
            str(node.name),
            "",
            change,
        )


def _prepared(node: ir.Node, index: int, values: np.ndarray) -> Iterator[Proposal]:
    name, shape = str(node.name), values.shape[1:]
    axis = _channel_axis(shape)
    flips = (False, True) if axis is not None else (False,)
    for flip in flips:
        for mean_from, mean_to in [("", ""), *itertools.permutations(CONVENTIONS, 2)]:
            if not flip and not mean_from:
                continue
            words = ["red and blue are swapped"] if flip else []
            factor = offset = None
            if mean_from:
                factor, offset = _affine(mean_from, mean_to, shape, axis)
                words.append(f"it expects {mean_to} where the source has {mean_from}")
            yield _proposal(name, index, node, " and ".join(words), axis if flip else None, factor, offset)
    spatial = _spatial_axes(shape)
    if spatial:
        perm = list(range(4))
        perm[spatial[0]], perm[spatial[1]] = perm[spatial[1]], perm[spatial[0]]
        yield Proposal(
            "input",
            "height and width swapped",
            f"{node.op_type} {name}: height and width of the samples are swapped",
            name,
            "",
            lambda graph: insert_before(graph, name, index, "Transpose", {"perm": perm}),
        )


def _proposal(
    name: str,
    index: int,
    node: ir.Node,
    words: str,
    flip: int | None,
    factor: np.ndarray | None,
    offset: np.ndarray | None,
) -> Proposal:
    def change(graph: ir.Model) -> None:
        # The last operator put in front of the node comes last: colours are exchanged after scaling.
        if flip is not None:
            insert_before(graph, name, index, "Gather", {"axis": flip}, {1: np.array([2, 1, 0], np.int64)})
        if offset is not None and factor is not None:
            # Each goes between the node before and what was put in last.
            _scale(graph, name, index, factor, offset)

    kind = "samples prepared otherwise" if factor is not None else "red and blue swapped"
    return Proposal("input", kind, f"{node.op_type} {name}: {words}", name, "", change)


def _scale(graph: ir.Model, name: str, index: int, factor: np.ndarray, offset: np.ndarray) -> None:
    insert_before(graph, name, index, "Mul", {}, {1: factor})
    insert_before(graph, name, index, "Add", {}, {1: offset})


def _affine(
    given: str, expected: str, shape: tuple[int, ...], axis: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset that turn samples prepared as ``given`` into ones as ``expected``."""
    (mean_a, std_a), (mean_b, std_b) = CONVENTIONS[given], CONVENTIONS[expected]
    factor = np.array(std_a, np.float64) / np.array(std_b)
    offset = (np.array(mean_a, np.float64) - np.array(mean_b)) / np.array(std_b)
    if axis is None:
        factor, offset = factor[:1], offset[:1]
        form: Any = [1] * len(shape)
    else:
        form = [3 if a == axis else 1 for a in range(len(shape))]
    return factor.reshape(form).astype(np.float32), offset.reshape(form).astype(np.float32)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    if len(shape) != 4:
        return None
    return next((a for a in (1, 3) if shape[a] == 3), None)


def _spatial_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of an image of three colours or one; nothing for other shapes."""
    channels = next((a for a in (1, 3) if len(shape) == 4 and shape[a] in (1, 3)), None)
    return () if channels is None else tuple(a for a in (1, 2, 3) if a != channels)
