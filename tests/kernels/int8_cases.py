"""Random layers of bytes, what they must give in exact integers, and one node by one kernel on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dlas.kernels.extension import isa_levels, native
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.reference.conv import correlate
from dlas.kernels.reference.requantize import scale_sum
from dlas.kernels.single import Bench

needs_native = pytest.mark.skipif(native() is None, reason="the native kernels were not built")
ISAS = isa_levels() if native() is not None else ["none"]
ROUNDINGS = ("double", "single", "away", "xnnpack", "onnx")


def random_bytes(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    """All values, and now and then nothing but the extremes."""
    limits = np.iinfo(dtype)
    if rng.random() < 0.1:
        return rng.choice([limits.min, limits.max], shape).astype(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


class Factors:
    """How a random layer with ``channels`` outputs becomes bytes; ``spread`` is about the size of its sums."""

    def __init__(
        self, rng: np.random.Generator, channels: int, spread: float, dtype: str, rounding: str
    ) -> None:
        limits = np.iinfo(dtype)
        self.rounding, self.dtype = rounding, dtype
        self.zero_point = int(rng.integers(limits.min, limits.max + 1))
        count = channels if rng.random() < 0.7 else 1
        real = rng.uniform(10, 200, count) / spread
        # Factors above 1 and channels that are all but switched off go another way.
        real[rng.random(count) < 0.05] *= spread
        real[rng.random(count) < 0.05] *= 1e-7
        self.scales = real.astype(np.float32)
        fraction, exponent = np.frexp(real)
        self.multipliers = np.minimum(np.floor(fraction * 2**31 + 0.5), 2**31 - 1).astype(np.int64)
        self.shifts = np.maximum(exponent, -31).astype(np.int64)
        self.low, self.high = int(limits.min), int(limits.max)
        if rng.random() < 0.5:
            self.low, self.high = sorted(int(v) for v in rng.integers(limits.min, limits.max + 1, 2))

    @property
    def is_real(self) -> bool:
        """Whether the factors are float32."""
        return self.rounding in ("xnnpack", "onnx")

    @property
    def attributes(self) -> dict[str, Any]:
        """Those of the node."""
        found: dict[str, Any] = {
            "y_zero_point": self.zero_point, "act_min": self.low, "act_max": self.high, "rounding": self.rounding,
        }  # fmt: skip
        if not self.is_real:
            found |= {"multipliers": tuple(self.multipliers.tolist()), "shifts": tuple(self.shifts.tolist())}
        return found

    def inputs(self, bias: np.ndarray | None) -> list[Operand | None]:
        """Bias and scales."""
        found = [None if bias is None else Operand.of(bias)]
        return [*found, Operand.of(self.scales)] if self.is_real else found

    def apply(self, sums: np.ndarray) -> np.ndarray:
        """Bytes from int64 sums, channels last."""
        if self.is_real:
            found = np.rint(sums.astype(np.float32) * self.scales).astype(np.int64)
        else:
            found = scale_sum(sums, self.multipliers, self.shifts, self.rounding)
        return np.clip(found + self.zero_point, self.low, self.high).astype(self.dtype)


def random_window(rng: np.random.Generator) -> tuple[dict[str, Any], tuple[int, int]]:
    """Attributes of a window, and a size of the map in which it fits."""
    kernel = [int(v) for v in rng.integers(1, 5, 2)]
    if rng.random() < 0.2:
        kernel = [1, int(rng.choice([1, 5]))]
    strides = [int(v) for v in rng.integers(1, 6, 2)] if rng.random() < 0.5 else [1, int(rng.integers(1, 3))]
    dilations = [int(v) for v in rng.integers(1, 3, 2)] if rng.random() < 0.4 else [1, 1]
    pads = [int(v) for v in rng.integers(0, 3, 4)]
    size = []
    for a in (0, 1):
        least = max(1, (kernel[a] - 1) * dilations[a] + 1 - pads[a] - pads[2 + a])
        size.append(int(rng.integers(least, least + 12)))
    window = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads}
    return {k: tuple(v) for k, v in window.items()}, (size[0], size[1])


def random_convolution(
    rng: np.random.Generator, op: str, rounding: str
) -> tuple[Node, np.ndarray, np.ndarray]:
    """Node, input and output, both as ONNX lays them out."""
    window, size = random_window(rng)
    if op == "QDepthwise":
        groups = int(rng.integers(1, 150))
        per_group, per_filter = 1, 1
    else:
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        per_group, per_filter = int(rng.integers(1, 40)), int(rng.integers(1, 80))
    if op == "QDense":
        window = {"kernel_shape": (1, 1), "strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0)}
        size, groups = (1, 1), 1
    kinds = [str(rng.choice(["int8", "uint8"])) for _ in range(2)]
    x = random_bytes(rng, (int(rng.integers(1, 4)), groups * per_group, *size), kinds[0])
    shape = (groups * per_filter, per_group, *window["kernel_shape"])
    if rng.random() < 0.2:
        w = (random_bytes(rng, shape, "uint8").astype(np.int16) - int(rng.integers(0, 256))).astype(np.int16)
    else:
        w = random_bytes(rng, shape, "int8")
    bias = rng.integers(-3000, 3000, shape[0]).astype(np.int32) if rng.random() < 0.8 else None
    zero = int(rng.integers(np.iinfo(kinds[0]).min, np.iinfo(kinds[0]).max + 1))
    sums = correlate(
        (x.astype(np.int64) - zero).astype(np.float64), w.astype(np.float64), strides=window["strides"],
        pads=window["pads"], dilations=window["dilations"], groups=groups,
    ).astype(np.int64)  # fmt: skip
    if bias is not None:
        sums += bias[:, None, None]
    factors = Factors(rng, shape[0], float(np.abs(sums).max() + 1), kinds[1], rounding)
    y = factors.apply(sums.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    attributes = window | {"group": groups, "x_zero_point": zero} | factors.attributes
    if op == "QDense":
        x, w, y = x[:, :, 0, 0], w[:, :, 0, 0], y[:, :, 0, 0]
    inputs = (Operand(x.shape, kinds[0]), Operand.of(np.ascontiguousarray(w)), *factors.inputs(bias))
    return Node(op, "layer", attributes, inputs, (Operand(y.shape, kinds[1]),)), x, y


def check(name: str, node: Node, arrays: Sequence[np.ndarray], expected: np.ndarray, isa: str) -> None:
    """Kernel ``name`` gives exactly ``expected``, with one and with two threads."""
    given = [*arrays, *[None] * (len(node.inputs) - len(arrays))]
    for threads in (1, 2):
        found = Bench(kernels.get(name)(), node, given, Context.here(threads, isa)).run()[0]
        np.testing.assert_array_equal(found, expected, err_msg=f"{threads} threads: {node.attributes}")
