"""Functions of single elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.elementwise._layouts import channels, maps_and_plain, move_cost
from dlas.kernels.layout import Storage

_Parameters = tuple[str, float, float]  # native function, its two parameters


def _alpha(default: float, beta: float = 0.0) -> Callable[[Node, str], _Parameters]:
    def read(node: Node, op: str) -> _Parameters:
        return op, float(node.attributes.get("alpha", default)), float(node.attributes.get("beta", beta))

    return read


def _clip(node: Node, op: str) -> _Parameters:
    bounds = []
    for index, (attribute, default) in enumerate((("min", -math.inf), ("max", math.inf)), 1):
        constant = node.constant(index)
        bounds.append(float(node.attributes.get(attribute, default) if constant is None else constant))
    return op, bounds[0], bounds[1]


def _gelu(node: Node, op: str) -> _Parameters:
    return ("GeluTanh" if node.attributes.get("approximate") == "tanh" else op), 0.0, 0.0


def _selu(node: Node, op: str) -> _Parameters:
    alpha = float(node.attributes.get("alpha", 1.67326319217681884765625))
    return op, alpha, float(node.attributes.get("gamma", 1.05070102214813232421875))


_READ = {
    "Clip": _clip,
    "Elu": _alpha(1.0),
    "Gelu": _gelu,
    "HardSigmoid": _alpha(0.2, 0.5),
    "LeakyRelu": _alpha(0.01),
    "Selu": _selu,
}
_PLAIN_OPS = (
    "Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round",
    "Sigmoid", "Sign", "Silu", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh",
)  # fmt: skip


@kernels.register("unary")
class Unary(NativeKernel):
    """Plain or blocked, in place if the output is given the input's memory.

    NaN and infinities go through as in ONNX Runtime, but Relu, HardSwish and HardSigmoid may turn a NaN into a number.
    ``Silu`` is x Sigmoid(x), an operator of the engine.
    """

    name = "unary"
    ops: ClassVar[tuple[str, ...]] = tuple(sorted((*_READ, *_PLAIN_OPS)))
    summary = "functions of single elements, in vectors"
    in_place: ClassVar[tuple[int, ...]] = (0,)

    def refuses(self, node: Node, context: Context) -> str:
        """float32 and, for Clip, constant bounds."""
        if node.operand(0).dtype != "float32":
            return f"it takes float32, not {node.operand(0).dtype}"
        if any(i is not None and i.constant is None for i in node.inputs[1:]):
            return f"the bounds of {node.op} are computed by the network, it takes constants"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Blocked for maps, and plain."""
        return maps_and_plain(node)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Bytes moved; transcendental functions are bound by arithmetic."""
        slow = node.op not in ("Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Neg", "Abs")
        return move_cost(node) + (2e-9 / context.block * 4 * node.output.size if slow else 0.0)

    def prepare(
        self, node: Node, inputs: Sequence[Storage | None], outputs: Sequence[Storage], context: Context
    ) -> Any:
        """One native layer computes all functions."""
        alone = Node("Unary", node.name, self.attributes(node), node.inputs[:1], node.outputs)
        return super().prepare(alone, inputs[:1], outputs, context)

    def attributes(self, node: Node) -> dict[str, Any]:
        """The function, its parameters, and how many channels the last block is counted from."""
        if "function" in node.attributes:
            return dict(node.attributes)
        function, p, q = _READ.get(node.op, lambda _, op: (op, 0.0, 0.0))(node, node.op)
        return {"function": function, "p": p, "q": q, "channels": channels(node)}
