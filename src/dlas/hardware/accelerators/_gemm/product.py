"""A convolution or dense layer of an integer network as a matrix product that an accelerator computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlas.kernels.kernel import Node
from dlas.kernels.reference.requantize import scale_sum

MOST_DEPTH = 66_000  # longer sums of int8 products could leave 32 bits
ROUNDINGS = ("double", "single")


def refusal(node: Node, rounding: str) -> str:
    """Why a ``QConv`` or ``QDense`` is no such product, or an empty string."""
    weight, given = node.constant(1), node.attributes.get("rounding")
    accepted = ("double", "away") if rounding == "double" else (rounding,)
    if weight is None:
        return "its weights are not constant"
    if given not in accepted:
        return f"it is rounded {given!r}, the accelerator rounds {rounding!r}"
    if node.op == "QConv" and (node.attributes.get("group", 1) != 1 or len(node.operand(0).shape) != 4):
        return "it is grouped"
    if len(node.operand(0).shape) not in (2, 4):
        return "its input is neither rows nor feature maps"
    depth = int(np.prod(weight.shape[1:]))
    if depth > MOST_DEPTH:
        return f"its sums are {depth} long, at most {MOST_DEPTH} are safe in 32 bits"
    if max(node.attributes["shifts"]) > 30:
        return "its scale is larger than 2**30"
    return ""


@dataclass(frozen=True)
class Product:
    """A layer as a matrix product with the way back to bytes.

    Attributes:
        weights: ``(channels, depth) int8``, what is multiplied.
        codes: The same as the hardware stores it: ``uint8`` codes of ``weight_bits`` bits.
        bias: ``(channels,) int32``, with the zero point of the input folded in.
        multipliers: ``(channels,) int32``.
        shifts: ``(channels,) int8``.
        zero_point: Of the output.
        low: Smallest output.
        high: Largest output.
        mode: Rounding, one of :data:`~dlas.hardware.rtl.requantize.MODES`.
    """

    weights: np.ndarray
    codes: np.ndarray
    bias: np.ndarray
    multipliers: np.ndarray
    shifts: np.ndarray
    zero_point: int
    low: int
    high: int
    mode: str

    def compute(self, pixels: np.ndarray) -> np.ndarray:
        """The result in NumPy, to the bit: ``(P, depth) int8`` to ``(P, channels) int8``."""
        # Floating point multiplies whole numbers without error as long as their sums fit its significand, and fast.
        largest = 128 * np.abs(self.weights.astype(np.int64)).sum(1).max(initial=0)
        kind = np.float32 if largest < 2**24 else np.float64
        sums = (pixels.astype(kind) @ self.weights.T.astype(kind)).astype(np.int64)
        total = (sums + self.bias).astype(np.int32).astype(np.int64)  # wraps, as 32 bits do
        scaled = scale_sum(total, self.multipliers, self.shifts, self.mode)
        return np.clip(scaled + self.zero_point, self.low, self.high).astype(np.int8)


@dataclass(frozen=True)
class Lowered:
    """A node as a product.

    Attributes:
        node: The node.
        product: The product; pixels and channels are columns of matrices.
        again: Columns of the left matrix that appear a second time, for weights of more than 8 bits.
    """

    node: Node
    product: Product
    again: np.ndarray

    @classmethod
    def of(cls, node: Node) -> Lowered:
        """Prepare weights and factors."""
        a = node.attributes
        weight = node.constant(1)
        assert weight is not None
        matrix = weight.reshape(len(weight), -1)
        if node.op == "QConv":  # columns in the order of a window: row, column, channel
            matrix = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
        rest = matrix.astype(np.int32)
        parts, places = [], [np.arange(0)]
        columns = np.arange(rest.shape[1])
        while len(
            columns
        ):  # uint8 weights less their zero point: the same input once more, times what is left
            parts.append(np.clip(rest, -128, 127))
            rest = rest - parts[-1]
            left = np.flatnonzero(rest.any(0))
            rest, columns = rest[:, left], columns[left]
            places.append(columns)
        again, whole = np.concatenate(places), np.concatenate(parts, 1).astype(np.int8)
        unsigned = node.operand(0).dtype == "uint8"
        zero = int(a["x_zero_point"]) - (128 if unsigned else 0)
        given = node.constant(2)
        bias = np.zeros(len(weight), np.int64) if given is None else given.astype(np.int64)
        bias = bias - zero * whole.astype(np.int64).sum(1)
        moved = 128 if node.output.dtype == "uint8" else 0
        count = len(weight)
        product = Product(
            whole,
            whole.view(np.uint8),
            bias.astype(np.int32),
            np.broadcast_to(np.array(a["multipliers"], np.int32), count),
            np.broadcast_to(np.array(a["shifts"], np.int8), count),
            int(a["y_zero_point"]) - moved,
            int(a["act_min"]) - moved,
            int(a["act_max"]) - moved,
            str(a["rounding"]),
        )
        return cls(node, product, again)

    @property
    def pixels(self) -> int:
        """Rows of the left matrix."""
        shape = self.node.output.shape
        return shape[0] if len(shape) == 2 else shape[0] * shape[2] * shape[3]

    def rows(self, x: np.ndarray) -> np.ndarray:
        """The left matrix of an input, ``(pixels, depth) int8``."""
        if x.dtype == np.uint8:
            x = (x ^ 0x80).view(np.int8)
        flat = x if self.node.op == "QDense" else self._windows(x)
        flat = flat.reshape(self.pixels, -1)
        return np.concatenate([flat, flat[:, self.again]], 1) if len(self.again) else flat

    def _windows(self, x: np.ndarray) -> np.ndarray:
        """im2col: ``(N, C, H, W) int8`` to ``(N, OH, OW, KH, KW, C)``, padded with the zero point."""
        a = self.node.attributes
        (kh, kw), (sh, sw), (dh, dw) = a["kernel_shape"], a["strides"], a["dilations"]
        top, left, bottom, right = a["pads"]
        oh, ow = self.node.output.shape[2:]
        zero = int(a["x_zero_point"]) - (128 if self.node.operand(0).dtype == "uint8" else 0)
        last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        if top or left or bottom or right:
            last = np.pad(last, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=zero)
        if kh == kw == 1:
            return last[:, : sh * (oh - 1) + 1 : sh, : sw * (ow - 1) + 1 : sw]
        windows = np.lib.stride_tricks.sliding_window_view(
            last, ((kh - 1) * dh + 1, (kw - 1) * dw + 1), axis=(1, 2)
        )
        return windows[:, : sh * (oh - 1) + 1 : sh, : sw * (ow - 1) + 1 : sw, :, ::dh, ::dw].transpose(
            0, 1, 2, 4, 5, 3
        )

    def output(self, result: np.ndarray) -> np.ndarray:
        """``(pixels, channels) int8`` as the node's output."""
        if self.node.output.dtype == "uint8":
            result = result.view(np.uint8) ^ 0x80
        shape = self.node.output.shape
        if len(shape) == 2:
            return result
        return np.ascontiguousarray(result.reshape(shape[0], shape[2], shape[3], -1).transpose(0, 3, 1, 2))
