"""What LSTM and GRU layers have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlas.kernels.kernel import Context, Form, NativeKernel, Node

_DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh")}
_GATES = {"LSTM": 4, "GRU": 3}
_INPUTS = ("x", "w", "r", "b", "sequence_lens", "initial_h", "initial_c", "peepholes")
LEAST_SPARSITY = 0.5


class Recurrent(NativeKernel):
    """Weights and biases are constant; the activations are ONNX's defaults; layout 0.

    The attribute ``omitted`` numbers the outputs that a node does not make. Without it, one that begins with three axes
    leaves out Y.
    """

    sparse = False

    def refuses(self, node: Node, context: Context) -> str:
        """Computed weights, other activations, clipping, coupled gates, the batch first, weights that do not fit."""
        reason = _unfit(node)
        if not reason and self.sparse:
            sparsity = 1 - _density(node)
            if sparsity < LEAST_SPARSITY:
                return (
                    f"{sparsity:.0%} of its recurrent weights are 0, it takes {LEAST_SPARSITY:.0%} and more"
                )
        return reason

    def attributes(self, node: Node) -> dict[str, Any]:
        """Only what the native layer reads; lists of texts and numbers stay behind."""
        found: dict[str, Any] = {
            "direction": str(node.attributes.get("direction", "forward")),
            "linear_before_reset": int(node.attributes.get("linear_before_reset", 0)),
        }
        if "omitted" in node.attributes:
            found["omitted"] = [int(i) for i in node.attributes["omitted"]]
        return found

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """The inputs' products at the rate of `gemm`; then the bytes of R from L2, or its slices one by one."""
        steps, batch, features = node.operand(0).shape
        directions, rows, hidden = node.operand(2).shape
        inputs = steps * batch * features * rows / (2.7e9 * context.block)
        state = steps * -(-batch // 4) * rows * hidden * 4 / 8e10
        if self.sparse:
            # a slice per entry of the fullest of `block` rows, among columns that two vectors hold
            reach, density = 2 * context.block, _density(node)
            mean = reach * density
            slices = mean + 1.9 * (mean * (1 - density)) ** 0.5
            state = steps * batch * rows * hidden / (context.block * reach) * slices * 1.9e-9
        gates = steps * batch * rows / context.block * 1e-8
        return 2e-6 + directions * (inputs + state + gates)


def _density(node: Node) -> float:
    weight = node.constant(2)
    return 1.0 if weight is None or not weight.size else float(np.count_nonzero(weight)) / weight.size


def _unfit(node: Node) -> str:
    for index, name in ((1, "w"), (2, "r"), (3, "b"), (7, "peepholes")):
        operand = node.inputs[index] if index < len(node.inputs) else None
        if operand is not None and operand.constant is None:
            return f"its {name} is computed, it takes constants"
    given = node.attributes
    activations = [str(a).lower() for a in given.get("activations", ())]
    default = _DEFAULTS[node.op]
    directions = node.operand(1).shape[0]
    if activations and tuple(activations) != default * directions:
        return f"its activations are {', '.join(activations)}, it has {', '.join(default)}"
    for name, words in (
        ("clip", "it does not clip"),
        ("input_forget", "its gates are not coupled"),
        ("layout", "it takes time first"),
    ):
        if given.get(name):
            return f"{name} = {given[name]}: {words}"
    return _shapes(node, directions)


def _shapes(node: Node, directions: int) -> str:
    """What does not fit, in words."""
    steps, batch, features = node.operand(0).shape
    hidden, gates = node.operand(2).shape[-1], _GATES[node.op]
    if directions != 1 + (str(node.attributes.get("direction", "forward")) == "bidirectional"):
        return f"its weights have {directions} directions"
    state = (directions, batch, hidden)
    expected: Sequence[tuple[int, ...]] = (
        (steps, batch, features),
        (directions, gates * hidden, features),
        (directions, gates * hidden, hidden),
        (directions, 2 * gates * hidden),
        (batch,),
        state,
        state,
        (directions, 3 * hidden),
    )
    for index, operand in enumerate(node.inputs):
        if operand is None:
            continue
        wanted = "int32" if index == 4 else "float32"
        if operand.dtype != wanted or operand.shape != expected[index]:
            found, right = list(operand.shape), list(expected[index])
            return f"its {_INPUTS[index]} is {operand.dtype} {found}, it takes {wanted} {right}"
    return ""
