"""One product of blocks on the accelerator: float32 in, float32 out, integers between."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.hardware.accelerator import Cycles, Layer
from dlas.hardware.accelerators._bfp.formats import SUPER_BLOCK, WIRE_FORMATS
from dlas.hardware.accelerators._bfp.schedule import Schedule
from dlas.hardware.rtl.sizes import BUS_BYTES
from dlas.kernels.formats.block import block_format, combine, dot, quantize, scales_of
from dlas.kernels.kernel import Node, Operand

if TYPE_CHECKING:
    from dlas.hardware.accelerators._bfp.accelerator import BfpAccelerator

PREFIX = "MatMul"  # operators are called MatMulQ4_K and so on


def refusal(node: Node, formats: tuple[str, ...]) -> str:
    """Why a product of blocks is none for the accelerator, or an empty string."""
    name, k, blocks = node.op.removeprefix(PREFIX), node.operand(0).shape[-1], node.constant(1)
    if name not in formats:
        return f"{name} is not built in, only {', '.join(formats)}"
    if k % SUPER_BLOCK or not k:
        return f"K is {k}, expected a multiple of {SUPER_BLOCK}"
    if blocks is None or any(i is not None and i.constant is None for i in node.inputs[2:]):
        return "its weights or its bias are not constant"
    kind = block_format(name)
    row = k // kind.elements * kind.nbytes
    if blocks.dtype != np.uint8 or blocks.ndim != 2 or blocks.shape[1] != row or not len(blocks):
        return f"its blocks are {blocks.dtype} {list(blocks.shape)}, expected uint8 rows of {row} bytes"
    if not np.isfinite(scales_of(name, blocks)).all():
        return f"a scale of its {name} blocks is NaN or infinite"
    return ""


class BfpLayer(Layer):
    """A node that is ready: weights in the order of the bus, made on first use.

    Raises:
        UnsupportedError: The node is none for the accelerator; names it.
    """

    def __init__(self, accelerator: BfpAccelerator, node: Node) -> None:
        reason = refusal(node, accelerator.geometry.formats)
        if reason:
            raise UnsupportedError(f"{node.name}: {reason}")
        self._accelerator, self._node = accelerator, node
        self._format = node.op.removeprefix(PREFIX)
        self._slots: np.ndarray | None = None
        blocks = node.constant(1)
        assert blocks is not None
        self._blocks = blocks

    def schedule(self, rows: int) -> Schedule:
        """How the product with ``rows`` rows of activations is cut."""
        blocks = self._node.operand(0).shape[-1] // SUPER_BLOCK
        wire = WIRE_FORMATS[self._format]
        return Schedule(self._accelerator.geometry, wire, len(self._blocks), blocks, rows)

    def spans(self) -> list[tuple[str, str, int, int]]:
        """See :meth:`Layer.spans`."""
        return self.schedule(math.prod(self._node.operand(0).shape[:-1])).spans()

    def run(self, inputs: np.ndarray, level: str) -> tuple[np.ndarray, Cycles]:
        """See :meth:`Layer.run`; both levels combine the same integers in the same float32 arithmetic.

        Raises:
            OptionError: NaN or infinity among the inputs.
        """
        rows = np.ascontiguousarray(inputs, np.float32).reshape(-1, inputs.shape[-1])
        activations = quantize(block_format(self._format).activations, rows)
        s = self.schedule(len(rows))
        if level == "tlm":
            found, counters = dot(self._format, self._blocks, activations).result, s.cycles()
        else:
            sums, minima, counters = self._simulated(activations, s)
            found = combine(self._format, self._blocks, activations, sums, minima)
        bias = self._node.constant(2)
        if bias is not None:
            found = found + bias.astype(np.float32)
        cycles = Cycles(counters, s.macs, s.geometry.multipliers, s.bytes_in, BUS_BYTES * counters["store"])
        return found.reshape(*inputs.shape[:-1], -1), cycles

    def _simulated(
        self, activations: np.ndarray, s: Schedule
    ) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        from dlas.hardware.accelerators._bfp.driver import inputs_of, pack, slots_of, unpack

        if self._slots is None:
            self._slots = slots_of(self._blocks, s)
        words = pack(self._slots, inputs_of(activations, s.wire), s)
        expected = sum(s.result_words(tile) for tile in s.tiles())
        found, counters = self._accelerator.simulator.run(
            words, expected, hesitation=self._accelerator.hesitation
        )
        return *unpack(found, s), counters


def random_blocks(random: np.random.Generator, name: str, rows: int, blocks: int) -> np.ndarray:
    """Any bytes at all, with scales that are finite and not small: ``(rows, blocks of 256 in bytes)`` uint8."""
    kind = block_format(name)
    data = random.integers(0, 256, (rows, blocks * SUPER_BLOCK // kind.elements, kind.nbytes)).astype(
        np.uint8
    )
    for at in kind.halves:
        halves = random.uniform(-2, 2, data.shape[:2]).astype("<f2")
        data[..., at : at + 2] = halves[..., None].view(np.uint8)
    return data.reshape(rows, -1)


def random_node(random: np.random.Generator, formats: tuple[str, ...]) -> tuple[Node, np.ndarray]:
    """A product of random shape and bytes in one of ``formats``, and an input."""
    name = formats[int(random.integers(len(formats)))]
    rows, outputs, blocks = (int(random.integers(1, most + 1)) for most in (9, 40, 4))
    weights = random_blocks(random, name, outputs, blocks)
    x = random.standard_normal((rows, blocks * SUPER_BLOCK)).astype(np.float32)
    given = [Operand(x.shape), Operand.of(weights)]
    if random.integers(2):
        given.append(Operand.of(random.standard_normal(outputs).astype(np.float32)))
    return Node(f"{PREFIX}{name}", "trial", {}, tuple(given), (Operand((rows, outputs)),)), x
