"""Mean 0 and variance 1, over one axis of rows or another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, Operand, kernels
from dlas.kernels.layers.elementwise._layouts import move_cost
from dlas.kernels.layout import Storage


@kernels.register("normalise")
class Normalise(NativeKernel):
    """LayerNormalization, RMSNormalization, InstanceNormalization, GroupNormalization, plain, with a fused activation.

    All of them normalise rows: what lies in a row, and which scales it takes, is worked out here.
    """

    name = "normalise"
    ops: ClassVar[tuple[str, ...]] = (
        "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization",
    )  # fmt: skip
    summary = "layer, instance, group and RMS normalisation"

    def refuses(self, node: Node, context: Context) -> str:
        """Scales that the network computes, and means as further outputs."""
        if node.operand(0).dtype != "float32":
            return f"it takes float32, not {node.operand(0).dtype}"
        if any(i is not None and i.constant is None for i in node.inputs[1:]):
            return "its scale or bias is computed by the network"
        return "it returns neither mean nor deviation" if len(node.outputs) > 1 else ""

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Bytes moved thrice."""
        return 3 * move_cost(node)

    def prepare(
        self, node: Node, inputs: Sequence[Storage | None], outputs: Sequence[Storage], context: Context
    ) -> Any:
        """The native layer, with one scale and one shift for each of its segments."""
        numbers = _rows(node)
        count = numbers["sets"] * numbers["segments"]
        tables = [Operand.of(_table(node, index, count)) for index in (1, 2)]
        attributes = {
            k: v for k, v in node.attributes.items() if k in ("epsilon", "act", "act_low", "act_high")
        }
        numbers["center"] = int(node.op != "RMSNormalization")
        rows = Node("Normalise", node.name, attributes | numbers, (node.inputs[0], *tables), node.outputs)
        return super().prepare(rows, (inputs[0], None, None), outputs, context)


def _rows(node: Node) -> dict[str, int]:
    shape = node.operand(0).shape
    if node.op in ("LayerNormalization", "RMSNormalization"):
        axis = int(node.attributes.get("axis", -1)) % len(shape)
        return {"rows": math.prod(shape[:axis]), "sets": 1, "segments": math.prod(shape[axis:]), "length": 1}
    groups = int(node.attributes["num_groups"]) if node.op == "GroupNormalization" else shape[1]
    return {
        "rows": shape[0] * groups,
        "sets": groups,
        "segments": shape[1] // groups,
        "length": math.prod(shape[2:]),
    }


def _table(node: Node, index: int, count: int) -> np.ndarray:
    constant = node.constant(index)
    if constant is None:
        return np.full(count, index == 1, np.float32)
    if node.op in ("LayerNormalization", "RMSNormalization"):
        axis = int(node.attributes.get("axis", -1)) % len(node.operand(0).shape)
        constant = np.broadcast_to(constant, node.operand(0).shape[axis:])
    # The scales of GroupNormalization in opset 18 are those of groups, not of channels.
    flat = np.ravel(constant)
    return np.ascontiguousarray(np.repeat(flat, count // flat.size), np.float32)
