"""BatchNormalization with stored statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, Operand, kernels
from dlas.kernels.layers.elementwise._layouts import maps_and_plain, move_cost
from dlas.kernels.layout import Storage


@kernels.register("batch-norm")
class BatchNorm(NativeKernel):
    """One multiplication and one addition per element, plain or blocked, in place if wanted; an activation fused."""

    name = "batch-norm"
    ops: ClassVar[tuple[str, ...]] = ("BatchNormalization",)
    summary = "a line per channel"
    in_place: ClassVar[tuple[int, ...]] = (0,)

    def refuses(self, node: Node, context: Context) -> str:
        """Statistics that the network computes."""
        if node.operand(0).dtype != "float32" or len(node.operand(0).shape) < 2:
            return "it takes float32 (N, C, ...)"
        if len(node.inputs) != 5 or any(i is None or i.constant is None for i in node.inputs[1:]):
            return "its scale, bias, mean and variance have to be constant"
        return "it does not update statistics" if len(node.outputs) > 1 else ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Blocked for maps, and plain."""
        return maps_and_plain(node)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Bytes moved."""
        return move_cost(node)

    def prepare(
        self, node: Node, inputs: Sequence[Storage | None], outputs: Sequence[Storage], context: Context
    ) -> Any:
        """The native layer with scale and shift, rounded once, filled up to whole blocks."""
        gamma, beta, mean, variance = (np.asarray(node.constant(i), np.float64) for i in range(1, 5))
        scale = gamma / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
        spare = -len(scale) % context.block
        lines = [np.pad(a, (0, spare)).astype(np.float32) for a in (scale, beta - mean * scale)]
        attributes = {k: v for k, v in node.attributes.items() if k.startswith("act")}
        attributes["blocked"] = int(len(outputs[0].shape) > len(node.output.shape))
        line = Node(
            node.op, node.name, attributes, (node.inputs[0], *(Operand.of(a) for a in lines)), node.outputs
        )
        return super().prepare(line, (inputs[0], None, None), outputs, context)
