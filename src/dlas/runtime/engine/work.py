"""How much an operator computes and moves, and how fast a machine could do it: the roofline model.

Source: S. Williams, A. Waterman, D. Patterson, Roofline: An Insightful Visual Performance Model, CACM 52(4), 2009.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlas.kernels.kernel import Node, Operand

_BYTES = frozenset({"int8", "uint8"})
_BY_WEIGHT = {"Conv": 1, "ConvInteger": 1, "QConv": 1, "QDepthwise": 1, "QLinearConv": 3}
_PRODUCTS = frozenset(
    {"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "QDense", "MatMulNBits", "MatMulW4A8"}
)
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
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
    macs = macs_of(node)
    operations = 2 * macs
    if not macs and node.op not in _MOVES:
        operations = _size(node.outputs[0])
        if node.op in _WINDOWS:
            operations *= math.prod(node.attributes.get("kernel_shape", ()))
        elif node.op.startswith(("Reduce", "Global", "QMean")):
            operations = _size(node.operand(0))
    computed = [o for o in node.inputs if o is not None and o.constant is None]
    sizes = list(stored) if stored is not None else [bytes_of(o) for o in (*computed, *node.outputs)]
    constants = sum(o.constant.nbytes for o in node.inputs if o is not None and o.constant is not None)
    kind = "int8" if any(o.dtype in _BYTES for o in computed) or node.op == "MatMulW4A8" else "fp32"
    return Work(macs, operations, sum(sizes[: len(computed)]), sum(sizes[len(computed) :]), constants, kind)


def macs_of(node: Node) -> int:
    """Multiply-accumulates of a node; 0 for operators without products."""
    out = _size(node.outputs[0])
    if node.op in _BY_WEIGHT:
        return out * math.prod(node.operand(_BY_WEIGHT[node.op]).shape[1:])
    if node.op == "ConvTranspose":
        return _size(node.operand(0)) * math.prod(node.operand(1).shape[1:])
    if node.op in _RECURRENT:
        steps = math.prod(node.operand(0).shape[:2])
        return steps * (_size(node.operand(1)) + _size(node.operand(2)))
    if node.op in _PRODUCTS:
        shape = node.operand(0).shape
        return out * (shape[0] if node.attributes.get("transA") else shape[-1])
    return 0


def bytes_of(operand: Operand) -> int:
    """Size of a tensor in ONNX order."""
    return _size(operand) * np.dtype(operand.dtype).itemsize


def _size(operand: Operand) -> int:
    return math.prod(operand.shape)


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


@dataclass(frozen=True)
class Level:
    """Memory of one kind.

    Attributes:
        name: ``L1``, ``L2``, ``L3`` or ``DRAM``.
        bytes: What it holds for all threads together; infinite for the last.
        gbytes_per_s: Bandwidth of reads, all threads together.
    """

    name: str
    bytes: float
    gbytes_per_s: float


@dataclass(frozen=True)
class Roof:
    """What a machine can do at most with some number of threads.

    Attributes:
        cpu: Processor.
        isa: Instruction set.
        threads: Threads.
        peaks: ``fp32`` and ``int8`` in GFLOP/s and GOP/s.
        levels: Memories, the smallest first.
    """

    cpu: str
    isa: str
    threads: int
    peaks: dict[str, float]
    levels: tuple[Level, ...]

    def level_of(self, work: Work) -> Level:
        """The smallest memory that holds the working set."""
        return next((level for level in self.levels if work.bytes <= level.bytes), self.levels[-1])

    def attainable(self, work: Work) -> float:
        """GFLOP/s (GOP/s) at most: the peak, or what the memory brings; 0 where nothing is computed."""
        return min(self.peaks[work.kind], work.intensity * self.level_of(work).gbytes_per_s)

    def least_ms(self, work: Work) -> float:
        """Milliseconds at least: for the operations at the peak, or for the bytes, whichever takes longer."""
        computing = work.operations / (1e6 * self.peaks[work.kind])
        return max(computing, work.bytes / (1e6 * self.level_of(work).gbytes_per_s))

    def to_dict(self) -> dict:
        """Plain dictionary, fit for JSON."""
        levels = [
            {
                "name": level.name,
                "bytes": level.bytes if math.isfinite(level.bytes) else None,
                "gbytes_per_s": level.gbytes_per_s,
            }
            for level in self.levels
        ]
        return {
            "cpu": self.cpu,
            "isa": self.isa,
            "threads": self.threads,
            "peaks": self.peaks,
            "levels": levels,
        }
