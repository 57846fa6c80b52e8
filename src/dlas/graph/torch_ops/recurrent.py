"""Recurrent layers, step by step; gates, outputs and corner cases as the ONNX operators define them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_ops.table import Call, Node, op

Activation = Callable[[Tensor], Tensor]
# (input of the step times W plus Wb, state) -> state; a state is (h,) or (h, c)
Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]

# Name -> default alpha, default beta (None: takes none), and what it computes.
_ACTIVATIONS: dict[str, tuple[float | None, float | None, Callable[..., Tensor]]] = {
    "affine": (1.0, 0.0, lambda x, a, b: a * x + b),
    "elu": (1.0, None, F.elu),
    "hardsigmoid": (0.2, 0.5, lambda x, a, b: torch.clamp(a * x + b, 0, 1)),
    "leakyrelu": (0.01, None, F.leaky_relu),
    "relu": (None, None, torch.relu),
    "scaledtanh": (1.0, 1.0, lambda x, a, b: a * torch.tanh(b * x)),
    "sigmoid": (None, None, torch.sigmoid),
    "softplus": (None, None, F.softplus),
    "softsign": (None, None, F.softsign),
    "tanh": (None, None, torch.tanh),
    "thresholdedrelu": (1.0, None, lambda x, a: torch.where(x > a, x, 0)),
}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}


def _activations(node: Node, directions: int) -> list[list[Activation]]:
    """The activations of each direction; alphas and betas go, in order, to those that take them.

    As in ONNX Runtime, ``clip`` bounds the gates and not the cell state, which the third activation of an LSTM reads.
    """
    names = node.attr("activations") or _DEFAULTS[node.kind] * directions
    alphas, betas = list(node.attr("activation_alpha", ())), list(node.attr("activation_beta", ()))
    clip = node.attr("clip", None)
    made: list[Activation] = []
    for place, name in enumerate(names):
        if name.lower() not in _ACTIVATIONS:
            raise node.refuse(f"the activation {name!r} is not known")
        *defaults, apply = _ACTIVATIONS[name.lower()]
        numbers = [
            given.pop(0) if given else default
            for given, default in zip((alphas, betas), defaults, strict=True)
            if default is not None
        ]
        made.append(_clipped(apply, numbers, None if node.kind == "LSTM" and place % 3 == 2 else clip))
    each = len(made) // directions
    return [made[i * each : (i + 1) * each] for i in range(directions)]


def _clipped(apply: Callable[..., Tensor], numbers: list[float], clip: float | None) -> Activation:
    if clip is None:
        return lambda x: apply(x, *numbers)
    return lambda x: apply(torch.clamp(x, -clip, clip), *numbers)


@dataclass(frozen=True)
class _Weights:
    """Weights of one direction: ``(hidden, hidden * gates)`` recurrent, ``(hidden * gates,)`` biases."""

    recurrent: Tensor
    bias: Tensor | None
    peephole: Tensor | None


def _rnn_step(node: Node, weights: _Weights, acts: list[Activation]) -> Step:
    (f,) = acts

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (f(x + F.linear(state[0], weights.recurrent, weights.bias)),)

    return step


def _gru_step(node: Node, weights: _Weights, acts: list[Activation]) -> Step:
    f, g = acts
    before = bool(node.attr("linear_before_reset", 0))  # the recurrent product before the reset gate
    size = weights.recurrent.shape[1]
    gates, candidate = weights.recurrent.split([2 * size, size])
    gate_bias, bias = (None, None) if weights.bias is None else weights.bias.split([2 * size, size])

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = state
        xg, xc = x.split([2 * size, size], -1)
        z, r = f(xg + F.linear(h, gates, gate_bias)).chunk(2, -1)
        inner = r * F.linear(h, candidate, bias) if before else F.linear(r * h, candidate, bias)
        return ((1 - z) * g(xc + inner) + z * h,)

    return step


def _lstm_step(node: Node, weights: _Weights, acts: list[Activation]) -> Step:
    f, g, o_act = acts
    coupled = bool(node.attr("input_forget", 0))
    size = weights.recurrent.shape[1]
    pi, po, pf = (None,) * 3 if weights.peephole is None else weights.peephole.split(size)

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        i, o, forget, cell = (x + F.linear(h, weights.recurrent, weights.bias)).chunk(4, -1)
        i = f(i if pi is None else i + pi * c)
        forget = 1 - i if coupled else f(forget if pf is None else forget + pf * c)
        c = forget * c + i * g(cell)
        o = f(o if po is None else o + po * c)
        return o * o_act(c), c

    return step


_STEPS = {"RNN": _rnn_step, "GRU": _gru_step, "LSTM": _lstm_step}


@op("RNN", "GRU", "LSTM")
def _recurrent(node: Node) -> Call:
    direction = node.attr("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    activations = _activations(node, len(backwards))
    states = 2 if node.kind == "LSTM" else 1
    batch_first = node.attr("layout", 0)

    def call(x: Tensor, w: Tensor, r: Tensor, *others: Any) -> tuple[Tensor, ...]:
        bias, lengths, *rest = (*others, *[None] * (5 - len(others)))
        peephole = rest[2] if states == 2 else None
        first = [s.transpose(0, 1) if batch_first and s is not None else s for s in rest[:states]]
        x = x.transpose(0, 1) if batch_first else x
        half = r.shape[-1] * _GATES[node.kind]
        outputs, finals = [], []
        for d, backward in enumerate(backwards):
            weights = _Weights(
                r[d], None if bias is None else bias[d, half:], None if peephole is None else peephole[d]
            )
            step = _STEPS[node.kind](node, weights, activations[d])
            through = F.linear(x, w[d], None if bias is None else bias[d, :half])
            zero = x.new_zeros(x.shape[1], r.shape[-1])
            state = tuple(zero if s is None else s[d] for s in first)
            y, state = _run(step, through, state, lengths, backward)
            outputs.append(y)
            finals.append(state)
        y = torch.stack(outputs, 1)
        lasts = [torch.stack(parts) for parts in zip(*finals, strict=True)]
        if batch_first:
            y, lasts = y.permute(2, 0, 1, 3), [s.transpose(0, 1) for s in lasts]
        return (y, *lasts)[: node.outputs]

    return call


def _run(
    step: Step, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None, backward: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All steps of ``(steps, batch, ...)`` inputs; past the end of a sequence its state stays and the output is 0."""
    alive = None
    if lengths is not None:
        steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        alive = (steps < lengths.to(x.device)).unsqueeze(-1)  # (steps, batch, 1)
    outputs: list[Tensor] = []
    for t in reversed(range(x.shape[0])) if backward else range(x.shape[0]):
        after = step(x[t], state)
        if alive is not None:
            state = tuple(torch.where(alive[t], a, b) for a, b in zip(after, state, strict=True))
            outputs.append(torch.where(alive[t], after[0], 0))
        else:
            state = after
            outputs.append(after[0])
    return torch.stack(outputs[::-1] if backward else outputs), state
