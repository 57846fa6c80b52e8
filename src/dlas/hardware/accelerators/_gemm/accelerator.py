"""Base of the accelerators of integer matrix products: convolutions and dense layers, as products of matrices."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlas.hardware.accelerator import Accelerator, Cycles, Layer
from dlas.hardware.accelerators._gemm.geometry import Geometry
from dlas.hardware.accelerators._gemm.product import Lowered, refusal
from dlas.hardware.accelerators._gemm.schedule import Schedule
from dlas.hardware.rtl.sizes import BUS_BYTES
from dlas.kernels.kernel import Node, Operand
from dlas.kernels.reference.requantize import quantize_multiplier

if TYPE_CHECKING:
    from dlas.hardware.rtl.arrays import SumArray
    from dlas.hardware.rtl.bus import Design


class GemmAccelerator(Accelerator):
    """An array of multiply-accumulators behind buffers of weights and pixels; members choose array and sizes."""

    ops: ClassVar[tuple[str, ...]] = ("QConv", "QDense")
    options: Any

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """Sizes."""

    @abstractmethod
    def array(self) -> SumArray:
        """What multiplies."""

    @property
    def multipliers(self) -> int:
        """Products per cycle."""
        return self.geometry.multipliers

    @property
    def modes(self) -> tuple[str, ...]:
        """Roundings that are built: reference kernels round dense layers in a way of their own."""
        return ("double", "away") if self.options.rounding == "double" else ("single",)

    def design(self) -> Design:
        """The hardware."""
        from dlas.hardware.accelerators._gemm.design import GemmDesign

        return GemmDesign(self.geometry, self.array(), self.modes)

    def refuses(self, node: Node) -> str:
        """Grouped convolutions, weights that are computed, another rounding, sums beyond 32 bits."""
        return refusal(node, self.options.rounding)

    def lowered(self, node: Node) -> Lowered:
        """A node as a product; members with other codes for weights change it here."""
        return Lowered.of(node)

    def layer(self, node: Node) -> Layer:
        """Prepare a node; see :meth:`Accelerator.layer`."""
        return _GemmLayer(self, self.lowered(node))

    def trial(self, random: np.random.Generator) -> tuple[Node, np.ndarray]:
        """A convolution or dense layer with a few thousand products."""
        return random_node(random, self.modes)


class _GemmLayer(Layer):
    def __init__(self, accelerator: GemmAccelerator, lowered: Lowered) -> None:
        self._accelerator, self._lowered = accelerator, lowered
        self._product = lowered.product
        channels, depth = self._product.weights.shape
        self._schedule = Schedule(accelerator.geometry, lowered.pixels, depth, channels)
        self._counters = self._schedule.cycles()

    def spans(self) -> list[tuple[str, str, int, int]]:
        """See :meth:`Layer.spans`."""
        return self._schedule.spans()

    def buffers(self) -> dict[str, tuple[int, int]]:
        """See :meth:`Layer.buffers`."""
        return self._schedule.buffers()

    def run(self, inputs: np.ndarray, level: str) -> tuple[np.ndarray, Cycles]:
        """See :meth:`Layer.run`."""
        s, pixels = self._schedule, self._lowered.rows(inputs)
        if level == "tlm":
            result, counters = self._product.compute(pixels), self._counters
        else:
            from dlas.hardware.accelerators._gemm.driver import pack, unpack

            words, counters = self._accelerator.simulator.run(
                pack(self._product, pixels, s), s.result_words, hesitation=self._accelerator.hesitation
            )
            result = unpack(words, s)
        sent = 1 + 2 * len(s.groups) + counters["load_weights"] + counters["load_inputs"]
        multipliers = self._accelerator.multipliers
        cycles = Cycles(
            counters, self._lowered.node.macs, multipliers, BUS_BYTES * sent, BUS_BYTES * counters["store"]
        )
        return self._lowered.output(result), cycles


def random_node(random: np.random.Generator, modes: tuple[str, ...]) -> tuple[Node, np.ndarray]:
    """A convolution or dense layer of random shape, and an input."""

    def number(low: int, high: int) -> int:
        return int(random.integers(low, high + 1))

    dense = number(0, 3) == 0
    channels, kernel = number(1, 40), number(1, 3)
    scales = np.exp(random.uniform(-9, -5, channels))
    factors = [quantize_multiplier(float(s)) for s in scales]
    low, high = sorted(random.integers(-128, 128, 2).tolist())
    attributes: dict[str, Any] = {
        "x_zero_point": number(-128, 127), "y_zero_point": number(-128, 127), "act_min": low, "act_max": high,
        "multipliers": tuple(f[0] for f in factors), "shifts": tuple(f[1] for f in factors),
        "rounding": modes[number(0, len(modes) - 1)],
    }  # fmt: skip
    bias = Operand.of(random.integers(-20_000, 20_000, channels).astype(np.int32))
    if dense:
        shape, weights = (number(1, 9), number(1, 120)), (channels,)
        weight = random.integers(-127, 128, (*weights, shape[1])).astype(np.int8)
        output = Operand((shape[0], channels), "int8")
    else:
        shape = (number(1, 2), number(1, 12), number(kernel, 9), number(kernel, 9))
        stride, pad = number(1, 2), number(0, kernel - 1)
        weight = random.integers(-127, 128, (channels, shape[1], kernel, kernel)).astype(np.int8)
        size = [(d + 2 * pad - kernel) // stride + 1 for d in shape[2:]]
        output = Operand((shape[0], channels, *size), "int8")
        attributes |= {
            "kernel_shape": (kernel, kernel), "strides": (stride, stride), "dilations": (1, 1),
            "pads": (pad,) * 4, "group": 1,
        }  # fmt: skip
    x = random.integers(-128, 128, shape).astype(np.int8)
    inputs = (Operand(shape, "int8"), Operand.of(weight), bias)
    return Node("QDense" if dense else "QConv", "trial", attributes, inputs, (output,)), x
