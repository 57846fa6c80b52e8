"""What the block floating-point accelerator makes of one tensor of a GGUF file: run exactly, and its bounds.

A product is bound by the bus (every byte of the weights is needed once) or by the datapath, whichever takes longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.errors import OptionError, UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.graph.formats.gguf import read_contents
from dlas.graph.weights import WeightTensor
from dlas.hardware.accelerator import LEVELS, Cycles
from dlas.hardware.accelerators._bfp.accelerator import BfpAccelerator
from dlas.hardware.accelerators._bfp.formats import SUPER_BLOCK, WIRE_FORMATS
from dlas.hardware.accelerators._bfp.layer import PREFIX
from dlas.hardware.accelerators._bfp.schedule import Schedule
from dlas.hardware.rtl.sizes import BUS_BYTES
from dlas.kernels.formats.block import block_format, dequantize, quantize
from dlas.kernels.kernel import Node, Operand


@dataclass(frozen=True)
class ProductCost:
    """One product with a tensor of weights.

    Attributes:
        tensor: Its name.
        type: Block format.
        outputs: M, rows of the weights.
        k: Numbers per row.
        inputs: N, rows of activations.
        times: How often it is computed (experts of a mixture that a token uses).
        cycles: Of one product.
        bus_cycles: What the bus needs for everything that is sent.
        compute_cycles: What the datapath needs.
        bound: ``bus`` or ``compute``: the larger of the two.
    """

    tensor: str
    type: str
    outputs: int
    k: int
    inputs: int
    times: int
    cycles: Cycles
    bus_cycles: int
    compute_cycles: int
    bound: str

    @property
    def all_cycles(self) -> Cycles:
        """All :attr:`times` of it."""
        return sum([self.cycles] * self.times, Cycles())

    @property
    def bus_utilisation(self) -> float:
        """Share of the cycles in which a word is sent."""
        return self.bus_cycles / self.cycles.total

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **{k: v for k, v in asdict(self).items() if k != "cycles"},
            "cycles": self.cycles.total,
            "macs": self.cycles.macs,
            "bytes_in": self.cycles.bytes_in,
            "bytes_out": self.cycles.bytes_out,
            "bus_utilisation": self.bus_utilisation,
            "utilisation": self.cycles.utilisation,
        }


@dataclass(frozen=True)
class ProductReport:
    """One tensor of a file, multiplied with random activations.

    Attributes:
        file: Name of the file.
        accelerator: As it was chosen.
        level: Level it ran at.
        cost: Cycles and bounds, by the cycle model.
        counters: Of the run.
        difference: Largest difference from the product of the dequantised numbers in float64, relative to the largest
            output: float32 rounding between blocks, nothing else.
    """

    file: str
    accelerator: str
    level: str
    cost: ProductCost
    counters: Mapping[str, int]
    difference: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values; cycles as figures."""
        figures = {
            name: Figure(value, "cycles", Source.SIMULATED).to_dict() for name, value in self.counters.items()
        }
        return {**asdict(self), "cost": self.cost.to_dict(), "counters": figures}


def product_report(
    path: Path,
    tensor: str,
    accelerator: BfpAccelerator,
    *,
    inputs: int = 1,
    level: str = "tlm",
    seed: int = 0,
) -> ProductReport:
    """Multiply one tensor of a GGUF file with random activations on the accelerator.

    Args:
        path: The file.
        tensor: Name of a tensor in a block format that is built in.
        accelerator: Which.
        inputs: N, rows of activations.
        level: ``tlm`` or ``rtl``.
        seed: Of the activations.

    Raises:
        ModelError: The file is damaged.
        UnknownNameError: There is no such tensor.
        UnsupportedError: The accelerator does not take it; names the tensor.
        OptionError: No rows, or no such level.
    """
    if level not in LEVELS:
        raise OptionError("level", level, "one of " + ", ".join(LEVELS))
    if inputs < 1:
        raise OptionError("inputs", inputs, "at least one row of activations")
    contents = read_contents(path)
    blocks = contents.tensor(tensor)
    found = next(t for t in contents.weights.tensors if t.name == tensor)
    reason = refused(found, accelerator)
    if reason:
        raise UnsupportedError(f"{tensor}: {reason}")
    blocks = np.ascontiguousarray(blocks).reshape(-1, blocks.shape[-1])
    x = np.random.default_rng(seed).standard_normal((inputs, found.shape[-1])).astype(np.float32)
    node = Node(
        f"{PREFIX}{found.dtype}",
        tensor,
        {},
        (Operand(x.shape), Operand.of(blocks)),
        (Operand((inputs, len(blocks))),),
    )
    y, cycles = accelerator.layer(node).run(x, level)
    exact = _product(found.dtype, blocks, x)
    largest = float(np.abs(exact).max())
    return ProductReport(
        Path(path).name,
        accelerator.spelled(),
        level,
        cost_of(found, accelerator, len(blocks), inputs, 1),
        cycles.counters,
        float(np.abs(y - exact).max()) / largest if largest else 0.0,
    )


def refused(tensor: WeightTensor, accelerator: BfpAccelerator) -> str:
    """Why products with a tensor are none for the accelerator, by its type and shape; or an empty string."""
    if tensor.dtype not in accelerator.geometry.formats:
        return f"{tensor.dtype} is not built in, only {', '.join(accelerator.geometry.formats)}"
    if tensor.shape[-1] % SUPER_BLOCK:
        return f"K is {tensor.shape[-1]}, expected a multiple of {SUPER_BLOCK}"
    return ""


def cost_of(
    tensor: WeightTensor, accelerator: BfpAccelerator, outputs: int, inputs: int, times: int = 1
) -> ProductCost:
    """Cycles of a product with a tensor, by the cycle model.

    Args:
        tensor: Which the accelerator takes.
        accelerator: The accelerator.
        outputs: Rows of it that are used.
        inputs: Rows of activations.
        times: How often it is computed.
    """
    wire, blocks = WIRE_FORMATS[tensor.dtype], tensor.shape[-1] // SUPER_BLOCK
    schedule = Schedule(accelerator.geometry, wire, outputs, blocks, inputs)
    counters = schedule.cycles()
    bus, compute = schedule.bytes_in // BUS_BYTES, schedule.compute_cycles
    return ProductCost(
        tensor.name,
        tensor.dtype,
        outputs,
        tensor.shape[-1],
        inputs,
        times,
        Cycles(
            counters, schedule.macs, accelerator.multipliers, schedule.bytes_in, BUS_BYTES * counters["store"]
        ),
        bus,
        compute,
        "bus" if bus >= compute else "compute",
    )


def _product(name: str, blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What the numbers that both sides stand for give in float64, a few rows of weights at a time."""
    partner = block_format(name).activations
    numbers = dequantize(partner, quantize(partner, x)).astype(np.float64)
    chunk = max(1, 2**22 // x.shape[1])
    parts = [
        numbers @ dequantize(name, blocks[first : first + chunk]).astype(np.float64).T
        for first in range(0, len(blocks), chunk)
    ]
    return np.concatenate(parts, axis=1)
