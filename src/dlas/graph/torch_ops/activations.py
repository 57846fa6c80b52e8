"""Activation functions, and dropout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_ops.table import Call, Node, op

MICROSOFT = "com.microsoft"  # the operators that ONNX Runtime's own optimiser leaves in a graph

_SIMPLE: dict[str, Callable[..., Tensor]] = {
    "HardSwish": F.hardswish,
    "Mish": F.mish,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softsign": F.softsign,
    "Tanh": torch.tanh,
}
# Operator -> names and default values of its numbers, and what it computes.
_WITH_NUMBERS: dict[str, tuple[dict[str, float], Callable[..., Tensor]]] = {
    "Celu": ({"alpha": 1.0}, F.celu),
    "Elu": ({"alpha": 1.0}, F.elu),
    "HardSigmoid": ({"alpha": 0.2, "beta": 0.5}, lambda x, a, b: torch.clamp(x * a + b, 0.0, 1.0)),
    "LeakyRelu": ({"alpha": 0.01}, F.leaky_relu),
    "Selu": (
        {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
        lambda x, a, g: g * F.elu(x, a),
    ),
    "Shrink": (
        {"bias": 0.0, "lambd": 0.5},
        lambda x, b, e: torch.where(x < -e, x + b, torch.where(x > e, x - b, 0)).to(x.dtype),
    ),
    "Swish": ({"alpha": 1.0}, lambda x, a: x * torch.sigmoid(a * x)),
    "ThresholdedRelu": ({"alpha": 1.0}, lambda x, a: torch.where(x > a, x, torch.zeros_like(x))),
}


@op(*_SIMPLE)
def _simple(node: Node) -> Call:
    return _SIMPLE[node.kind]


@op(*_WITH_NUMBERS)
def _with_numbers(node: Node) -> Call:
    defaults, apply = _WITH_NUMBERS[node.kind]
    numbers = [float(node.attr(name, default)) for name, default in defaults.items()]
    return lambda x: apply(x, *numbers)


@op("Softplus")
def _softplus(node: Node) -> Call:
    return lambda x: F.softplus(x, threshold=88.0)  # torch's own threshold of 20 is only good to 2e-9


@op("Gelu")
def _gelu(node: Node) -> Call:
    approximate = node.attr("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


@op("Gelu", "BiasGelu", domain=MICROSOFT)
def _gelu_of_sum(node: Node) -> Call:
    return lambda x, bias=None: F.gelu(x if bias is None else x + bias)


@op("FastGelu", domain=MICROSOFT)
def _fast_gelu(node: Node) -> Call:
    return lambda x, bias=None: F.gelu(x if bias is None else x + bias, approximate="tanh")


@op("QuickGelu", domain=MICROSOFT)
def _quick_gelu(node: Node) -> Call:
    alpha = float(node.attr("alpha", 1.702))
    return lambda x: x * torch.sigmoid(alpha * x)


@op("PRelu")
def _prelu(node: Node) -> Call:
    return lambda x, slope: torch.where(x >= 0, x, x * slope)


@op("Softmax", "LogSoftmax", "Hardmax")
def _softmax(node: Node) -> Call:
    narrow = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax}.get(node.kind, _hardmax)

    def apply(x: Tensor, axis: int) -> Tensor:
        # Rounded to bfloat16 where products are, scores would add up to 0.998, and no longer tell what they are.
        return narrow(x.float() if torch.is_autocast_enabled("cpu") else x, axis)

    axis = node.attr("axis", -1 if node.opset >= 13 else 1)
    if node.opset >= 13:
        return lambda x: apply(x, axis)

    def flattened(x: Tensor) -> Tensor:  # before opset 13 everything from the axis on is one dimension
        return apply(x.flatten(axis), -1).reshape(x.shape)

    return flattened


def _hardmax(x: Tensor, axis: int) -> Tensor:
    """One where the maximum first is, zero elsewhere; nothing to differentiate."""
    return torch.zeros_like(x).scatter_(axis, torch.argmax(x, axis, keepdim=True), 1.0)


@op("Dropout")
def _dropout(node: Node) -> Call:
    on = node.constant(2)
    if on is not None and on.any():
        raise node.refuse("training mode is not supported: it is the module's own")
    ratio = node.number(1, "ratio", 0.5)
    return _Dropout(ratio, node.wants(1))


class _Dropout:
    """The identity, or in training elements set to zero at random and the others scaled up."""

    def __init__(self, ratio: Callable[[tuple], float], with_mask: bool) -> None:
        self._ratio = ratio
        self._with_mask = with_mask
        self.training = False

    def __call__(self, *args: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = args[0]
        mask = None
        if self.training:
            ratio = float(self._ratio(args))
            mask = torch.rand_like(x) >= ratio
            x = x * mask / (1 - ratio) if ratio < 1 else x * 0
        if not self._with_mask:
            return x
        return x, torch.ones_like(x, dtype=torch.bool) if mask is None else mask
