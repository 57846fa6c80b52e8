"""Reading of LSTM operators, over a sequence or one step at a time.

A plain LSTM (with or without peepholes, with coupled input and forget gates) is ONNX's. A projection, layer
normalisation or a clipped cell has no place there, so the steps are written out one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite.ops.recurrent import check_state, give_both, joined, sequence
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation

MAX_STEPS = 1000  # steps that are written out
_NORM_FLOOR = 1e-8  # what LiteRT adds to the variance in layer normalisation
_INTEGER_NOTE = (
    "an integer LSTM runs in float between quantised ends; LiteRT rounds its gates and state in every step"
)


@dataclass(frozen=True)
class Cell:
    """The tensors of one direction; -1 for one left out. Gates are in the order input, forget, cell, output.

    Attributes:
        x: Data, for the scales of integer biases.
        weights: Four, (units, features).
        recurrent: Four, (units, outputs).
        peepholes: Three, of the input, forget and output gate.
        biases: Four.
        projection: Weights and bias.
        norms: Four scales of layer normalisation.
        states: Output state and cell state.
        function: Activation of cell input and output.
        cell_clip: Bound of the cell state, 0 for none.
        projection_clip: Bound of the projected output, 0 for none.
    """

    x: int
    weights: Sequence[int]
    recurrent: Sequence[int]
    peepholes: Sequence[int]
    biases: Sequence[int]
    projection: Sequence[int]
    norms: Sequence[int]
    states: Sequence[int]
    function: str
    cell_clip: float
    projection_clip: float

    @property
    def coupled(self) -> bool:
        """Whether the input gate is one minus the forget gate."""
        return self.weights[0] < 0

    @property
    def plain(self) -> bool:
        """Whether ONNX's LSTM says it all."""
        extra = max(*self.projection, *self.norms) >= 0
        return not extra and not self.cell_clip and self.function in ("TANH", "RELU")


def _coupled(gates: Sequence[int]) -> tuple[list[int], list[int]]:
    """Tensors and signs: sigmoid(-a) is 1 - sigmoid(a), so a coupled input gate has the forget gate's, negated."""
    first = gates[1] if gates[0] < 0 else gates[0]
    return [first, *gates[1:]], [-1 if gates[0] < 0 else 1, *[1] * (len(gates) - 1)]


def _onnx_order(gates: Sequence[int]) -> tuple[list[int], list[int]]:
    tensors, signs = _coupled(gates)
    order = (0, 3, 1, 2) if len(gates) == 4 else (0, 2, 1)  # input, output, forget, cell
    return [tensors[n] for n in order], [signs[n] for n in order]


def _run(r: Reader, cell: Cell, x: str, reverse: bool, steps: int) -> str:
    """(time, batch, features) to (time, batch, outputs)."""
    check_state(r, *cell.states)
    if r.is_on_grid(cell.x):
        r.note(_INTEGER_NOTE)
    if not cell.plain:
        return _written_out(r, cell, x, reverse, steps)
    units = r.shape(cell.weights[1])[0]
    tensors, signs = _onnx_order(cell.biases)
    parts = [_bias(r, cell, i, n) for n, i in zip((0, 3, 1, 2), tensors, strict=True)]
    parts = [part if s > 0 else r.emit("Neg", [part]) for part, s in zip(parts, signs, strict=True)]
    parts.append(r.initializer(np.zeros(4 * units, np.float32), "zeros"))
    bias = r.emit("Unsqueeze", [r.emit("Concat", parts, axis=0), r.int64([0])])
    inputs = [x, joined(r, *_onnx_order(cell.weights)), joined(r, *_onnx_order(cell.recurrent)), bias]
    if cell.peepholes[1] >= 0:
        inputs += ["", "", "", joined(r, *_onnx_order(cell.peepholes))]
    kind = {"TANH": "Tanh", "RELU": "Relu"}[cell.function]
    name = r.emit("LSTM", inputs, hidden_size=units, direction="reverse" if reverse else "forward",
                  activations=["Sigmoid", kind, kind])  # fmt: skip
    return r.emit("Squeeze", [name, r.int64([1])])


def _bias(r: Reader, cell: Cell, i: int, gate: int) -> str:
    """A bias of one gate as numbers."""
    weight = cell.weights[gate] if cell.weights[gate] >= 0 else cell.weights[1]
    if max(cell.norms) >= 0:  # added behind the normalisation, on a grid of its own
        return r.real(i, (0,))
    return r.bias(i, cell.x, weight)[0]


def _written_out(r: Reader, cell: Cell, x: str, reverse: bool, steps: int) -> str:
    if steps > MAX_STEPS:
        raise UnsupportedError(
            f"a {r.operation.kind} over {steps} steps with a projection, layer normalisation or a clipped cell cannot "
            f"be read; at most {MAX_STEPS} steps are written out"
        )
    gates = [n for n in range(4) if not (n == 0 and cell.coupled)]
    turned = {}
    for n in gates:
        turned[n] = tuple(
            r.emit("Transpose", [r.weights(group[n], (0, 1))], perm=[1, 0])
            for group in (cell.weights, cell.recurrent)
        )
    sums = {n: r.emit("MatMul", [x, turned[n][0]]) for n in gates}
    units, outputs = r.shape(cell.weights[1])[0], r.shape(cell.recurrent[1])[1]
    h, c = (r.initializer(np.zeros((1, size), np.float32), "zeros") for size in (outputs, units))
    biases = {n: _bias(r, cell, cell.biases[n], n) for n in gates}
    found = []
    for t in range(steps)[:: -1 if reverse else 1]:
        now = {n: r.emit("Gather", [sums[n], r.number(t, "int64")], axis=0) for n in gates}
        before = {n: r.emit("Add", [now[n], r.emit("MatMul", [h, turned[n][1]])]) for n in gates}
        h, c = _step(r, cell, before, c, biases)
        found.append(r.emit("Unsqueeze", [h, r.int64([0])]))
    return r.emit("Concat", found[:: -1 if reverse else 1], axis=0)


def _step(r: Reader, cell: Cell, sums: dict[int, str], c: str, biases: dict[int, str]) -> tuple[str, str]:
    """Output and cell state after one step."""
    places = {0: 0, 1: 1, 3: 2}  # gate: its peephole

    def gate(n: int, state: str) -> str:
        total = sums[n]
        peephole = cell.peepholes[places[n]] if n in places else -1
        if peephole >= 0:
            total = r.emit("Add", [total, r.emit("Mul", [state, r.real(peephole, (0,))])])
        if cell.norms[n] >= 0:
            total = _normalised(r, total, cell.norms[n])
        total = r.emit("Add", [total, biases[n]])
        return _bent(r, cell.function, total) if n == 2 else r.emit("Sigmoid", [total])

    forget = gate(1, c)
    let_in = r.emit("Sub", [r.number(1.0), forget]) if cell.coupled else gate(0, c)
    c = r.emit("Add", [r.emit("Mul", [forget, c]), r.emit("Mul", [let_in, gate(2, c)])])
    if cell.cell_clip > 0:
        c = r.clip(c, -cell.cell_clip, cell.cell_clip)
    h = r.emit("Mul", [gate(3, c), _bent(r, cell.function, c)])
    weights, bias = cell.projection
    if weights >= 0:
        h = r.emit("MatMul", [h, r.emit("Transpose", [r.weights(weights, (0, 1))], perm=[1, 0])])
        if bias >= 0:
            h = r.emit("Add", [h, r.real(bias, (0,))])
        if cell.projection_clip > 0:
            h = r.clip(h, -cell.projection_clip, cell.projection_clip)
    return h, c


def _normalised(r: Reader, name: str, scale: int) -> str:
    off = r.emit("Sub", [name, r.emit("ReduceMean", [name, r.int64([1])], keepdims=1)])
    variance = r.emit("ReduceMean", [r.emit("Mul", [off, off]), r.int64([1])], keepdims=1)
    deviation = r.emit("Sqrt", [r.emit("Add", [variance, r.number(_NORM_FLOOR)])])
    return r.emit("Mul", [r.emit("Div", [off, deviation]), r.real(scale, (0,))])


def _bent(r: Reader, function: str, name: str) -> str:
    if function == "NONE":
        return name
    if function in ("TANH", "RELU"):
        return r.emit({"TANH": "Tanh", "RELU": "Relu"}[function], [name])
    bounds = {"RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}.get(function)
    if bounds is None:
        raise UnsupportedError(f"activation {function} of a {r.operation.kind} cannot be read")
    return r.clip(name, *bounds)


def _one_way(r: Reader, op: Operation, options: str) -> Cell:
    o = r.options(op, options)
    if getattr(o, "diagonalRecurrentTensors", False):
        raise UnsupportedError(f"a {op.kind} with diagonal recurrent weights cannot be read")
    t = (*op.inputs, -1, -1, -1, -1)[:24]
    return Cell(t[0], t[1:5], t[5:9], t[9:12], t[12:16], t[16:18], t[20:24], t[18:20],
                r.activation_name(o.fusedActivationFunction), o.cellClip, o.projClip)  # fmt: skip


def _read_sequence(r: Reader, op: Operation) -> None:
    o = r.options(op, "UnidirectionalSequenceLSTMOptions")
    cell = _one_way(r, op, "UnidirectionalSequenceLSTMOptions")
    x, perm = sequence(r, op.inputs[0], o.timeMajor)
    steps = r.shape(op.inputs[0])[perm[0]]
    r.give(op.outputs[0], _run(r, cell, x, False, steps), perm)


def _read_step(r: Reader, op: Operation) -> None:
    if r.options(op, "LSTMOptions").kernelType == 1:
        _read_basic(r, op)
        return
    cell = _one_way(r, op, "LSTMOptions")
    x = r.emit("Unsqueeze", [r.real(op.inputs[0], (0, 1)), r.int64([0])])
    r.give(op.outputs[0], r.emit("Squeeze", [_run(r, cell, x, False, 1), r.int64([0])]), (0, 1))


def _read_basic(r: Reader, op: Operation) -> None:
    """The older kernel: one weight for data and state, states handed in and out."""
    x, h, w, b, c = op.inputs
    if len(op.outputs) > 4:
        raise ValueError(f"{len(op.outputs)} outputs")
    both = r.emit("Concat", [r.real(x, (0, 1)), r.real(h, (0, 1))], axis=1)
    sums = r.emit("Gemm", [both, r.weights(w, (0, 1)), *r.bias(b, x, w)], transB=1)
    parts = r.emit("Split", [sums, r.int64([r.shape(w)[0] // 4] * 4)], 4, axis=1)
    let_in, forget, output = (r.emit("Sigmoid", [n]) for n in (parts, f"{parts}:2", f"{parts}:3"))
    new = r.emit("Mul", [let_in, r.emit("Tanh", [f"{parts}:1"])])
    state = r.emit("Add", [r.emit("Mul", [forget, r.real(c, (0, 1))]), new])
    found = [r.emit("Mul", [output, r.emit("Tanh", [state])]), state, both, sums]
    for out, name in zip(op.outputs, found, strict=False):
        if not r.tensor(out).variable:
            r.give(out, name, (0, 1))


def _linked(r: Reader, x: str, auxiliary: int, weights: int, reverse: bool, time_major: bool) -> str:
    """What a direction reads; an auxiliary input alone replaces the backward one's, weights of its own are refused."""
    if weights >= 0:
        raise UnsupportedError(f"a {r.operation.kind} with weights for an auxiliary input cannot be read")
    return x if auxiliary < 0 or not reverse else sequence(r, auxiliary, time_major)[0]


def _read_both_ways(r: Reader, op: Operation) -> None:
    o = r.options(op, "BidirectionalSequenceLSTMOptions")
    t = (*op.inputs, *[-1] * 9)[:48]
    x, perm = sequence(r, t[0], o.timeMajor)
    steps = r.shape(t[0])[perm[0]]
    function = r.activation_name(o.fusedActivationFunction)
    names = []
    for start, states, extra, reverse in ((1, t[35:37], t[40:44], False), (18, t[37:39], t[44:48], True)):
        cell = Cell(t[0], t[start : start + 4], t[start + 4 : start + 8], t[start + 8 : start + 11],
                    t[start + 11 : start + 15], t[start + 15 : start + 17], (-1,) * 4, states, function,
                    o.cellClip, o.projClip)  # fmt: skip
        given = _linked(r, x, t[39], max(extra), reverse, o.timeMajor)
        names.append(_run(r, cell, given, reverse, steps))
    give_both(r, op, names, o.mergeOutputs, perm)


RULES = [
    Rule(("UNIDIRECTIONAL_SEQUENCE_LSTM",), (), _read_sequence),
    Rule(("BIDIRECTIONAL_SEQUENCE_LSTM",), (), _read_both_ways),
    Rule(("LSTM",), (), _read_step),
]
