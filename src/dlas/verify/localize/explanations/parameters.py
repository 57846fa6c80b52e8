"""A weight or bias is not the source's: dropped, scaled, transposed, permuted, rounded, or simply another one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from dlas.verify.localize.alignment import orders, relative
from dlas.verify.localize.case import Case, Explanation, Proposal, explanations
from dlas.verify.localize.edits import drop_input, insert_after, set_input
from dlas.verify.localize.explanations.attributes import SETTINGS
from dlas.verify.localize.roles import role

_WITH_BIAS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
_CLOSE = 1e-6  # relative L2 below which two constants are the same numbers


@explanations.register("parameters")
class Parameters(Explanation):
    """Puts the source's constants in place of the target's."""

    name = "parameters"
    summary = "a weight or bias differs from the source's"
    cost = 20

    def propose(self, case: Case) -> Iterator[Proposal]:
        """One constant alone, then all of an operator."""
        together: dict[str, list[Proposal]] = {}
        for node in case.nodes:
            for proposal in self._of(case, node):
                together.setdefault(proposal.node, []).append(proposal)
                yield proposal
        for node, found in together.items():
            if len(found) > 1:
                yield self._all(node, found)
        if len(together) > 1:
            yield self._all(next(iter(together)), [p for found in together.values() for p in found])

    def _of(self, case: Case, node: ir.Node) -> Iterator[Proposal]:
        for index in range(len(node.inputs)):
            mine = case.array(node, index)
            if mine is None or index in SETTINGS.get(node.op_type, ()) or mine.dtype.kind != "f":
                continue
            for other, right in _candidates(case, node, index, mine):
                if relative(right, mine) > _CLOSE or right.shape != mine.shape:
                    yield _copied(node, index, mine, other, right)
        bias = _WITH_BIAS.get(node.op_type)
        if bias is None:
            if node.op_type == "MatMul":
                yield from _lost(case, node)
            return
        for other in (n for n in case.source_nodes if n.op_type in _WITH_BIAS):
            right = case.source_array(other, _WITH_BIAS[other.op_type])
            if case.array(node, bias) is None and right is not None:
                yield _given(node, bias, other, right.reshape(-1))
            elif case.array(node, bias) is not None and right is None:
                yield _dropped(node, bias, other)

    @staticmethod
    def _all(node: str, found: list[Proposal]) -> Proposal:
        # The first proposal for each input is the likeliest one.
        chosen = {p.detail.split(":")[0]: p for p in reversed(found)}

        def change(graph: ir.Model) -> None:
            for proposal in chosen.values():
                proposal.change(graph)

        return Proposal(
            "parameter",
            "several differ",
            "; ".join(p.detail for p in chosen.values()),
            node,
            found[0].source_node,
            change,
        )


def _candidates(
    case: Case, node: ir.Node, index: int, mine: np.ndarray
) -> Iterator[tuple[ir.Node, np.ndarray]]:
    """Constants of the source that may stand where ``mine`` stands, in its shape; the same place first."""
    found: list[tuple[bool, float, ir.Node, np.ndarray]] = []
    for other in case.source_nodes:
        for place in range(len(other.inputs)):
            right = case.source_array(other, place)
            if right is None or right.size != mine.size or right.dtype.kind != "f":
                continue
            same = other.op_type == node.op_type and place == index
            found += [
                (not same, relative(shaped, mine), other, shaped.astype(mine.dtype))
                for shaped in _shaped(right, mine.shape)
            ]
    found.sort(key=lambda f: (f[0], f[1]))
    for _, _, other, right in found[:12]:
        yield other, right


def _shaped(right: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    if right.shape == shape:
        yield right
        return
    small = right.reshape([d for d in right.shape if d != 1])
    wanted = tuple(d for d in shape if d != 1)
    for order in orders(small.shape, wanted):
        yield small.transpose(order).reshape(shape)


def _place(node: ir.Node, index: int) -> str:
    return f"{node.op_type} {node.name} {role(node.op_type, index)}"


def _copied(node: ir.Node, index: int, mine: np.ndarray, other: ir.Node, right: np.ndarray) -> Proposal:
    kind = relation(mine, right)
    return Proposal(
        "parameter",
        kind,
        f"{_place(node, index)}: {kind} against {other.op_type} {other.name} "
        f"(relative L2 {relative(right, mine):.2g})",
        str(node.name),
        str(other.name),
        lambda graph: set_input(graph, str(node.name), index, right),
    )


def _given(node: ir.Node, index: int, other: ir.Node, right: np.ndarray) -> Proposal:
    return Proposal(
        "parameter",
        "bias dropped",
        f"{_place(node, index)}: there is none, {other.op_type} {other.name} has one",
        str(node.name),
        str(other.name),
        lambda graph: set_input(graph, str(node.name), index, right),
    )


def _lost(case: Case, node: ir.Node) -> Iterator[Proposal]:
    """The Add behind a MatMul that a bias is."""
    for other in (n for n in case.source_nodes if n.op_type in _WITH_BIAS):
        right = case.source_array(other, _WITH_BIAS[other.op_type])
        if right is None:
            continue

        yield Proposal(
            "parameter",
            "bias dropped",
            f"MatMul {node.name}: no bias is added behind it, {other.op_type} {other.name} has one",
            str(node.name),
            str(other.name),
            lambda graph, right=right: insert_after(graph, str(node.name), "Add", {}, {1: right.reshape(-1)}),
        )


def _dropped(node: ir.Node, index: int, other: ir.Node) -> Proposal:
    return Proposal(
        "parameter",
        "bias added",
        f"{_place(node, index)}: there is one, {other.op_type} {other.name} has none",
        str(node.name),
        str(other.name),
        lambda graph: drop_input(graph, str(node.name), index),
    )


def relation(mine: np.ndarray, right: np.ndarray) -> str:
    """How a constant came from the right one, in two or three words; ``values differ`` where nothing fits."""
    if mine.shape != right.shape:
        return "other shape"
    for order in orders(right.shape, mine.shape):
        if order != tuple(range(right.ndim)) and relative(right.transpose(order), mine) < _CLOSE:
            return f"transposed {list(order)}"
    if not mine.any():
        return "set to zero"
    norm = float((right.astype(np.float64) ** 2).sum())
    factor = float((mine.astype(np.float64) * right).sum()) / norm if norm else 0.0
    if factor and relative(right * factor, mine) < 1e-5:
        return f"scaled by {factor:.4g}"
    for axis in range(min(right.ndim, 2)):
        if right.shape[axis] > 1 and relative(np.flip(right, axis), mine) < _CLOSE:
            return f"reversed along axis {axis}"
        if _permuted(mine, right, axis):
            return f"permuted along axis {axis}"
    for axis in range(2, right.ndim):
        if relative(np.flip(right, axis), mine) < _CLOSE:
            return f"reversed along axis {axis}"
    if right.ndim > 3 and relative(np.flip(right, tuple(range(2, right.ndim))), mine) < _CLOSE:
        return "kernels turned round"
    if mine.dtype == np.float32:
        for dtype in ("float16",):
            if np.array_equal(right.astype(dtype).astype(np.float32), mine):
                return f"rounded to {dtype}"
        if np.array_equal(
            (right.astype(np.float32).view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32), mine
        ):
            return "rounded to bfloat16"
    levels = len(np.unique(mine))
    if mine.size > 4 * levels and levels < len(np.unique(right)) and relative(right, mine) < 0.7:
        return f"rounded to {levels} values"
    return "values differ"


def _permuted(mine: np.ndarray, right: np.ndarray, axis: int) -> bool:
    """Whether the slices along an axis are the right ones in another order."""
    a = np.moveaxis(mine, axis, 0).reshape(mine.shape[axis], -1)
    b = np.moveaxis(right, axis, 0).reshape(right.shape[axis], -1)
    if len(a) < 2:
        return False
    return bool(np.array_equal(a[np.lexsort(a.T[::-1])], b[np.lexsort(b.T[::-1])])) and not np.array_equal(
        a, b
    )
