"""Axes are in another order than an operator takes them to be: a Transpose too many, too few or of the wrong kind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.verify.localize.case import Case, Explanation, Proposal, explanations
from dlas.verify.localize.edits import bypass, insert_after, insert_before, set_attribute, set_input
from dlas.verify.localize.roles import role

_MOST_AXES = 4


@explanations.register("layout")
class Layout(Explanation):
    """Tries orders of axes: in Transposes that are there, in settings that count axes, and around operators."""

    name = "layout"
    summary = "axes are in another order than an operator takes them to be"
    cost = 25

    def propose(self, case: Case) -> Iterator[Proposal]:
        """Transposes that are there, then settings, then new Transposes."""
        for node in case.nodes:
            if node.op_type == "Transpose":
                yield from _permutations(case, node)
            if node.op_type == "Pad":
                yield from _pads(case, node)
        for node in case.nodes:
            yield from _around(case, node)


def _permutations(case: Case, node: ir.Node) -> Iterator[Proposal]:
    if all(n.op_type != "Transpose" for n in case.source_nodes):
        yield _proposal(
            node,
            "extra Transpose",
            f"Transpose {node.name} has no counterpart in the source",
            lambda graph: bypass(graph, str(node.name)),
        )
    present = node.attributes.get("perm")
    if present is None:
        return
    perm = tuple(present.as_ints())
    for order in _orders(len(perm)):
        if order != perm:
            yield _proposal(
                node,
                "wrong transposition",
                f"Transpose {node.name}: perm is {list(perm)}, {list(order)} agrees",
                lambda graph, order=order: set_attribute(
                    graph, str(node.name), ir.AttrInt64s("perm", list(order)), "perm"
                ),
            )


def _pads(case: Case, node: ir.Node) -> Iterator[Proposal]:
    pads = case.array(node, 1)
    if pads is None or pads.ndim != 1 or len(pads) % 2:
        return
    rank = len(pads) // 2
    for order in itertools.permutations(range(rank)):
        turned = np.concatenate([pads[:rank][list(order)], pads[rank:][list(order)]])
        if not np.array_equal(turned, pads):
            yield _proposal(
                node,
                "pads on the wrong axis",
                f"Pad {node.name}: pads are {pads.tolist()}, {turned.tolist()} agrees",
                lambda graph, turned=turned: set_input(graph, str(node.name), 1, turned),
            )


def _around(case: Case, node: ir.Node) -> Iterator[Proposal]:
    """A Transpose before, behind, or both (there and back)."""
    name = str(node.name)
    for index, value in enumerate(node.inputs):
        known = case.given.get(str(value.name)) if value is not None else None
        if known is None or not 2 < known.ndim - 1 <= _MOST_AXES:
            continue
        what = f"{node.op_type} {name}: {role(node.op_type, index, constant=False)}"
        for order in _orders(known.ndim - 1):
            yield _proposal(
                node,
                "axes not turned before",
                f"{what} agrees with its axes turned by {list(order)}",
                lambda graph, order=order, index=index: insert_before(
                    graph, name, index, "Transpose", {"perm": list(order)}
                ),
            )
            back = list(np.argsort(order))

            def both(graph: ir.Model, order: Any = order, index: int = index, back: Any = back) -> None:
                insert_before(graph, name, index, "Transpose", {"perm": list(order)})
                insert_after(graph, name, "Transpose", {"perm": [int(b) for b in back]})

            yield _proposal(
                node,
                "computed along other axes",
                f"{node.op_type} {name}: it agrees between Transposes of {list(order)} and {back}",
                both,
            )
    rank = case.wanted.ndim - 1
    if node.outputs[0].name == case.region.target and 2 < rank <= _MOST_AXES:
        for order in _orders(rank):
            yield _proposal(
                node,
                "axes not turned behind",
                f"{node.op_type} {name}: its result agrees with its axes turned by {list(order)}",
                lambda graph, order=order: insert_after(graph, name, "Transpose", {"perm": list(order)}),
            )


def _orders(rank: int) -> list[tuple[int, ...]]:
    """Orders of the axes that leave the batch in front, but the identity."""
    if rank > _MOST_AXES:
        return []
    return [(0, *(a + 1 for a in o)) for o in itertools.permutations(range(rank - 1))][1:]


def _proposal(node: ir.Node, kind: str, detail: str, change: Any) -> Proposal:
    return Proposal("layout", kind, detail, str(node.name), "", change)
