"""LSTM and GRU, as ONNX (opset 14, layout 0) defines them, with the default activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.arrays import real
from dlas.kernels.reference.elementwise import sigmoid

DIRECTIONS = ("forward", "reverse", "bidirectional")


class Sequences(NamedTuple):
    """What a recurrent layer computes.

    Attributes:
        y: ``(T, directions, N, H)`` float32: hidden state after every step; 0 beyond the end of a sequence.
        y_h: ``(directions, N, H)`` float32: hidden state at the end.
        y_c: ``(directions, N, H)`` float32: cell state at the end; empty for a GRU.
    """

    y: np.ndarray
    y_h: np.ndarray
    y_c: np.ndarray


def lstm(
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray | None = None,
    *,
    sequence_lens: np.ndarray | None = None,
    initial_h: np.ndarray | None = None,
    initial_c: np.ndarray | None = None,
    peepholes: np.ndarray | None = None,
    direction: str = "forward",
) -> Sequences:
    """Long short-term memory: sigmoid gates, tanh for the cell and the output.

    Args:
        x: ``(T, N, I)`` float32.
        w: ``(directions, 4H, I)`` float32, rows in the order input, output, forget, cell.
        r: ``(directions, 4H, H)`` float32, the same order.
        b: ``(directions, 8H)`` float32: the biases of ``w``, then those of ``r``; or None.
        sequence_lens: ``(N,)`` int32: steps of each sample; None for T.
        initial_h: ``(directions, N, H)`` float32; None for zeros.
        initial_c: ``(directions, N, H)`` float32; None for zeros.
        peepholes: ``(directions, 3H)`` float32, in the order input, output, forget; None for none.
        direction: ``forward``, ``reverse`` or ``bidirectional``.

    Returns:
        All states.

    Raises:
        ShapeError: An array does not fit.
        OptionError: There is no such direction.
    """
    layer = _Layer.of(x, w, r, b, sequence_lens, direction, gates=4)
    hidden = layer.state(initial_h, "initial_h")
    cell = layer.state(initial_c, "initial_c")
    peep = np.zeros((layer.directions, 3, layer.hidden))
    if peepholes is not None:
        peep = layer.shaped(peepholes, "peepholes", 3 * layer.hidden).reshape(peep.shape)

    def step(d: int, driven: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        i, o, f, g = np.split(driven + h @ layer.r[d].T + layer.bias_r[d], 4, axis=-1)
        c_new = sigmoid(f + peep[d, 2] * c) * c + sigmoid(i + peep[d, 0] * c) * np.tanh(g)
        return sigmoid(o + peep[d, 1] * c_new) * np.tanh(c_new), c_new

    return layer.run(hidden, cell, step)


def gru(
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray | None = None,
    *,
    sequence_lens: np.ndarray | None = None,
    initial_h: np.ndarray | None = None,
    direction: str = "forward",
    linear_before_reset: bool = False,
) -> Sequences:
    """Gated recurrent unit: sigmoid gates, tanh for the new state.

    Args:
        x: ``(T, N, I)`` float32.
        w: ``(directions, 3H, I)`` float32, rows in the order update (z), reset (r), hidden (h).
        r: ``(directions, 3H, H)`` float32, the same order.
        b: ``(directions, 6H)`` float32: the biases of ``w``, then those of ``r``; or None.
        sequence_lens: ``(N,)`` int32: steps of each sample; None for T.
        initial_h: ``(directions, N, H)`` float32; None for zeros.
        direction: ``forward``, ``reverse`` or ``bidirectional``.
        linear_before_reset: Whether the reset gate scales the product with ``r`` and its bias (as in cuDNN) instead
            of the state that enters it.

    Returns:
        All states; ``y_c`` is empty.

    Raises:
        ShapeError: An array does not fit.
        OptionError: There is no such direction.
    """
    layer = _Layer.of(x, w, r, b, sequence_lens, direction, gates=3)
    size = layer.hidden

    def step(d: int, driven: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights, bias = layer.r[d], layer.bias_r[d]
        gates = sigmoid(driven[:, : 2 * size] + h @ weights[: 2 * size].T + bias[: 2 * size])
        update, reset = np.split(gates, 2, axis=-1)
        if linear_before_reset:
            fed_back = reset * (h @ weights[2 * size :].T + bias[2 * size :])
        else:
            fed_back = (reset * h) @ weights[2 * size :].T + bias[2 * size :]
        return (1 - update) * np.tanh(driven[:, 2 * size :] + fed_back) + update * h, c

    hidden = layer.state(initial_h, "initial_h")
    found = layer.run(hidden, np.zeros_like(hidden), step)
    return Sequences(found.y, found.y_h, np.zeros((0,), np.float32))


class _Layer(NamedTuple):
    """Checked arrays of a recurrent layer, in float64."""

    x: np.ndarray
    w: np.ndarray
    r: np.ndarray
    bias_w: np.ndarray
    bias_r: np.ndarray
    lengths: np.ndarray
    direction: str

    @classmethod
    def of(
        cls,
        x: np.ndarray,
        w: np.ndarray,
        r: np.ndarray,
        b: np.ndarray | None,
        sequence_lens: np.ndarray | None,
        direction: str,
        *,
        gates: int,
    ) -> _Layer:
        if direction not in DIRECTIONS:
            raise OptionError("direction", direction, "one of " + ", ".join(DIRECTIONS))
        steps, count, features = real(x, "x", 3).shape
        directions = 1 + (direction == "bidirectional")
        size = real(r, "r", 3).shape[2]
        expected = {"w": (directions, gates * size, features), "r": (directions, gates * size, size)}
        for name, array in (("w", w), ("r", r)):
            if real(array, name).shape != expected[name]:
                shape = list(expected[name])
                raise ShapeError(f"{name} has the shape {list(array.shape)}, expected {shape}")
        bias = np.zeros((directions, 2 * gates * size))
        lengths = np.full(count, steps)
        if b is not None:
            given = real(b, "b")
            if given.shape != bias.shape:
                raise ShapeError(f"b has the shape {list(given.shape)}, expected {list(bias.shape)}")
            bias = given
        if sequence_lens is not None:
            lengths = np.asarray(sequence_lens)
            if lengths.shape != (count,) or lengths.dtype.kind not in "iu":
                raise ShapeError(
                    f"sequence_lens has the shape {list(lengths.shape)}, expected [{count}] int32"
                )
            if count and not (lengths.min() >= 0 and lengths.max() <= steps):
                raise ShapeError(f"sequence_lens = {lengths.tolist()} is not within 0 .. {steps}")
        first, second = np.split(bias, 2, axis=1)
        return cls(real(x, "x"), real(w, "w"), real(r, "r"), first, second, lengths, direction)

    @property
    def directions(self) -> int:
        return len(self.w)

    @property
    def hidden(self) -> int:
        return self.r.shape[2]

    def state(self, given: np.ndarray | None, name: str) -> np.ndarray:
        shape = (self.directions, self.x.shape[1], self.hidden)
        if given is None:
            return np.zeros(shape)
        found = real(given, name)
        if found.shape != shape:
            raise ShapeError(f"{name} has the shape {list(found.shape)}, expected {list(shape)}")
        return found

    def shaped(self, given: np.ndarray, name: str, width: int) -> np.ndarray:
        found = real(given, name)
        if found.shape != (self.directions, width):
            raise ShapeError(f"{name} has the shape {list(found.shape)}, expected {[self.directions, width]}")
        return found

    def run(
        self,
        hidden: np.ndarray,
        cell: np.ndarray,
        step: Callable[[int, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    ) -> Sequences:
        steps, count, _ = self.x.shape
        y = np.zeros((steps, self.directions, count, self.hidden))
        for d in range(self.directions):
            backwards = self.direction == "reverse" or d == 1
            h, c = hidden[d], cell[d]
            for t in reversed(range(steps)) if backwards else range(steps):
                # Going backwards, a short sequence has not begun yet; going forwards, it is over.
                running = (t < self.lengths)[:, None]
                h_new, c_new = step(d, self.x[t] @ self.w[d].T + self.bias_w[d], h, c)
                h, c = np.where(running, h_new, h), np.where(running, c_new, c)
                y[t, d] = np.where(running, h_new, 0)
            hidden[d], cell[d] = h, c
        return Sequences(y.astype(np.float32), hidden.astype(np.float32), cell.astype(np.float32))
