"""A hyper-parameter of an operator is not what the source says: strides, pads, epsilon, axis, mode and the like."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from dlas.verify.localize.case import Case, Explanation, Proposal, explanations
from dlas.verify.localize.edits import drop_input, set_attribute, set_input, with_defaults
from dlas.verify.localize.roles import role

# Inputs that say how to compute, not what with.
SETTINGS = {
    "Clip": (1, 2),
    "Pad": (1, 2, 3),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Split": (1,),
    "Tile": (1,),
    "Expand": (1,),
    "Gather": (1,),
    "TopK": (1,),
    "OneHot": (1, 2),
    **{
        f"Reduce{k}": (1,)
        for k in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare")
    },
}


@explanations.register("attributes")
class Attributes(Explanation):
    """Copies the source's settings to the operator of the same type."""

    name = "attributes"
    summary = "a hyper-parameter differs from the source's"
    cost = 30

    def propose(self, case: Case) -> Iterator[Proposal]:
        """Each setting that differs, then all of an operator together."""
        for node, other in case.alike():
            mine, right = with_defaults(node, case.opset), with_defaults(other, case.opset)
            names = [n for n in sorted({*mine, *right}) if mine.get(n) != right.get(n)]
            for name in names:
                yield self._one(node, other, name, mine.get(name), right.get(name))
            if len(names) > 1:
                yield self._all(node, other, names)
            yield from self._inputs(case, node, other)

    @staticmethod
    def _one(node: ir.Node, other: ir.Node, name: str, mine: object, right: object) -> Proposal:
        attribute = other.attributes.get(name)
        return Proposal(
            "attribute",
            f"{name} differs",
            f"{node.op_type} {node.name}: {name} is {_shown(mine)}, the source has {_shown(right)}",
            str(node.name),
            str(other.name),
            lambda graph: set_attribute(graph, str(node.name), attribute, name),
        )

    @staticmethod
    def _all(node: ir.Node, other: ir.Node, names: list[str]) -> Proposal:
        def change(graph: ir.Model) -> None:
            for name in names:
                set_attribute(graph, str(node.name), other.attributes.get(name), name)

        return Proposal(
            "attribute",
            "several differ",
            f"{node.op_type} {node.name}: {', '.join(names)} differ from the source's",
            str(node.name),
            str(other.name),
            change,
        )

    @staticmethod
    def _inputs(case: Case, node: ir.Node, other: ir.Node) -> Iterator[Proposal]:
        for index in SETTINGS.get(node.op_type, ()):
            mine, right = case.array(node, index), case.source_array(other, index)
            if (mine is None and right is None) or (
                mine is not None and right is not None and np.array_equal(mine, right)
            ):
                continue

            def change(graph: ir.Model, index: int = index, right: np.ndarray | None = right) -> None:
                if right is None:
                    drop_input(graph, str(node.name), index)
                else:
                    set_input(graph, str(node.name), index, right)

            what = role(node.op_type, index)
            yield Proposal(
                "attribute",
                f"{what} differs",
                f"{node.op_type} {node.name}: {what} is {_shown(mine)}, the source has {_shown(right)}",
                str(node.name),
                str(other.name),
                change,
            )


def _shown(value: object) -> str:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    text = "not given" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
