"""The timing protocol of every latency that dlas prints.

Warm up, then sample in rounds that visit all candidates in turn (A B C A B C), so that drift of the clock frequency
or of the load hits all alike. A figure is the median with a bootstrap interval; one candidate is called faster than
another only when the interval of the ratio excludes 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from dlas.core.figure import Figure, Source
from dlas.core.statistics import bootstrap_median, bootstrap_medians

Runner = Callable[[], object]

_BATCH_BELOW_NS = 20_000  # a shorter run is timed in batches, or reading the clock would weigh in
_BATCH_NS = 200_000
_NOISY_SPREAD = 1.3
_SKETCH = 400


@dataclass(frozen=True)
class Protocol:
    """How long and how often to time.

    Attributes:
        warmup_runs: Fewest runs before the first sample.
        warmup_s: Shortest warm-up in seconds.
        min_samples: Fewest samples over all rounds, unless ``max_s`` comes first.
        min_s: Shortest sampling time over all rounds, in seconds.
        max_s: Sampling of one candidate ends after this many seconds (every round takes at least one sample).
        rounds: Number of visits to each candidate.
    """

    warmup_runs: int = 3
    warmup_s: float = 0.2
    min_samples: int = 30
    min_s: float = 1.0
    max_s: float = 10.0
    rounds: int = 5

    @classmethod
    def quick(cls) -> Protocol:
        """A shorter protocol for interactive use: 20 samples, 0.25 s at least, 3 s at most."""
        return cls(warmup_s=0.05, min_samples=20, min_s=0.25, max_s=3.0)


class Sampler:
    """Times one callable; nothing but the callable stands between the two readings of the clock.

    Attributes:
        batch: Runs per sample: more than 1 only where one run is shorter than 20 microseconds.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.batch = 1

    def warm_up(self, protocol: Protocol) -> None:
        """Run until caches, lazy packing and the clock frequency have settled; decide on batching."""
        runner, start, last = self._runner, perf_counter_ns(), 0
        runs, shortest = 0, math.inf
        limit = protocol.max_s * 1e9
        while (
            runs < protocol.warmup_runs or last - start < protocol.warmup_s * 1e9
        ) and last - start < limit:
            before = perf_counter_ns()
            runner()
            last = perf_counter_ns()
            shortest = min(shortest, last - before)
            runs += 1
        self.batch = math.ceil(_BATCH_NS / max(shortest, 50)) if shortest < _BATCH_BELOW_NS else 1

    def sample(self, seconds: float, min_samples: int = 1, max_seconds: float = math.inf) -> list[float]:
        """Milliseconds per run, one entry per sample.

        Args:
            seconds: Sample at least this long.
            min_samples: Take at least this many samples,
            max_seconds: but end after this long (never before the first sample).
        """
        runner, batch, clock = self._runner, self.batch, perf_counter_ns
        raw: list[int] = []
        start = clock()
        enough, at_most = start + seconds * 1e9, start + max_seconds * 1e9
        now = start
        while not raw or ((now < enough or len(raw) < min_samples) and now < at_most):
            if batch == 1:
                before = clock()
                runner()
                now = clock()
            else:
                loop = range(batch)
                before = clock()
                for _ in loop:
                    runner()
                now = clock()
            raw.append(now - before)
        return [nanoseconds / (1e6 * batch) for nanoseconds in raw]


@dataclass(frozen=True, eq=False)
class Timing:
    """All samples of one candidate.

    Attributes:
        rounds: Milliseconds per run, one array ``(n,) float64`` per round.
        load: Highest load average seen around the rounds; 0 when unknown.
    """

    rounds: tuple[np.ndarray, ...]
    load: float = 0.0

    def __post_init__(self) -> None:
        rounds = tuple(np.asarray(r, np.float64) for r in self.rounds if len(r))
        if not rounds:
            raise ValueError("a timing needs at least one sample")
        object.__setattr__(self, "rounds", rounds)

    @property
    def samples_ms(self) -> np.ndarray:
        """Samples of all rounds in order, ``(n,) float64`` in milliseconds."""
        return np.concatenate(self.rounds)

    @property
    def median(self) -> float:
        """Median in milliseconds."""
        return float(np.median(self.samples_ms))

    @property
    def min(self) -> float:
        """Shortest sample in milliseconds."""
        return float(self.samples_ms.min())

    @property
    def p5(self) -> float:
        """5th percentile in milliseconds."""
        return float(np.percentile(self.samples_ms, 5))

    @property
    def p95(self) -> float:
        """95th percentile in milliseconds."""
        return float(np.percentile(self.samples_ms, 95))

    @property
    def is_noisy(self) -> bool:
        """Whether the spread (p95 / median > 1.3) or the load (more than the cores) casts doubt on the median."""
        return self.p95 > _NOISY_SPREAD * self.median or self.load > (os.cpu_count() or 1)

    def figure(self) -> Figure:
        """Median with its 95 % bootstrap interval, in ms; the note says ``noisy`` where it is."""
        samples = self.samples_ms
        low, high = bootstrap_median(samples)
        note = "noisy" if self.is_noisy else ""
        return Figure(self.median, "ms", Source.MEASURED, low, high, len(samples), note)


def measure(runners: Mapping[str, Runner], protocol: Protocol | None = None) -> dict[str, Timing]:
    """Time all ``runners`` in this process, interleaved; each is warmed up first."""
    return measure_samplers({name: Sampler(runner) for name, runner in runners.items()}, protocol)


def measure_samplers(samplers: Mapping[str, Sampler], protocol: Protocol | None = None) -> dict[str, Timing]:
    """As :func:`measure`, for anything with ``warm_up`` and ``sample`` (such as a sampler in a worker process)."""
    protocol = protocol or Protocol()
    highest = os.getloadavg()[0]
    for sampler in samplers.values():
        sampler.warm_up(protocol)
    rounds: dict[str, list[list[float]]] = {name: [] for name in samplers}
    for _ in range(protocol.rounds):
        for name, sampler in samplers.items():
            rounds[name].append(sample_round(sampler, protocol))
    highest = max(highest, os.getloadavg()[0])
    return {name: Timing(tuple(np.asarray(r) for r in taken), highest) for name, taken in rounds.items()}


def sample_round(sampler: Sampler, protocol: Protocol) -> list[float]:
    """One round's share of the protocol: a ``rounds``-th of its time and samples."""
    share = protocol.rounds
    return sampler.sample(
        protocol.min_s / share, math.ceil(protocol.min_samples / share), protocol.max_s / share
    )


def ratio(a: Timing, b: Timing, resamples: int = 1000, seed: int = 0) -> Figure:
    """Median time of ``a`` over median time of ``b`` (below 1: ``a`` is faster), with a 95 % bootstrap interval.

    With three or more rounds taken in turn, whole rounds are resampled, the same ones for both sides, and samples
    within them (two-stage bootstrap, Davison & Hinkley 1997, section 3.8): drift between rounds then widens the
    interval as it should, and drift that both sides share cancels.
    """
    rng = np.random.default_rng(seed)
    if len(a.rounds) == len(b.rounds) >= 3:
        ratios = _ratios_by_round(a.rounds, b.rounds, resamples, rng)
    else:
        ratios = bootstrap_medians(a.samples_ms, resamples, rng) / bootstrap_medians(
            b.samples_ms, resamples, rng
        )
    low, high = np.quantile(ratios, (0.025, 0.975))
    n = min(len(a.samples_ms), len(b.samples_ms))
    note = "noisy" if a.is_noisy or b.is_noisy else ""
    return Figure(a.median / b.median, "ratio", Source.MEASURED, float(low), float(high), n, note)


def is_clear(figure: Figure) -> bool:
    """Whether a :func:`ratio` may be read as faster or slower: its whole interval lies on one side of 1."""
    return figure.low is not None and figure.high is not None and not figure.low <= 1 <= figure.high


def _ratios_by_round(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    picks = rng.integers(0, len(a), (resamples, len(a)))
    return _pooled_medians(a, picks, rng) / _pooled_medians(b, picks, rng)


def _pooled_medians(rounds: Sequence[np.ndarray], picks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # Every round is brought to one size by evenly spaced quantiles: rounds weigh alike, and ten thousand samples of
    # a fast network cost no more than a few hundred. The smaller size only widens the interval.
    size = min(_SKETCH, max(len(r) for r in rounds))
    grid = (np.arange(size) + 0.5) / size
    table = np.stack([np.quantile(r, grid) for r in rounds])
    medians = np.empty(len(picks))
    for start in range(0, len(picks), 100):
        chosen = picks[start : start + 100]
        within = rng.integers(0, size, (*chosen.shape, size))
        drawn = table[chosen[:, :, None], within].reshape(len(chosen), -1)
        medians[start : start + 100] = np.median(drawn, axis=1)
    return medians
