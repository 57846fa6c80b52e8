from __future__ import annotations

import time

import numpy as np
import pytest

from dlas.core.figure import Source
from dlas.core.timing import Protocol, Sampler, Timing, is_clear, measure, ratio

SHORT = Protocol(warmup_s=0.02, min_samples=10, min_s=0.1, max_s=1.0, rounds=5)


def rounds(centre, spread, n=40, count=5, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(np.abs(rng.normal(centre, spread, n)) for _ in range(count))


def test_sleep_of_five_milliseconds():
    timing = measure({"sleep": lambda: time.sleep(0.005)}, SHORT)["sleep"]
    figure = timing.figure()
    assert 5.0 <= figure.value <= 5.6
    assert (figure.unit, figure.source) == ("ms", Source.MEASURED)
    assert figure.low <= figure.value <= figure.high
    assert figure.n == len(timing.samples_ms) >= 10


def test_candidates_take_turns():
    order = []
    runners = {name: lambda name=name: (order.append(name), time.sleep(0.001)) for name in "abc"}
    measure(runners, Protocol(warmup_runs=1, warmup_s=0, min_samples=6, min_s=0, rounds=3))
    assert "".join(order) == "abc" + "aabbcc" * 3


def test_short_runs_are_timed_in_batches():
    sampler = Sampler(lambda: None)
    sampler.warm_up(SHORT)
    assert sampler.batch > 100
    samples = sampler.sample(0.01, 5)
    assert np.median(samples) < 0.002


def test_long_runs_are_not_batched_and_end_at_the_limit():
    calls = []
    sampler = Sampler(lambda: (calls.append(1), time.sleep(0.02)))
    sampler.warm_up(Protocol(warmup_s=0.0))
    assert sampler.batch == 1
    assert len(calls) == 3
    assert len(sampler.sample(0.0, 1000, max_seconds=0.05)) == 3
    assert len(sampler.sample(0.0, 1000, max_seconds=0.0)) == 1


def test_sampling_meets_both_demands():
    sampler = Sampler(lambda: time.sleep(0.001))
    assert len(sampler.sample(0.0, 7)) == 7
    assert sum(sampler.sample(0.05, 1)) >= 50


def test_quick_protocol_is_quicker():
    quick, full = Protocol.quick(), Protocol()
    assert (quick.min_s, quick.min_samples, quick.max_s) == (0.25, 20, 3.0)
    assert (full.warmup_runs, full.warmup_s, full.min_samples) == (3, 0.2, 30)
    assert (full.min_s, full.max_s, full.rounds) == (1.0, 10.0, 5)


def test_percentiles_and_noise():
    timing = Timing((np.arange(1.0, 102.0),))
    assert (timing.min, timing.p5, timing.median, timing.p95) == (1, 6, 51, 96)
    assert timing.figure().note == "noisy"
    calm = Timing((np.full(30, 2.0),))
    assert calm.figure().note == ""
    assert Timing(calm.rounds, load=1e6).figure().note == "noisy"
    with pytest.raises(ValueError, match="at least one"):
        Timing((np.zeros(0),))


def test_ratio_claims_only_what_it_can_tell():
    slow, fast = Timing(rounds(2.0, 0.05)), Timing(rounds(1.0, 0.05, seed=1))
    figure = ratio(fast, slow)
    assert figure.value == pytest.approx(0.5, rel=0.03)
    assert figure.low < 0.5 < figure.high < 0.55
    assert is_clear(figure)
    assert figure.value < 1
    assert is_clear(ratio(slow, fast))
    same = ratio(Timing(rounds(1.0, 0.05, seed=2)), Timing(rounds(1.0, 0.05, seed=3)))
    assert same.low < 1 < same.high
    assert not is_clear(same)


def test_drift_between_rounds_widens_the_interval_unless_both_share_it():
    drift = np.array([1.0, 1.3, 0.8, 1.2, 0.9])
    a, b = rounds(1.0, 0.01, seed=4), rounds(0.97, 0.01, seed=5)
    shared = ratio(Timing(tuple(r * d for r, d in zip(a, drift, strict=True))),
                   Timing(tuple(r * d for r, d in zip(b, drift, strict=True))))  # fmt: skip
    one_sided = ratio(Timing(tuple(r * d for r, d in zip(a, drift, strict=True))), Timing(b))
    assert one_sided.high - one_sided.low > 3 * (shared.high - shared.low)
    assert one_sided.low < 1 < one_sided.high
    assert shared.low > 1


def test_ratio_of_few_or_unequal_rounds_and_its_determinism():
    a, b = Timing(rounds(1, 0.1, count=1)), Timing(rounds(2, 0.1, count=2, seed=1))
    assert ratio(a, b) == ratio(a, b)
    assert is_clear(ratio(a, b))
