"""What quantising a channel costs: DQA's unit against the unit that searches, size by size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlas.core.errors import CheckFailedError, OptionError
from dlas.core.figure import Figure, Source
from dlas.core.statistics import bootstrap_median
from dlas.hardware.accelerator import LEVELS, Cycles
from dlas.hardware.accelerators._dqa import channel
from dlas.hardware.accelerators._dqa.accelerator import RESTORE, STORE, DqaAccelerator
from dlas.hardware.accelerators._dqa.noisy import NoisyUnit

VALUE_BITS = 16
SIZES = (49, 196, 784, 3136)
RUNS = 20
_STORE, _RESTORE = ("load", "quantize", "table", "encode"), ("table", "decode", "dequantize")


@dataclass(frozen=True)
class SizeRow:
    """Channels of one size, through both units; medians over the runs.

    Attributes:
        values: Values of a channel.
        store: Cycles of DQA's unit from values to their stored form, by phase, and ``total``.
        restore: Cycles back.
        noisy: Cycles of the unit that searches, by phase, and ``total``.
        figures: ``ratio`` (cycles of the searching unit per cycle of DQA's, both ways), ``transfer_bytes`` and
            ``noisy_transfer_bytes``, ``bits_per_value`` with all side information, ``side_bits_per_value``,
            ``residue_bits`` (per coded residue), ``compression`` (16-bit values per stored bits), ``rms_error`` of the
            restored values (in units of the int16), and ``noisy_bits_per_value``, ``noisy_rms_error``.
    """

    values: int
    store: Mapping[str, Figure]
    restore: Mapping[str, Figure]
    noisy: Mapping[str, Figure]
    figures: Mapping[str, Figure]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        groups = {"store": self.store, "restore": self.restore, "noisy": self.noisy, "figures": self.figures}
        return {
            "values": self.values,
            **{k: {name: f.to_dict() for name, f in group.items()} for k, group in groups.items()},
        }


@dataclass(frozen=True)
class DqaComparison:
    """Both units on channels of several sizes.

    Attributes:
        accelerator: As spelled.
        level: ``tlm``, or ``rtl``: then every channel also ran on the simulated hardware, with equal words and cycles.
        runs: Channels per size.
        exact: Channels whose codes came back as they were stored: all, else :func:`compare_units` raises.
        rows: One per size.
    """

    accelerator: str
    level: str
    runs: int
    exact: int
    rows: tuple[SizeRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "accelerator": self.accelerator, "level": self.level, "runs": self.runs, "exact": self.exact,
            "rows": [row.to_dict() for row in self.rows],
        }  # fmt: skip


def compare_units(
    accelerator: DqaAccelerator,
    sizes: Sequence[int] = SIZES,
    *,
    runs: int = RUNS,
    level: str = "tlm",
    noisy: NoisyUnit | None = None,
    seed: int = 0,
    tell: Callable[[float, str], None] = lambda fraction, text: None,
) -> DqaComparison:
    """Cycles, transfer and stored bits of channels as they come out of a layer (normal, then rectified).

    Args:
        accelerator: DQA's unit.
        sizes: Values per channel.
        runs: Channels per size.
        level: ``tlm``, or ``rtl`` to run the simulated hardware as well.
        noisy: The unit to compare with; by default one with as many bits as DQA's unit keeps.
        seed: Of the channels.
        tell: Progress.

    Raises:
        OptionError: No sizes or runs, a size below 1, or another level.
        DoesNotFitError: A size is larger than the unit is built for.
        CheckFailedError: A code came back changed, or the RTL gave other words or cycles.
    """
    if level not in LEVELS:
        raise OptionError("level", level, "one of " + ", ".join(LEVELS))
    if not sizes or min(sizes) < 1 or runs < 1:
        raise OptionError("sizes, runs", (list(sizes), runs), "at least one of each, sizes of 1 and more")
    random = np.random.default_rng(seed)
    unit = noisy or NoisyUnit(accelerator.geometry.kept)
    rows = []
    for place, size in enumerate(sizes):
        tell(place / len(sizes), f"channels of {size} values")
        weights = random.normal(size=(unit.side(size), unit.outputs))
        found = [_channel(accelerator, unit, weights, _activations(random, size), level) for _ in range(runs)]
        rows.append(_row(accelerator, unit, size, found))
    return DqaComparison(accelerator.spelled(), level, runs, runs * len(rows), tuple(rows))


@dataclass(frozen=True)
class _Run:
    store: Cycles
    restore: Cycles
    stored: channel.Stored
    error: float
    noisy_error: float


def _activations(random: np.random.Generator, size: int) -> np.ndarray:
    return np.maximum(np.clip(random.normal(0, 6000, size), -32768, 32767), 0).astype(np.int16)


def _channel(
    accelerator: DqaAccelerator, unit: NoisyUnit, weights: np.ndarray, values: np.ndarray, level: str
) -> _Run:
    g, size = accelerator.geometry, len(values)
    store, restore = (accelerator.layer(accelerator.node(op, size)) for op in (STORE, RESTORE))
    words, there = store.run(values, "tlm")
    restored, back = restore.run(words, "tlm")
    stored = channel.Stored.of_words(words, size, g)
    if not np.array_equal(channel.decode(stored, g), channel.quantize(values, g.bits)[0]):
        raise CheckFailedError(f"a channel of {size} values came back changed", "this is a bug of dlas")
    if level == "rtl":
        for layer, given, wanted, cycles in (
            (store, values, words, there),
            (restore, words, restored, back),
        ):
            result, real = layer.run(given, "rtl")
            if not np.array_equal(result, wanted) or real != cycles:
                raise CheckFailedError(
                    f"model and RTL differ on {size} values", f"dlas hw verify {accelerator.spelled()}"
                )
    searched = unit.restored(values, unit.search(values, weights))
    return _Run(there, back, stored, _rms(restored - values.astype(np.float64)), _rms(searched - values))


def _rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.square(difference).mean()))


def _row(accelerator: DqaAccelerator, unit: NoisyUnit, size: int, runs: list[_Run]) -> SizeRow:
    def median(numbers: list[float], name: str, source: Source = Source.SIMULATED, note: str = "") -> Figure:
        low, high = bootstrap_median(numbers)
        return Figure(float(np.median(numbers)), name, source, low, high, len(numbers), note)

    def phases(cycles: list[Cycles], names: Sequence[str]) -> dict[str, Figure]:
        return {
            name: median([float(c.counters[name]) for c in cycles], "cycles") for name in (*names, "total")
        }

    def estimate(value: float, name: str) -> Figure:
        return Figure(value, name, Source.ESTIMATED, note="no RTL of this unit; kind to it")

    g, searched = accelerator.geometry, unit.cycles(size)
    both = [r.store + r.restore for r in runs]
    bits = [r.stored.bits(g.kept) for r in runs]
    measured = Source.MEASURED
    figures = {
        "ratio": median(
            [searched["total"] / c.total for c in both],
            "x",
            Source.ESTIMATED,
            "searching unit over DQA, both ways",
        ),
        "transfer_bytes": median([float(c.bytes_in + c.bytes_out) for c in both], "bytes"),
        "noisy_transfer_bytes": estimate(unit.transfer_bytes(size), "bytes"),
        "bits_per_value": median([b / size for b in bits], "bits", measured, "with side information"),
        "side_bits_per_value": median([r.stored.side_bits / size for r in runs], "bits", measured),
        "residue_bits": median([r.stored.payload_bits / size for r in runs], "bits", measured),
        "compression": median([VALUE_BITS * size / b for b in bits], "x", measured, "of 16-bit values"),
        "rms_error": median([r.error for r in runs], "lsb", measured),
        "noisy_rms_error": median([r.noisy_error for r in runs], "lsb", measured),
        "noisy_bits_per_value": estimate(unit.stored_bits(size) / size, "bits"),
    }
    return SizeRow(
        size,
        phases([r.store for r in runs], _STORE),
        phases([r.restore for r in runs], _RESTORE),
        {name: estimate(value, "cycles") for name, value in searched.items()},
        figures,
    )
