"""The activation quantiser as a member of the family: nodes that store a channel, and nodes that restore it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlas.hardware.accelerator import Accelerator, Cycles, DoesNotFitError, Layer
from dlas.hardware.accelerators._dqa import channel, schedule
from dlas.hardware.accelerators._dqa.channel import Stored
from dlas.hardware.accelerators._dqa.geometry import LANES, Geometry
from dlas.hardware.rtl.sizes import BUS_BYTES
from dlas.kernels.kernel import Node, Operand

if TYPE_CHECKING:
    from dlas.hardware.rtl.bus import Design

STORE, RESTORE = "DqaStore", "DqaRestore"


class DqaAccelerator(Accelerator):
    """Quantises eight values per cycle, builds the code table of a channel itself, and decodes it again.

    A node ``DqaStore`` has a channel ``(V,) int16`` as input and gives the words it is stored in, ``(W, 2) uint64``: as
    many as it can take at most, 0 behind the last. ``DqaRestore`` is the way back.
    """

    ops: ClassVar[tuple[str, ...]] = (STORE, RESTORE)
    options: Any

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """Sizes."""

    @property
    def multipliers(self) -> int:
        """Products per cycle, when values are restored."""
        return LANES

    def design(self) -> Design:
        """The hardware."""
        from dlas.hardware.accelerators._dqa.design import DqaDesign

        return DqaDesign(self.geometry)

    def node(self, op: str, count: int) -> Node:
        """The node that stores or restores a channel of ``count`` values."""
        values, words = Operand((count,), "int16"), Operand((self.geometry.most_words(count), 2), "uint64")
        given, result = (values, words) if op == STORE else (words, values)
        return Node(op, f"{op.lower()} {count}", {}, (given,), (result,))

    def refuses(self, node: Node) -> str:
        """Inputs and outputs of another form."""
        values, words = (node.operand(0), node.output) if node.op == STORE else (node.output, node.operand(0))
        if values.dtype != "int16" or len(values.shape) != 1 or not values.size:
            return f"values are {values.dtype} {list(values.shape)}, not a channel of int16"
        if words.dtype != "uint64" or words.shape != (self.geometry.most_words(values.size), 2):
            return f"the words are {words.dtype} {list(words.shape)}"
        return ""

    def layer(self, node: Node) -> Layer:
        """Prepare a node; see :meth:`Accelerator.layer`."""
        count = (node.operand(0) if node.op == STORE else node.output).size
        if count > self.geometry.values:
            raise DoesNotFitError("value buffer", 2 * count, 2 * self.geometry.values)
        return _Store(self, count) if node.op == STORE else _Restore(self, count)

    def trial(self, random: np.random.Generator) -> tuple[Node, np.ndarray]:
        """A channel, or a stored one: of random size, and spread as activations are, or evenly, or hardly."""
        count = int(random.integers(1, min(self.geometry.values, 600) + 1))
        values = random_channel(random, count)
        if random.integers(2):
            return self.node(STORE, count), values
        node = self.node(STORE, count)
        return self.node(RESTORE, count), self.layer(node).run(values, "tlm")[0]


class _Store(Layer):
    def __init__(self, accelerator: DqaAccelerator, count: int) -> None:
        self._accelerator, self._count = accelerator, count

    def run(self, inputs: np.ndarray, level: str) -> tuple[np.ndarray, Cycles]:
        """See :meth:`Layer.run`."""
        g = self._accelerator.geometry
        codes, peak = channel.quantize(inputs, g.bits)
        stored = channel.encode(codes, peak, g)
        counts = channel.residue_counts(codes, g.residual)
        words, counters = stored.words(), {}
        if level == "tlm":
            counters = schedule.store_cycles(g, stored, counts, channel.code_table(counts, g.longest)[1])
        else:
            from dlas.hardware.accelerators._dqa.driver import pack_store

            words, counters = self._accelerator.simulator.run(
                pack_store(inputs, g), len(words), hesitation=self._accelerator.hesitation
            )
        found = np.zeros((g.most_words(self._count), 2), np.uint64)
        found[: len(words)] = words
        return found, _cycles(counters, 1 + g.rows(self._count))


class _Restore(Layer):
    def __init__(self, accelerator: DqaAccelerator, count: int) -> None:
        self._accelerator, self._count = accelerator, count

    def run(self, inputs: np.ndarray, level: str) -> tuple[np.ndarray, Cycles]:
        """See :meth:`Layer.run`."""
        g = self._accelerator.geometry
        stored = Stored.of_words(inputs, self._count, g)
        if level == "tlm":
            values = channel.dequantize(channel.decode(stored, g), stored.peak, g.bits)
            counters = schedule.restore_cycles(g, stored)
        else:
            from dlas.hardware.accelerators._dqa.driver import pack_restore, unpack_values

            words, counters = self._accelerator.simulator.run(
                pack_restore(stored), g.rows(self._count), hesitation=self._accelerator.hesitation
            )
            values = unpack_values(words, self._count)
        return values, _cycles(counters, 1 + len(stored.high) + len(stored.payload))


def _cycles(counters: dict[str, int], words_in: int) -> Cycles:
    return Cycles(counters, 0, LANES, BUS_BYTES * words_in, BUS_BYTES * counters["store"])


def random_channel(random: np.random.Generator, count: int) -> np.ndarray:
    """A channel ``(count,) int16``: as after a rectifier, as before one, even, of few values, or constant."""
    peak = int(np.exp(random.uniform(0, np.log(32768))))
    match int(random.integers(5)):
        case 0:
            values = np.maximum(random.normal(0, peak / 3, count), 0)
        case 1:
            values = random.laplace(0, peak / 5, count)
        case 2:
            values = random.uniform(-peak - 1, peak, count)
        case 3:
            values = random.choice(random.integers(-peak, peak + 1, 3), count)
        case _:
            values = np.full(count, random.integers(-peak, peak + 1))
    return np.clip(np.rint(values), -32768, 32767).astype(np.int16)
