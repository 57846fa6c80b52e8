"""BFP, products of ggml's block formats (SECDA-LLM, F-BFQ).

Haris et al. 2024, "SECDA-LLM: Designing Efficient LLM Accelerators for Edge Devices", and 2025, "F-BFQ: Flexible Block
Floating-Point Quantization Accelerator for LLMs".
"""

from __future__ import annotations

from dataclasses import dataclass

from dlas.core.errors import OptionError
from dlas.core.options import option
from dlas.hardware.accelerator import accelerators
from dlas.hardware.accelerators._bfp.accelerator import BfpAccelerator
from dlas.hardware.accelerators._bfp.formats import WIRE_FORMATS
from dlas.hardware.accelerators._bfp.geometry import Geometry

_MOST = 128  # products per cycle: more would finish results of Q8_0 faster than the bus takes them


@dataclass(frozen=True)
class BfpOptions:
    """Options of the block floating-point accelerator."""

    lanes: int = option(16, "products per row of weights and cycle", choices=(16, 32))
    rows: int = option(4, "rows of weights side by side", choices=(2, 4, 8))
    formats: str = option("all", "block formats that are built in: all, or names joined by + (q2_k+q3_k)")
    slots: int = option(4, "super-blocks per row that the weight buffer holds", choices=(2, 4, 8, 16))
    input_blocks: int = option(
        512,
        "super-blocks that the input buffer holds, 288 bytes each",
        choices=(4, 16, 64, 128, 256, 512, 1024),
    )

    def __post_init__(self) -> None:
        if self.lanes * self.rows > _MOST:
            raise OptionError(
                "bfp: rows", self.rows, f"at most {_MOST // self.lanes} with {self.lanes} lanes"
            )
        self.names()

    def names(self) -> tuple[str, ...]:
        """Formats that are built in, in the order of the table."""
        if self.formats == "all":
            return tuple(WIRE_FORMATS)
        given = {part.strip().upper() for part in self.formats.split("+")}
        if not given <= set(WIRE_FORMATS):
            accepted = "+".join(WIRE_FORMATS).lower()
            raise OptionError("bfp: formats", self.formats, f"all, or some of {accepted}")
        return tuple(name for name in WIRE_FORMATS if name in given)


@accelerators.register("bfp")
class Bfp(BfpAccelerator):
    """Rows of weights in blocks by activations in Q8_K; the format is a field of the instruction."""

    name = "bfp"
    summary = "SECDA-LLM's and F-BFQ's products of GGUF blocks: Q2_K to Q6_K and Q8_0, switched per layer"
    Options = BfpOptions
    options: BfpOptions

    @property
    def geometry(self) -> Geometry:
        """Sizes."""
        o = self.options
        return Geometry(o.lanes, o.rows, o.slots, o.input_blocks, o.names())
