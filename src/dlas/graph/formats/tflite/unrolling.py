"""LSTM, GRU and RNN as one step after the other.

tflite has sequence operators, but they carry their state from one call to the next; an ONNX network starts from its
initial state every time, and so does the unrolled one. The products with the input are done once for all steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite.lowering import Lowering, Rewrite

MAX_STEPS = 1024
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_PLAIN = ("Sigmoid", "Tanh", "Relu", "Softsign", "Softplus", "HardSigmoid", "Elu")


@dataclass(frozen=True, eq=False)
class _Cell:
    """One direction of a layer.

    Attributes:
        rewrite: Where nodes are added.
        hidden: Units.
        recurrent: Weights ``(gates * hidden, hidden)`` of the state.
        bias: Bias ``(gates * hidden,)`` of the state.
        activations: Their operators, in ONNX's order.
    """

    rewrite: Rewrite
    hidden: int
    recurrent: ir.Value
    bias: ir.Value
    activations: list[str]

    def gates(self, value: ir.Value, count: int) -> list[ir.Value]:
        """The columns of each gate."""
        if count == 1:
            return [value]
        sizes = self.rewrite.ints(*[self.hidden] * count)
        return list(self.rewrite.ops("Split", value, sizes, outputs=count, axis=-1))

    def act(self, place: int, value: ir.Value) -> ir.Value:
        """An activation."""
        return self.rewrite.op(self.activations[place], value)

    def project(self, state: ir.Value, rows: slice | None = None) -> ir.Value:
        """``state @ R^T + bias``, of some rows of R only where they are given."""
        r = self.rewrite
        weight, bias = self.recurrent, self.bias
        if rows is not None:
            ends = r.ints(rows.start), r.ints(rows.stop), r.ints(0)
            weight, bias = _cut(r, weight, rows), r.op("Slice", bias, *ends)
        return r.op("Gemm", state, weight, bias, transB=1)


def _unrolled(r: Rewrite) -> list[ir.Value | None]:
    kind = r.node.op_type
    steps, batch, directions, hidden = _sizes(r)
    finals: list[list[ir.Value]] = []
    outputs: list[ir.Value] = []
    for direction in range(directions):
        backward = r.attribute("direction", "forward") == "reverse" or direction == 1
        order = range(steps)[::-1] if backward else range(steps)
        cell, products = _prepared(r, direction, steps, batch, hidden)
        states = [_initial(r, i, direction, batch, hidden) for i in ((5, 6) if kind == "LSTM" else (5,))]
        history: dict[int, ir.Value] = {}
        for step in order:
            states = _STEPS[kind](cell, products[step], states)
            history[step] = states[0]
        finals.append(states)
        along = [r.op("Unsqueeze", history[step], r.ints(0, 1)) for step in range(steps)]
        outputs.append(r.op("Concat", *along, axis=0) if steps > 1 else along[0])
    whole = r.op("Concat", *outputs, axis=1) if directions > 1 else outputs[0]
    results: list[ir.Value | None] = [whole]
    for place in range(len(r.node.outputs) - 1):
        parts = [r.op("Unsqueeze", states[place], r.ints(0)) for states in finals]
        results.append(r.op("Concat", *parts, axis=0) if directions > 1 else parts[0])
    return results


def _sizes(r: Rewrite) -> tuple[int, int, int, int]:
    kind, name = r.node.op_type, r.node.name
    steps, batch, _ = r.shape(r.input(0))
    directions, _, hidden = r.shape(r.input(2))
    if steps > MAX_STEPS:
        raise UnsupportedError(f"{kind} {name!r} has {steps} steps; up to {MAX_STEPS} are unrolled")
    for what, found in (
        ("layout", r.attribute("layout", 0)),
        ("clip", r.attribute("clip", 0.0)),
        ("input_forget", r.attribute("input_forget", 0)),
        ("peepholes", r.optional(7)),
    ):
        if found:
            raise UnsupportedError(f"{kind} {name!r}: {what} cannot be written")
    lengths = r.array(4)
    if r.optional(4) is not None and (lengths is None or (lengths != steps).any()):
        raise UnsupportedError(f"{kind} {name!r}: sequences of unlike length cannot be written")
    return steps, batch, directions, hidden


def _prepared(
    r: Rewrite, direction: int, steps: int, batch: int, hidden: int
) -> tuple[_Cell, list[ir.Value]]:
    """The cell of a direction, and ``x_t @ W^T + b`` of every step, each ``(batch, gates * hidden)``."""
    gates = _GATES[r.node.op_type]
    chosen = r.attribute("activations") or _DEFAULTS[r.node.op_type] * 2
    activations = list(chosen)[direction * len(_DEFAULTS[r.node.op_type]) :]
    if any(a not in _PLAIN for a in activations) or r.attribute("activation_alpha"):
        raise UnsupportedError(f"{r.node.op_type} {r.node.name!r}: activations {chosen} cannot be written")
    if r.optional(3) is not None:
        both = _direction(r, r.input(3), direction)
        ends = r.ints(0), r.ints(gates * hidden), r.ints(2 * gates * hidden)
        first, second = (r.op("Slice", both, ends[i], ends[i + 1], r.ints(0)) for i in (0, 1))
    else:
        first = second = r.constant(np.zeros(gates * hidden), np.float32)
    cell = _Cell(r, hidden, _direction(r, r.input(2), direction), second, activations)
    rows = r.op("Reshape", r.input(0), r.ints(steps * batch, r.shape(r.input(0))[2]))
    product = r.op("Gemm", rows, _direction(r, r.input(1), direction), first, transB=1)
    if steps == 1:
        return cell, [product]
    return cell, list(r.ops("Split", product, r.ints(*[batch] * steps), outputs=steps, axis=0))


def _direction(r: Rewrite, value: ir.Value, direction: int) -> ir.Value:
    """The part of one direction without that axis; int8 weights stay int8 behind a DequantizeLinear."""
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        parts = [
            None if v is None else ir.convenience.get_const_tensor(v)
            for v in (*producer.inputs, None, None)[:3]
        ]
        codes, scale, zero = (None if p is None else p.numpy() for p in parts)
        axis = producer.attributes.get_int("axis", 1)
        if codes is not None and scale is not None and (scale.ndim == 0 or axis == 1):
            stored = [r.constant(codes[direction]), r.constant(scale)]
            stored += [] if zero is None else [r.constant(zero)]
            return r.op("DequantizeLinear", *stored, **({"axis": 0} if scale.ndim else {}))
    return r.op("Gather", value, r.constant(direction, np.int64), axis=0)


def _cut(r: Rewrite, weight: ir.Value, rows: slice) -> ir.Value:
    """Some rows of a weight; int8 ones stay int8."""
    producer = weight.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return r.op("Slice", weight, r.ints(rows.start), r.ints(rows.stop), r.ints(0))
    parts = [ir.convenience.get_const_tensor(v) for v in producer.inputs if v is not None]
    codes, *grid = (p.numpy() for p in parts if p is not None)
    stored = [r.constant(codes[rows]), *(r.constant(g[rows] if g.ndim else g) for g in grid)]
    return r.op("DequantizeLinear", *stored, **({"axis": 0} if grid[0].ndim else {}))


def _initial(r: Rewrite, index: int, direction: int, batch: int, hidden: int) -> ir.Value:
    value = r.optional(index)
    if value is None:
        return r.constant(np.zeros((batch, hidden)), np.float32)
    return r.op("Gather", value, r.constant(direction, np.int64), axis=0)


def _lstm_step(cell: _Cell, product: ir.Value, states: list[ir.Value]) -> list[ir.Value]:
    r, (hidden, memory) = cell.rewrite, states
    enter, leave, forget, new = cell.gates(r.op("Add", product, cell.project(hidden)), 4)
    kept = r.op("Mul", cell.act(0, forget), memory)
    memory = r.op("Add", kept, r.op("Mul", cell.act(0, enter), cell.act(1, new)))
    return [r.op("Mul", cell.act(0, leave), cell.act(2, memory)), memory]


def _gru_step(cell: _Cell, product: ir.Value, states: list[ir.Value]) -> list[ir.Value]:
    r, (hidden,), n = cell.rewrite, states, cell.hidden
    update, reset, new = cell.gates(product, 3)
    if r.attribute("linear_before_reset", 0):
        of_update, of_reset, of_new = cell.gates(cell.project(hidden), 3)
        gate = cell.act(0, r.op("Add", update, of_update))
        reset = cell.act(0, r.op("Add", reset, of_reset))
        candidate = cell.act(1, r.op("Add", new, r.op("Mul", reset, of_new)))
    else:
        of_update, of_reset = cell.gates(cell.project(hidden, slice(0, 2 * n)), 2)
        gate = cell.act(0, r.op("Add", update, of_update))
        reset = cell.act(0, r.op("Add", reset, of_reset))
        candidate = cell.act(
            1, r.op("Add", new, cell.project(r.op("Mul", reset, hidden), slice(2 * n, 3 * n)))
        )
    # (1 - z) * candidate + z * hidden
    return [r.op("Add", candidate, r.op("Mul", gate, r.op("Sub", hidden, candidate)))]


def _rnn_step(cell: _Cell, product: ir.Value, states: list[ir.Value]) -> list[ir.Value]:
    return [cell.act(0, cell.rewrite.op("Add", product, cell.project(states[0])))]


_STEPS: dict[str, Callable[[_Cell, ir.Value, list[ir.Value]], list[ir.Value]]] = {
    "LSTM": _lstm_step,
    "GRU": _gru_step,
    "RNN": _rnn_step,
}
RECURRENT: dict[str, Lowering] = dict.fromkeys(_STEPS, _unrolled)
