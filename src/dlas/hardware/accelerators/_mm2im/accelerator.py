"""A transposed convolution that the accelerator is ready to compute, and random ones to try it with."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlas.hardware.accelerator import Accelerator, Cycles, Layer
from dlas.hardware.accelerators._mm2im.geometry import Geometry
from dlas.hardware.accelerators._mm2im.schedule import HEADERS, Schedule, Shape
from dlas.hardware.accelerators._mm2im.transposed import Transposed
from dlas.hardware.rtl.sizes import BUS_BYTES
from dlas.kernels.kernel import Node, Operand
from dlas.kernels.reference.requantize import quantize_multiplier


class TransposedLayer(Layer):
    """A ``QConvTranspose`` with its weights in the order of the hardware and its schedule."""

    def __init__(self, accelerator: Accelerator, geometry: Geometry, node: Node) -> None:
        self._accelerator, self._layer = accelerator, Transposed.of(node)
        self._schedule = Schedule(geometry, Shape.of(node))
        self._counters = self._schedule.cycles()

    def spans(self) -> list[tuple[str, str, int, int]]:
        """See :meth:`Layer.spans`."""
        return self._schedule.spans()

    def buffers(self) -> dict[str, tuple[int, int]]:
        """See :meth:`Layer.buffers`."""
        return self._schedule.buffers()

    def run(self, inputs: np.ndarray, level: str) -> tuple[np.ndarray, Cycles]:
        """See :meth:`Layer.run`."""
        s, pixels = self._schedule, self._layer.pixels(inputs)
        if level == "tlm":
            result, counters = self._layer.compute(pixels), self._counters
        else:
            from dlas.hardware.accelerators._mm2im.driver import pack, unpack

            words, counters = self._accelerator.simulator.run(
                pack(self._layer, pixels, s), s.result_words, hesitation=self._accelerator.hesitation
            )
            result = unpack(words, s)
        sent = HEADERS + 2 * s.groups + counters["load_weights"] + counters["load_inputs"]
        cycles = Cycles(
            counters, s.shape.macs, s.geometry.multipliers, BUS_BYTES * sent, BUS_BYTES * counters["store"]
        )
        return self._layer.output(result), cycles


def random_node(random: np.random.Generator, rounding: str) -> tuple[Node, np.ndarray]:
    """A transposed convolution of random shape, and an input; kernels may be smaller than the stride."""

    def number(low: int, high: int) -> int:
        return int(random.integers(low, high + 1))

    wide = number(0, 3) == 0  # rows so long that few of them fit
    channels, depth, images = number(1, 12), number(1, 8 if wide else 40), number(1, 2)
    kernel, strides = (number(1, 3 if wide else 5), number(1, 5)), (number(1, 3), number(1, 3))
    inputs = number(1, 6), number(1, 20 if wide else 7)
    natural = [(n - 1) * s + k for n, s, k in zip(inputs, strides, kernel, strict=True)]
    before = [number(0, min(k - 1, n - 1)) for k, n in zip(kernel, natural, strict=True)]
    after = [number(0, min(k + 1, n - b - 1)) for k, n, b in zip(kernel, natural, before, strict=True)]
    # Rows and columns beyond what a tap reaches, as ONNX's output_padding adds them.
    more = [number(0, s - 1) if a == 0 else 0 for s, a in zip(strides, after, strict=True)]
    size = [n - b - a + e for n, b, a, e in zip(natural, before, after, more, strict=True)]
    factors = [quantize_multiplier(float(f)) for f in np.exp(random.uniform(-9, -5, channels))]
    low, high = sorted(random.integers(-128, 128, 2).tolist())
    attributes: dict[str, Any] = {
        "kernel_shape": kernel, "strides": strides, "dilations": (1, 1), "pads": (*before, *after), "group": 1,
        "x_zero_point": number(-128, 127), "y_zero_point": number(-128, 127), "act_min": low, "act_max": high,
        "multipliers": tuple(f[0] for f in factors), "shifts": tuple(f[1] for f in factors), "rounding": rounding,
    }  # fmt: skip
    weight = random.integers(-127, 128, (depth, channels, *kernel)).astype(np.int8)
    bias = Operand.of(random.integers(-20_000, 20_000, channels).astype(np.int32))
    x = random.integers(-128, 128, (images, depth, *inputs)).astype(np.int8)
    operands = (Operand(x.shape, "int8"), Operand.of(weight), bias)
    return Node(
        "QConvTranspose", "trial", attributes, operands, (Operand((images, channels, *size), "int8"),)
    ), x
