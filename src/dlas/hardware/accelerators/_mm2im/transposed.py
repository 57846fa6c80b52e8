"""A transposed convolution of an integer network, as the accelerator computes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlas.hardware.accelerators._mm2im.geometry import MOST_KERNEL, MOST_SIZE, MOST_STRIDE
from dlas.kernels.kernel import Node
from dlas.kernels.reference.quantized_transpose import transposed_sums
from dlas.kernels.reference.requantize import scale_sum

MOST_DEPTH = 66_000  # longer sums of int8 products could leave 32 bits


def refusal(node: Node, rounding: str) -> str:
    """Why a ``QConvTranspose`` cannot be computed, or an empty string."""
    weight, a = node.constant(1), node.attributes
    if weight is None or weight.dtype != np.int8:
        return "its weights are not constant int8"
    if a.get("rounding") != rounding:
        return f"it is rounded {a.get('rounding')!r}, the accelerator rounds {rounding!r}"
    if a.get("group", 1) != 1 or any(d != 1 for d in a["dilations"]):
        return "it has groups or a dilation"
    (kh, kw), depth = weight.shape[2:], weight.shape[0] * weight.shape[2] * weight.shape[3]
    if max(kh, kw) > MOST_KERNEL or max(a["strides"]) > MOST_STRIDE:
        return f"its kernel of {kh} x {kw} or stride is larger than {MOST_KERNEL}"
    if a["pads"][0] >= kh or a["pads"][1] >= kw or min(a["pads"][:2]) < 0:
        return "its padding is not smaller than its kernel"
    if max(*node.operand(0).shape[2:], *node.output.shape[2:]) > MOST_SIZE:
        return f"it has more than {MOST_SIZE} rows or columns"
    if depth > MOST_DEPTH:
        return f"its sums are up to {depth} long, at most {MOST_DEPTH} are safe in 32 bits"
    if max(a["shifts"]) > 30:
        return "its scale is larger than 2**30"
    return ""


@dataclass(frozen=True)
class Transposed:
    """A layer with its weights in the order of the hardware and its way back to bytes.

    Attributes:
        node: The node.
        weights: ``(channels, KH, KW, depth) int8``.
        bias: ``(channels,) int32``.
        multipliers: ``(channels,) int32``.
        shifts: ``(channels,) int8``.
        x_zero: Zero point of the input as int8.
        zero_point: Of the output as int8.
        low: Smallest output.
        high: Largest output.
        mode: Rounding.
    """

    node: Node
    weights: np.ndarray
    bias: np.ndarray
    multipliers: np.ndarray
    shifts: np.ndarray
    x_zero: int
    zero_point: int
    low: int
    high: int
    mode: str

    @classmethod
    def of(cls, node: Node) -> Transposed:
        """Prepare weights and factors."""
        a, weight, bias = node.attributes, node.constant(1), node.constant(2)
        assert weight is not None
        count = weight.shape[1]
        moved = 128 if node.output.dtype == "uint8" else 0
        return cls(
            node,
            np.ascontiguousarray(weight.transpose(1, 2, 3, 0)),
            np.zeros(count, np.int32) if bias is None else bias,
            np.broadcast_to(np.array(a["multipliers"], np.int32), count),
            np.broadcast_to(np.array(a["shifts"], np.int8), count),
            int(a["x_zero_point"]) - (128 if node.operand(0).dtype == "uint8" else 0),
            int(a["y_zero_point"]) - moved,
            int(a["act_min"]) - moved,
            int(a["act_max"]) - moved,
            str(a["rounding"]),
        )

    def pixels(self, x: np.ndarray) -> np.ndarray:
        """``(N, C, H, W)`` bytes as ``(N, H, W, C) int8``."""
        if x.dtype == np.uint8:
            x = (x ^ 0x80).view(np.int8)
        return x.transpose(0, 2, 3, 1)

    def compute(self, pixels: np.ndarray) -> np.ndarray:
        """The result in NumPy, to the bit: ``(N, H, W, C) int8`` to ``(N, OH, OW, channels) int8``."""
        a = self.node.attributes
        sums = transposed_sums(
            pixels.astype(np.int16) - self.x_zero, self.weights,
            size=self.node.output.shape[2:], strides=a["strides"], begins=a["pads"][:2],
        )  # fmt: skip
        total = (sums + self.bias).astype(np.int32).astype(np.int64)  # wraps, as 32 bits do
        scaled = scale_sum(total, self.multipliers, self.shifts, self.mode)
        return np.clip(scaled + self.zero_point, self.low, self.high).astype(np.int8)

    def output(self, result: np.ndarray) -> np.ndarray:
        """``(N, OH, OW, channels) int8`` as the node's output."""
        if self.node.output.dtype == "uint8":
            result = result.view(np.uint8) ^ 0x80
        return np.ascontiguousarray(result.transpose(0, 3, 1, 2))
