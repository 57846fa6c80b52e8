"""SA, an output-stationary systolic array (SECDA).

Haris et al. 2021, "SECDA: Efficient Hardware/Software Co-Design of FPGA-based DNN Accelerators for Edge Inference"
(SBAC-PAD).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlas.core.options import option
from dlas.hardware.accelerator import accelerators
from dlas.hardware.accelerators._gemm.accelerator import GemmAccelerator
from dlas.hardware.accelerators._gemm.geometry import Geometry

SIDE = 16

if TYPE_CHECKING:
    from dlas.hardware.rtl.arrays import SumArray


@dataclass(frozen=True)
class SaOptions:
    """Options of the systolic array."""

    rows: int = option(16, "rows of 16 elements: output channels at a time", choices=(4, 8, 16))
    rounding: str = option(
        "double", "of sums: as TFLite's reference kernels, or once", choices=("double", "single")
    )
    weight_kib: int = option(256, "weight buffer, KiB", choices=(8, 16, 32, 64, 128, 256))
    input_kib: int = option(128, "input buffer, KiB", choices=(4, 8, 16, 32, 64, 128, 256))


@accelerators.register("sa")
class Sa(GemmAccelerator):
    """Output channels by 16 pixels, one product deep; operands move from element to element."""

    name = "sa"
    summary = "SECDA's systolic array: up to 16 x 16 sums that stay where they are, int8"
    Options = SaOptions
    options: SaOptions

    @property
    def geometry(self) -> Geometry:
        """Sizes."""
        o = self.options
        words = {"weight_words": o.weight_kib * 64, "input_words": o.input_kib * 64}
        return Geometry(1, o.rows, SIDE, 1, SIDE + 1, skew=SIDE, **words)

    def array(self) -> SumArray:
        """The array."""
        from dlas.hardware.rtl.arrays import SystolicArray

        return SystolicArray(1, self.options.rows, SIDE, 1)
