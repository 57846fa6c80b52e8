"""The graph itself differs: an operator too many, too few, of another type, or reading other tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.verify.localize.case import Case, Explanation, Proposal, explanations
from dlas.verify.localize.edits import (
    bypass,
    insert_after,
    insert_before,
    reorder,
    replace_operator,
    rewire,
)
from dlas.verify.localize.roles import role

_FEW_INPUTS = 4


@explanations.register("operators")
class Operators(Explanation):
    """Takes operators out, puts the source's in, exchanges them, and exchanges what they read."""

    name = "operators"
    summary = "an operator is extra, missing, another one, or reads other tensors"
    cost = 40

    def propose(self, case: Case) -> Iterator[Proposal]:
        """Extra, replaced, order of inputs, wiring, missing, permuted labels: in this order."""
        for node in case.nodes:
            yield from _extra(case, node)
        for node in case.nodes:
            yield from _replaced(case, node)
            yield from _input_order(case, node)
            yield from _wiring(case, node)
        for node in case.nodes:
            yield from _missing(case, node)
        yield from _labels(case)


def _extra(case: Case, node: ir.Node) -> Iterator[Proposal]:
    types = [n.op_type for n in case.source_nodes]
    if node.op_type in types and [n.op_type for n in case.nodes].count(node.op_type) <= types.count(
        node.op_type
    ):
        return
    if node.op_type == "Transpose":
        return  # a matter of layout
    fed = case.target.fed(node)
    # An operator on the way in changes what the network is given.
    fault = "input" if any(f in case.target.inputs for f in fed) and len(case.source_nodes) <= 1 else "graph"
    for index, value in enumerate(node.inputs):
        if value is not None and str(value.name) in fed:
            yield Proposal(
                fault,
                f"extra {node.op_type}",
                f"{node.op_type} {node.name} has no counterpart in the source",
                str(node.name),
                "",
                lambda graph, index=index: bypass(graph, str(node.name), index),
            )


def _replaced(case: Case, node: ir.Node) -> Iterator[Proposal]:
    for other in case.source_nodes:
        if other.op_type == node.op_type:
            continue
        if len(case.source.fed(other)) not in (0, len(case.target.fed(node))):
            continue
        constants = _constants(case, other)
        yield Proposal(
            "graph",
            f"{other.op_type} became {node.op_type}",
            f"{node.op_type} {node.name} stands where the source has {other.op_type} {other.name}",
            str(node.name),
            str(other.name),
            lambda graph, other=other, constants=constants: replace_operator(
                graph, str(node.name), other.op_type, other.attributes, constants
            ),
        )


def _input_order(case: Case, node: ir.Node) -> Iterator[Proposal]:
    count = len([v for v in node.inputs if v is not None])
    if len(case.target.fed(node)) < 2 or count > _FEW_INPUTS:
        return
    for order in list(itertools.permutations(range(count)))[1:]:
        yield Proposal(
            "graph",
            "inputs in another order",
            f"{node.op_type} {node.name} agrees with its inputs in the order {list(order)}",
            str(node.name),
            "",
            lambda graph, order=order: reorder(graph, str(node.name), order),
        )


def _wiring(case: Case, node: ir.Node) -> Iterator[Proposal]:
    """Let an input read the tensor that the operator of the same type in the source reads."""
    for other in case.source_nodes:
        if other.op_type != node.op_type:
            continue
        for read in case.source.fed(other):
            for index, value in enumerate(node.inputs):
                if value is None or str(value.name) in case.target.constants:
                    continue
                for tensor in case.counterparts(read)[:4]:
                    if (
                        tensor == value.name
                        or case.target.position[tensor] >= case.target.position[case.region.target]
                    ):
                        continue
                    yield _rewired(case, node, other, index, str(value.name), tensor)


def _rewired(case: Case, node: ir.Node, other: ir.Node, index: int, old: str, tensor: str) -> Proposal:
    case.admit(tensor)
    what = role(node.op_type, index, constant=False)
    return Proposal(
        "graph",
        "reads another tensor",
        f"{node.op_type} {node.name} reads {old!r} as {what}, the source's reads what is {tensor!r} here",
        str(node.name),
        str(other.name),
        lambda graph: rewire(graph, str(node.name), index, tensor),
    )


def _missing(case: Case, node: ir.Node) -> Iterator[Proposal]:
    for other in case.source_nodes:
        if len(case.source.fed(other)) > 1 or not other.inputs:
            continue
        constants = _constants(case, other)
        if 0 in constants:
            continue
        attributes = dict(other.attributes)
        where: list[tuple[str, Any]] = [
            (
                "behind",
                lambda graph, o=other, a=attributes, c=constants: insert_after(
                    graph, str(node.name), o.op_type, a, c
                ),
            )
        ]
        for index, value in enumerate(node.inputs):
            if value is not None and str(value.name) in case.target.fed(node):
                where.append(
                    (
                        "before",
                        lambda graph, i=index, o=other, a=attributes, c=constants: insert_before(
                            graph, str(node.name), i, o.op_type, a, c
                        ),
                    )
                )
        for place, change in where:
            yield Proposal(
                "graph",
                f"{other.op_type} missing",
                f"{other.op_type} {other.name} of the source is missing {place} {node.op_type} {node.name}",
                str(node.name),
                str(other.name),
                change,
            )


def _labels(case: Case) -> Iterator[Proposal]:
    """Columns of a result of the network in another order."""
    from scipy.optimize import linear_sum_assignment

    if case.region.target not in case.target.outputs or case.wanted.ndim != 3 or not case.nodes:
        return
    present = _present(case)
    if present is None or present.shape != case.wanted.shape or not 1 < present.shape[-1] <= 4096:
        return
    mine, right = present.reshape(-1, present.shape[-1]), case.wanted.reshape(-1, present.shape[-1])
    if not np.isfinite(mine).all():
        return
    cost = np.square(right.T[:, None] - mine.T[None]).sum(axis=2) if present.shape[-1] <= 512 else None
    if cost is None:
        return
    columns = linear_sum_assignment(cost)[1]
    last = case.nodes[-1]
    moved = int((columns != np.arange(len(columns))).sum())
    axis = case.wanted.ndim - 2
    yield Proposal(
        "graph",
        "labels in another order",
        f"{last.op_type} {last.name}: {moved} classes come in another place",
        str(last.name),
        "",
        lambda graph: insert_after(
            graph, str(last.name), "Gather", {"axis": axis}, {1: columns.astype(np.int64)}
        ),
    )


def _present(case: Case) -> np.ndarray | None:
    """What the region gives as it is."""
    from dlas.core.errors import DlasError
    from dlas.verify.localize.network import Network

    try:
        return Network(case.small.clone(), bind=False).compute([case.region.target], case.given)[
            case.region.target
        ]
    except DlasError:
        return None


def _constants(case: Case, other: ir.Node) -> dict[int, np.ndarray]:
    found = {i: case.source_array(other, i) for i in range(len(other.inputs))}
    return {i: a for i, a in found.items() if a is not None}
