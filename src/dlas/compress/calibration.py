"""What values each tensor takes: rows through the float network, and observers that turn them into a range.

Every quantiser that needs activation ranges uses :func:`calibrate`. Rows are streamed in batches, so memory is bounded
by one batch of the observed tensors; the network runs on one thread, so that the same rows give the same range on any
machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from dlas.core.errors import DataError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.data.preprocess import iterate, prepare
from dlas.graph.model import Model, TensorSpec
from dlas.graph.reference import explained

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Calibration = Literal["min-max", "percentile", "mse"]
CALIBRATIONS: tuple[str, ...] = ("min-max", "percentile", "mse")

Batches = Callable[[], Iterator[np.ndarray]]
"""Starts a fresh pass over the calibration rows; each array is ``(n, ...)`` in the network's input layout."""

LEAST_ROWS = 8  # fewer are a mistake: an array given for a data set, or a test row
BINS = 2048
_BATCH_BYTES = 128 << 20  # observed tensors of one batch
_MAX_BATCH = 64


@dataclass(frozen=True)
class Range:
    """Smallest and largest value to represent."""

    low: float
    high: float

    def union(self, other: Range) -> Range:
        """The smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


@dataclass
class Histogram:
    """Counts of the values of one tensor over a fixed interval.

    Exact zeros are counted apart: an activation after ReLU is mostly zero, zero is always represented without error,
    and a bin's centre would pretend otherwise.

    Attributes:
        low: Lower edge of the first bin.
        high: Upper edge of the last bin.
        counts: Non-zero values per bin, ``(bins,) int64``.
        zeros: Number of exact zeros.
    """

    low: float
    high: float
    counts: np.ndarray
    zeros: int = 0

    @classmethod
    def over(cls, span: Range, bins: int = BINS) -> Histogram:
        """An empty histogram from ``span.low`` to ``span.high``."""
        return cls(span.low, span.high, np.zeros(bins, np.int64))

    def add(self, values: np.ndarray) -> None:
        """Count ``values`` (any shape, float32); values outside the interval go to the outermost bins."""
        flat = values.reshape(-1)
        zeros = flat.size - int(np.count_nonzero(flat))
        self.zeros += zeros
        bins = len(self.counts)
        width = self.high - self.low
        if width <= 0:
            self.counts[0] += flat.size - zeros
            return
        index = ((flat.astype(np.float64) - self.low) * (bins / width)).astype(np.int64)
        counts = np.bincount(np.clip(index, 0, bins - 1), minlength=bins)
        counts[self.zero_bin] -= zeros
        self.counts += counts

    @property
    def zero_bin(self) -> int:
        """Index of the bin that zero falls into (the nearest one when zero is outside the interval)."""
        width = self.high - self.low
        if width <= 0:
            return 0
        return int(np.clip(int((0.0 - self.low) * (len(self.counts) / width)), 0, len(self.counts) - 1))

    @property
    def centres(self) -> np.ndarray:
        """Centre of every bin, ``(bins,) float64``."""
        bins = len(self.counts)
        return self.low + (np.arange(bins) + 0.5) * ((self.high - self.low) / bins)


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """The range that holds ``percentile`` percent of all values, the rest cut evenly from both ends.

    The ends are bin edges, rounded outwards: never more is cut than asked for.
    """
    counts = histogram.counts.copy()
    counts[histogram.zero_bin] += histogram.zeros
    total = int(counts.sum())
    allowed = total * (1.0 - percentile / 100.0) / 2.0
    below = np.cumsum(counts)
    above = np.cumsum(counts[::-1])
    first = int(np.searchsorted(below, allowed, side="right"))
    last = len(counts) - int(np.searchsorted(above, allowed, side="right"))
    step = (histogram.high - histogram.low) / len(counts)
    low = histogram.low + min(first, len(counts)) * step
    high = histogram.low + max(last, 0) * step if last < len(counts) else histogram.high
    return Range(low, high) if low < high else Range(histogram.low, histogram.high)


def mse_range(histogram: Histogram, levels: int = 256, steps: int = 90) -> Range:
    """The range, both ends shrunk by one factor, whose ``levels`` uniform levels give the least squared error.

    Candidates are 100 %, 99 %, ... of the observed range, as in OMSE (Choukroun et al. 2019, "Low-bit quantization of
    neural networks for efficient inference"). Zero is always a level.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if high - low <= 0:
        return Range(low, high)
    used = histogram.counts > 0
    centres, counts = histogram.centres[used], histogram.counts[used]
    best, best_error = Range(low, high), np.inf
    for step in range(steps):
        factor = 1.0 - step / 100.0
        scale = (high - low) * factor / (levels - 1)
        bottom = np.rint(low * factor / scale)
        codes = np.clip(np.rint(centres / scale), bottom, bottom + levels - 1)
        error = float(np.dot(counts, (codes * scale - centres) ** 2))
        if error < best_error:
            best, best_error = Range(low * factor, high * factor), error
    return best


def calibration_rows(model: Model, data: Dataset | None, rows: int) -> Dataset:
    """Rows at even distances over the whole data set, so that a set sorted by class is still seen whole.

    Args:
        model: Network with exactly one input.
        data: Training rows.
        rows: How many to use; all of them if there are fewer.

    Raises:
        DataError: No data, fewer than ``LEAST_ROWS`` rows, or rows that do not fit the network's input.
        UnsupportedError: The network has more than one input.
    """
    if data is None or len(data) == 0:
        raise DataError(
            f"{model.name}: calibration needs training rows and none were given",
            "pass a data set (`--data D`)",
        )
    if len(model.inputs) != 1:
        names = ", ".join(s.name for s in model.inputs)
        raise UnsupportedError(
            f"calibration feeds one input, {model.name} has {len(model.inputs)}: {names}",
            "make the other inputs constants of the network",
        )
    if isinstance(data.samples, np.ndarray) and data.samples.dtype.kind not in "fiub":
        raise DataError(f"samples of {data.name} are {data.samples.dtype}", "expected numbers")
    count = min(rows, len(data))
    chosen = data.take(np.arange(count) * len(data) // count)
    prepare(chosen.head(1), model)  # a wrong shape is told before any work
    if count < LEAST_ROWS:
        raise DataError(
            f"{model.name}: {count} rows say too little about the network's values",
            f"calibrate with at least {LEAST_ROWS}, better with hundreds",
        )
    return chosen


def calibration_batches(model: Model, data: Dataset | None, rows: int) -> tuple[Batches, int]:
    """A restartable stream of :func:`calibration_rows` in the network's input form, and how many there are.

    Images are decoded again on every pass: memory stays that of one batch. Raises as :func:`calibration_rows`.
    """
    chosen = calibration_rows(model, data, rows)
    return lambda: iterate(chosen, model, _MAX_BATCH), len(chosen)


class _Runner:
    """The network with the observed tensors as outputs, run in batches that fit the memory budget."""

    def __init__(self, graph: ir.Model, names: Sequence[str], spec: TensorSpec) -> None:
        self.names = list(names)
        self.spec = spec
        self.session = open_session(graph, self.names)
        self.fixed = spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else 0
        self.batch = self.fixed

    def __call__(self, rows: np.ndarray) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Yield the number of rows and the observed tensors, batch by batch."""
        if not self.batch:
            bytes_per_row = sum(a.nbytes for a in self._run(rows[:1]))
            self.batch = int(np.clip(_BATCH_BYTES // max(bytes_per_row, 1), 1, _MAX_BATCH))
        for part in parts(rows, self.batch, self.fixed):
            yield len(part), self._run(part)

    def _run(self, rows: np.ndarray) -> list[np.ndarray]:
        return self.session.run(self.names, {self.spec.name: rows})  # type: ignore[return-value]


def parts(rows: np.ndarray, batch: int, fixed: int = 0) -> Iterator[np.ndarray]:
    """``rows`` in parts of ``batch``; of exactly ``fixed``, if that is not 0, by repeating rows of the last part."""
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        if fixed and len(part) < fixed:
            # Rows seen twice leave the extremes and, nearly, the counts as they are.
            part = np.concatenate([part] * (fixed // len(part) + 1))[:fixed]
        yield part


def open_session(graph: ir.Model, names: Sequence[str]) -> InferenceSession:
    """A one-threaded session that gives the tensors ``names`` in float arithmetic, also of a graph in QDQ form.

    Raises:
        ModelError: onnxruntime refuses the network.
        UnsupportedError: It has no kernel for one of the operators.
    """
    import onnxruntime

    proto = ir.to_proto(graph)
    declared = {o.name for o in proto.graph.output}
    # Names alone are enough: onnxruntime infers type and shape.
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in declared)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.disable_quant_qdq", "1"
    )  # no integer kernels: saturation differs
    try:
        return onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise explained(error, "the network to calibrate") from error


def calibrate(
    graph: ir.Model,
    spec: TensorSpec,
    names: Mapping[str, str],
    batches: Batches,
    *,
    method: str = "min-max",
    percentile: float = 99.99,
    levels: int = 256,
    whole: Collection[str] = (),
    progress: Callable[[float], Any] | None = None,
    rows: int = 0,
) -> dict[str, Range]:
    """Range of every named tensor over the calibration rows.

    Args:
        graph: The float network.
        spec: Its one input.
        names: Tensor name to the layer a message should name.
        batches: Stream of rows; started once for ``min-max``, twice for the others.
        method: ``min-max`` (all values), ``percentile`` (cut the rarest values at both ends) or ``mse`` (least
            squared error of the quantised values).
        percentile: Share kept by ``percentile``, in percent.
        levels: Number of levels that ``mse`` assumes.
        whole: Tensors that keep all their values whatever the method.
        progress: Called with the fraction done.
        rows: Number of rows in the stream, for ``progress``.

    Raises:
        DataError: A tensor takes a value that is not finite, or there were no rows.
        ModelError: onnxruntime refuses the network.
        UnsupportedError: It has no kernel for one of the operators.
    """
    if not names:
        return {}
    runner = _Runner(graph, list(names), spec)
    passes = 1 if method == "min-max" else 2
    done = 0

    def stream() -> Iterator[list[np.ndarray]]:
        nonlocal done
        for array in batches():
            for count, values in _guarded(runner, array):
                yield values
                done += count
                if progress is not None and rows:
                    progress(min(1.0, done / (rows * passes)))

    ranges = _extremes(stream(), names)
    if method == "min-max":
        return ranges
    histograms = {name: Histogram.over(ranges[name]) for name in names}
    for values in stream():
        for name, array in zip(names, values, strict=True):
            if name not in whole:
                histograms[name].add(array)
    for name, histogram in histograms.items():
        if name not in whole:
            cut = percentile_range(histogram, percentile) if method == "percentile" else None
            ranges[name] = cut or mse_range(histogram, levels)
    return ranges


def _extremes(stream: Iterator[list[np.ndarray]], names: Mapping[str, str]) -> dict[str, Range]:
    """Smallest and largest value of every tensor; the first pass, which also refuses what is not finite."""
    ranges: dict[str, Range] = {}
    for values in stream:
        for (name, layer), array in zip(names.items(), values, strict=True):
            if array.size == 0:
                continue
            seen = Range(float(array.min()), float(array.max()))
            if not (np.isfinite(seen.low) and np.isfinite(seen.high)):
                raise DataError(
                    f"calibration: layer {layer!r} yields values that are not finite (tensor {name!r})",
                    "check the rows and the network's preprocessing, or the weights of that layer",
                )
            ranges[name] = ranges[name].union(seen) if name in ranges else seen
    missing = [name for name in names if name not in ranges]
    if missing:
        raise DataError(f"calibration saw no value of tensor {missing[0]!r}", "give at least one row")
    return ranges


def _guarded(runner: _Runner, array: np.ndarray) -> Iterator[tuple[int, list[np.ndarray]]]:
    try:
        yield from runner(array)
    except Exception as error:
        raise DataError(
            f"the network cannot process the calibration rows: {explained(error, 'them').message}",
            "check that the rows fit the network",
        ) from error
