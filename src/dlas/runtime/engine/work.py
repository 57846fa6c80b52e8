"""How much an operator computes and moves, and how fast a machine could do it: the roofline model.

Source: S. Williams, A. Waterman, D. Patterson, Roofline: An Insightful Visual Performance Model, CACM 52(4), 2009.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dlas.core.errors import UnsupportedError
from dlas.hardware.cpu.roofline import Roofline, roofline
from dlas.kernels.kernel import Node

_BYTES = frozenset({"int8", "uint8"})
_WINDOWS = frozenset({"MaxPool", "AveragePool", "LpPool", "QMaxPool", "QAveragePool"})
_MOVES = frozenset(
    {
        "Reorder", "Transpose", "Concat", "Slice", "Split", "Gather", "Pad", "Expand", "Tile", "DepthToSpace",
        "SpaceToDepth", "Resize", "Reshape", "Flatten", "QImage", "Cast",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What one operator, or several in one step, do.

    Attributes:
        macs: Multiply-accumulates; 0 for operators without products.
        operations: Two per multiply-accumulate; else one per element of the output (and of the window, for pools), and
            none where elements are only moved.
        bytes_in: Bytes of the inputs that are computed, read once.
        bytes_out: Bytes of the outputs, written once.
        bytes_weights: Bytes of the constants as the network stores them.
        kind: Arithmetic of the products: ``fp32`` or ``int8``.
    """

    macs: int
    operations: int
    bytes_in: int
    bytes_out: int
    bytes_weights: int
    kind: str = "fp32"

    @property
    def bytes(self) -> int:
        """All of them: the working set."""
        return self.bytes_in + self.bytes_out + self.bytes_weights

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes if self.bytes else 0.0


def work_of(node: Node, stored: Sequence[int] | None = None) -> Work:
    """The work of one node.

    Args:
        node: The node; fused activations and residuals count by their bytes only.
        stored: Bytes of every computed input and output (None operands and constants left out), inputs first, where
            they lie otherwise than in ONNX order; a blocked map has whole blocks of channels.
    """
    macs = node.macs
    operations = 2 * macs
    if not macs and node.op not in _MOVES:
        operations = node.output.size
        if node.op in _WINDOWS:
            operations *= math.prod(node.attributes.get("kernel_shape", ()))
        elif node.op.startswith(("Reduce", "Global", "QMean")):
            operations = node.operand(0).size
    computed = [o for o in node.inputs if o is not None and o.constant is None]
    sizes = list(stored) if stored is not None else [o.nbytes for o in (*computed, *node.outputs)]
    constants = sum(o.constant.nbytes for o in node.inputs if o is not None and o.constant is not None)
    kind = "int8" if any(o.dtype in _BYTES for o in computed) or node.op == "MatMulW4A8" else "fp32"
    return Work(macs, operations, sum(sizes[: len(computed)]), sum(sizes[len(computed) :]), constants, kind)


def together(parts: Sequence[Work]) -> Work:
    """Several pieces of work, one after the other."""
    kinds = {p.kind: p.operations for p in sorted(parts, key=lambda p: p.operations)}
    return Work(
        sum(p.macs for p in parts),
        sum(p.operations for p in parts),
        sum(p.bytes_in for p in parts),
        sum(p.bytes_out for p in parts),
        sum(p.bytes_weights for p in parts),
        list(kinds)[-1] if kinds else "fp32",
    )


def roof_for(threads: int, isa: str = "native", *, fresh: bool = False) -> Roofline | None:
    """What this machine can do at most, measured once and remembered; None where that cannot be measured."""
    try:
        found = roofline(threads, isa, fresh=fresh)
    except UnsupportedError:  # no native kernels
        return None
    return found if found.peaks and found.bandwidths else None


def peak_of(work: Work, roof: Roofline) -> str:
    """The fastest way of this processor to compute such products: a name of ``roof.peaks``."""
    return "amx_int8" if work.kind == "int8" and "amx_int8" in roof.peaks else work.kind


def attainable(work: Work, roof: Roofline) -> float:
    """GFLOP/s (GOP/s) at most: the peak, or what the smallest memory brings that holds the working set."""
    return roof.attainable(work.operations, work.bytes, kind=peak_of(work, roof))


def least_ms(work: Work, roof: Roofline) -> float:
    """Milliseconds at least: for the operations at the peak, or for the bytes, whichever takes longer."""
    return 1e3 * roof.seconds(work.operations, work.bytes, kind=peak_of(work, roof))


def level_of(work: Work, roof: Roofline) -> str:
    """The smallest memory that holds the working set: ``L1``, ``L2``, ``L3`` or ``DRAM``."""
    return roof.level(work.bytes / roof.threads).upper()


def bound_of(work: Work, roof: Roofline) -> str:
    """What holds the work back at most: ``products``, or the bytes of a memory."""
    at_peak = work.operations and attainable(work, roof) >= 0.999 * roof.peaks[peak_of(work, roof)].value
    return "products" if at_peak else f"{level_of(work, roof)} bytes"
