"""Reading of recurrent operators without gates: RNN, its sequence forms and SVDF.

The state of these operators is a variable tensor that LiteRT carries from one call to the next; an ONNX network starts
from zero every time, which is LiteRT's first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite.layout import Perm
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation, Quant
from dlas.graph.formats.tflite.values import STATE_NOTE

TIME_FIRST: Perm = (0, 1, 2)
BATCH_FIRST: Perm = (1, 0, 2)


def check_state(r: Reader, *states: int) -> None:
    """Raise UnsupportedError when a state is anything but a variable, which starts at zero."""
    for i in states:
        if not r.tensor(i).variable:
            raise UnsupportedError(
                f"a {r.operation.kind} whose state is not a variable tensor cannot be read"
            )
    r.note(STATE_NOTE)


def sequence(r: Reader, i: int, time_major: bool) -> tuple[str, Perm]:
    """The input as (time, batch, features), and how the file orders these axes."""
    r.batch_free &= not time_major
    perm = TIME_FIRST if time_major else BATCH_FIRST
    return r.real(i, perm), perm


def joined(r: Reader, parts: Sequence[int], signs: Sequence[int] | None = None) -> str:
    """Constants one below the other with an axis of 1 in front; int8 ones keep their dtype where they can."""
    signs = signs or [1] * len(parts)
    tensors = [r.tensor(i) for i in parts]
    r.note_hybrid(parts[0])
    if all(t.data is not None and t.dtype == "float32" for t in tensors):
        rows = np.concatenate([t.constant() * np.float32(s) for t, s in zip(tensors, signs, strict=True)])
        return r.initializer(rows[None], tensors[0].name)
    quants = [t.quant for t in tensors]
    if all(t.data is not None and t.dtype == "int8" and _plain(t.quant) for t in tensors):
        stored = [t.constant().astype(np.int16) * s for t, s in zip(tensors, signs, strict=True)]
        levels = np.concatenate(stored)
        if levels.max(initial=0) <= 127:
            scales = np.concatenate(
                [
                    np.broadcast_to(q.scale, len(t.constant()))
                    for q, t in zip(quants, tensors, strict=True)
                    if q
                ]
            )
            whole = Quant(scales.astype(np.float32), np.zeros(len(scales), np.int64), 1)
            return r.dequantized(r.initializer(levels[None].astype(np.int8), tensors[0].name), whole, "int8")
    names = [r.real(i, tuple(range(len(r.shape(i))))) for i in parts]
    names = [name if s > 0 else r.emit("Neg", [name]) for name, s in zip(names, signs, strict=True)]
    return r.emit("Unsqueeze", [r.emit("Concat", names, axis=0), r.int64([0])])


def _plain(quant: Quant | None) -> bool:
    return quant is not None and quant.axis in (None, 0) and not quant.zero_point.any()


def _direction(r: Reader, x: str, parts: Sequence[int], function: int, reverse: bool) -> str:
    """One ONNX RNN over (time, batch, features); the result is (time, batch, units)."""
    w, recurrent, bias, state = parts
    check_state(r, state)
    units = r.shape(w)[0]
    kind = r.activation_name(function)
    known: dict[str, dict[str, Any]] = {
        "NONE": {"activations": ["Affine"], "activation_alpha": [1.0], "activation_beta": [0.0]},
        "TANH": {"activations": ["Tanh"]},
        "RELU": {"activations": ["Relu"]},
        "RELU6": {"activations": ["Relu"], "clip": 6.0},  # onnx clips what goes into the activation
        "RELU_N1_TO_1": {
            "activations": ["Affine"],
            "activation_alpha": [1.0],
            "activation_beta": [0.0],
            "clip": 1.0,
        },
    }
    if kind not in known:
        raise UnsupportedError(f"activation {kind} of a {r.operation.kind} cannot be read")
    zeros = r.initializer(np.zeros((1, units), np.float32), "zeros")
    both = r.emit("Concat", [r.emit("Unsqueeze", [r.real(bias, (0,)), r.int64([0])]), zeros], axis=1)
    direction = "reverse" if reverse else "forward"
    name = r.emit(
        "RNN",
        [x, joined(r, [w]), joined(r, [recurrent]), both],
        attributes=known[kind],
        hidden_size=units,
        direction=direction,
    )
    return r.emit("Squeeze", [name, r.int64([1])])


def _read_step(r: Reader, op: Operation) -> None:
    """One step: a sequence of length one."""
    o = r.options(op, "RNNOptions")
    x = r.emit("Unsqueeze", [r.real(op.inputs[0], (0, 1)), r.int64([0])])
    name = _direction(r, x, op.inputs[1:5], o.fusedActivationFunction, False)
    r.give(op.outputs[0], r.emit("Squeeze", [name, r.int64([0])]), (0, 1))


def _read_sequence(r: Reader, op: Operation) -> None:
    o = r.options(op, "SequenceRNNOptions")
    x, perm = sequence(r, op.inputs[0], o.timeMajor)
    r.give(op.outputs[0], _direction(r, x, op.inputs[1:5], o.fusedActivationFunction, False), perm)


def _read_both_ways(r: Reader, op: Operation) -> None:
    o = r.options(op, "BidirectionalSequenceRNNOptions")
    first, *rest = op.inputs
    if max(rest[8:], default=-1) >= 0:  # LiteRT's kernel uses or drops it depending on the order of axes
        raise UnsupportedError(f"a {op.kind} with an auxiliary input cannot be read")
    x, perm = sequence(r, first, o.timeMajor)
    ways = ((rest[:4], False), (rest[4:8], True))
    names = [_direction(r, x, parts, o.fusedActivationFunction, reverse) for parts, reverse in ways]
    give_both(r, op, names, o.mergeOutputs, perm)


def give_both(r: Reader, op: Operation, names: Sequence[str], merge: bool, perm: Perm) -> None:
    """Hand out the results of both directions, one behind the other or apart."""
    if merge:
        r.give(op.outputs[0], r.emit("Concat", names, axis=2), perm)
        return
    for out, name in zip(op.outputs, names, strict=True):
        r.give(out, name, perm)


def _read_svdf(r: Reader, op: Operation) -> None:
    """A filter per feature, then one over time; of the time filter only the newest place meets more than zeros."""
    o = r.options(op, "SVDFOptions")
    x, features, time, bias, state = op.inputs
    check_state(r, state)
    filters, memory = r.shape(time)
    if o.rank < 1 or filters % o.rank:
        raise ValueError(f"rank {o.rank} for {filters} filters")
    units = filters // o.rank
    name = r.emit("Gemm", [r.real(x, (0, 1)), r.weights(features, (0, 1))], transB=1)
    newest = r.emit("Gather", [r.real(time, (0, 1)), r.number(memory - 1, "int64")], axis=1)
    name = r.emit("Mul", [name, newest])
    name = r.emit("Reshape", [name, r.int64([-1, units, o.rank])])
    name = r.emit("ReduceSum", [name, r.int64([2])], keepdims=0)
    if bias >= 0:
        name = r.emit("Add", [name, r.real(bias, (0,))])
    r.give(op.outputs[0], r.activate(name, o.fusedActivationFunction), (0, 1))


RULES = [
    Rule(("RNN",), (), _read_step),
    Rule(("UNIDIRECTIONAL_SEQUENCE_RNN",), (), _read_sequence),
    Rule(("BIDIRECTIONAL_SEQUENCE_RNN",), (), _read_both_ways),
    Rule(("SVDF",), (), _read_svdf),
]
