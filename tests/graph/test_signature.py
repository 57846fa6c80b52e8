"""What is fed to a network that comes without data."""

from __future__ import annotations

import numpy as np
import pytest

from dlas.graph.signature import random_array


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("int8", -128, 127), ("uint8", 0, 255), ("int32", 0, 99), ("int64", 0, 99), ("bool", 0, 1)],
)
def test_integers_span_what_they_stand_for(dtype: str, low: int, high: int) -> None:
    x = random_array((64, 80), dtype, np.random.default_rng(0))
    assert x.dtype == dtype
    assert x.shape == (64, 80)
    assert (int(x.min()), int(x.max())) == (low, high)


def test_floats_are_standard_normal() -> None:
    x = random_array((64, 80), "float16", np.random.default_rng(0))
    assert x.dtype == np.float16
    assert abs(float(x.mean())) < 0.05
    assert abs(float(x.std()) - 1) < 0.05
