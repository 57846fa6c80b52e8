from __future__ import annotations

import numpy as np
import pytest

from dlas.core.statistics import bootstrap_median, bootstrap_medians, mcnemar, wilson


def test_wilson_against_published_values():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(29, 29)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)
    for bad in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="expected 0"):
            wilson(*bad)


@pytest.mark.parametrize("n", [1, 2, 5, 30, 31])
def test_direct_bootstrap_is_the_resampled_one(n):
    rng = np.random.default_rng(n)
    samples = rng.gamma(2.0, 1.0, n)
    direct = bootstrap_medians(samples, 40_000, rng)
    resampled = np.median(rng.choice(samples, (40_000, n)), axis=1)
    quantiles = np.linspace(0.05, 0.95, 7)
    # The spacing of samples near a quantile bounds how far two discrete draws may differ there.
    np.testing.assert_allclose(np.quantile(direct, quantiles), np.quantile(resampled, quantiles), rtol=0.05)
    assert direct.mean() == pytest.approx(resampled.mean(), rel=0.01)
    assert direct.std() == pytest.approx(resampled.std(), rel=0.03, abs=1e-12)


def test_interval_of_the_median_is_fixed_by_its_seed():
    samples = np.random.default_rng(0).normal(10, 1, 101)
    low, high = bootstrap_median(samples)
    assert low < np.median(samples) < high
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / np.sqrt(101), rel=0.3)
    assert bootstrap_median(samples) == (low, high)
    assert bootstrap_median(samples, resamples=50, seed=1) != bootstrap_median(samples, resamples=50)
    with pytest.raises(ValueError, match="no samples"):
        bootstrap_median([])


def test_mcnemar_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    for b, c in [(0, 0), (1, 0), (0, 5), (3, 9), (10, 10), (200, 260), (4000, 4200)]:
        expected = 1.0 if b + c == 0 else stats.binomtest(b, b + c, 0.5).pvalue
        assert mcnemar(b, c) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 2)
