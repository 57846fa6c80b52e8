"""VM, vector multiply-accumulate units (SECDA).

Haris et al. 2021, "SECDA: Efficient Hardware/Software Co-Design of FPGA-based DNN Accelerators for Edge Inference"
(SBAC-PAD), and SECDA-TFLite (2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlas.core.options import option
from dlas.hardware.accelerator import accelerators
from dlas.hardware.accelerators._gemm.accelerator import GemmAccelerator
from dlas.hardware.accelerators._gemm.geometry import Geometry

if TYPE_CHECKING:
    from dlas.hardware.rtl.arrays import SumArray


@dataclass(frozen=True)
class VmOptions:
    """Options of the vector unit."""

    units: int = option(4, "units of 4 x 4 sums, 64 products per cycle each", choices=(1, 2, 4, 8))
    rounding: str = option(
        "double", "of sums: as TFLite's reference kernels, or once", choices=("double", "single")
    )
    weight_kib: int = option(64, "weight buffer of a unit, KiB", choices=(4, 8, 16, 32, 64, 128))
    input_kib: int = option(128, "input buffer, KiB", choices=(2, 4, 8, 16, 32, 64, 128, 256))


@accelerators.register("vm")
class Vm(GemmAccelerator):
    """Each unit multiplies 4 output channels by 4 pixels, 4 deep; all units share the pixels."""

    name = "vm"
    summary = "SECDA's vector units: 4 x 4 sums, 4 products deep, int8"
    Options = VmOptions
    options: VmOptions

    @property
    def geometry(self) -> Geometry:
        """Sizes."""
        o = self.options
        return Geometry(o.units, 4, 4, 4, 3, weight_words=o.weight_kib * 64, input_words=o.input_kib * 64)

    def array(self) -> SumArray:
        """Trees of four products."""
        from dlas.hardware.rtl.arrays import VectorArray

        return VectorArray(self.options.units, 4, 4, 4)
