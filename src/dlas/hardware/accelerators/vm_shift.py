"""VM with shifters instead of multipliers: weights are 4-bit codes of powers of two or sums of two of them (PoTAcc).

Saha et al. 2024, "PoTAcc: A Pipeline for End-to-End Acceleration of Power-of-Two Quantized DNNs". Weights come from
int8 networks that were trained on such levels; the codes are recovered (:mod:`dlas.kernels.formats.recovery`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dlas.core.options import option
from dlas.hardware.accelerator import accelerators
from dlas.hardware.accelerators._gemm.accelerator import GemmAccelerator
from dlas.hardware.accelerators._gemm.geometry import Geometry
from dlas.hardware.accelerators._gemm.product import Lowered
from dlas.hardware.accelerators._vm_shift.levels import METHODS, on_levels
from dlas.kernels.kernel import Node, Operand

if TYPE_CHECKING:
    from dlas.hardware.rtl.arrays import SumArray


@dataclass(frozen=True)
class VmShiftOptions:
    """Options of the shift unit."""

    method: str = option("apot", "levels of the weights", choices=tuple(METHODS))
    semantics: str = option(
        "true",
        "of the weights: the levels themselves, or the int8 numbers that stand for them (po2 only: 128 stored as 127)",
        choices=("true", "tflite"),
    )
    units: int = option(4, "units of 4 x 4 sums, 64 shifters each", choices=(1, 2, 4, 8))
    rounding: str = option(
        "double", "of sums: as TFLite's reference kernels, or once", choices=("double", "single")
    )
    weight_kib: int = option(64, "weight buffer of a unit, KiB", choices=(4, 8, 16, 32, 64, 128))
    input_kib: int = option(128, "input buffer, KiB", choices=(2, 4, 8, 16, 32, 64, 128, 256))


@accelerators.register("vm-shift")
class VmShift(GemmAccelerator):
    """The units of ``vm`` with a shifter, or two and an adder, where a multiplier was; half the bytes of weights."""

    name = "vm-shift"
    summary = "PoTAcc: vector units of shifters, 4-bit weights on powers of two and their sums"
    Options = VmShiftOptions
    options: VmShiftOptions

    @property
    def geometry(self) -> Geometry:
        """Sizes."""
        o = self.options
        return Geometry(
            o.units, 4, 4, 4, 3, weight_bits=4, weight_words=o.weight_kib * 64, input_words=o.input_kib * 64
        )

    def array(self) -> SumArray:
        """Shifters."""
        from dlas.hardware.accelerators._vm_shift.array import ShiftArray

        return ShiftArray(self.options.units, 4, 4, 4, self.options.method)

    def refuses(self, node: Node) -> str:
        """As ``vm``, and weights that are not on the levels."""
        reason = super().refuses(node)
        if reason:
            return reason
        o = self.options
        if o.semantics == "tflite" and o.method != "po2":
            return f"the int8 numbers of {o.method} are no sums of two of its levels; semantics=true has the levels"
        return on_levels(Lowered.of(node), o.method, o.semantics)[1]

    def lowered(self, node: Node) -> Lowered:
        """Levels for int8 numbers, their codes, and factors in their unit."""
        found, reason = on_levels(Lowered.of(node), self.options.method, self.options.semantics)
        assert found is not None, reason
        return found

    def trial(self, random: np.random.Generator) -> tuple[Node, np.ndarray]:
        """A random layer whose weights are put on the levels."""
        node, x = super().trial(random)
        weight, grid = node.constant(1), METHODS[self.options.method]
        assert weight is not None
        levels = grid.int8_levels if self.options.method != "po2" else np.minimum(np.abs(grid.integers), 127)
        levels = np.unique(np.concatenate([levels, -levels]))
        chosen = levels[random.integers(0, len(levels), weight.shape)].astype(np.int8)
        chosen.reshape(len(chosen), -1)[:, 0] = 127  # the largest level is what the others are told by
        return dataclasses.replace(node, inputs=(node.inputs[0], Operand.of(chosen), *node.inputs[2:])), x
