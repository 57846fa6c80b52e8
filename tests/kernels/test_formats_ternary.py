"""Ternary codes: the search for scales, packing, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.formats.ternary import pack_ternary, ternarize, unpack_ternary

RNG = np.random.default_rng(0)


def by_hand(w, iterations=5):
    """One slice, as the definition reads."""
    s = 2 * np.abs(w).max() / 3
    for _ in range(iterations):
        q = np.sign(w) * (np.abs(w) >= s / 2)
        s = (w * q).sum() / (q * q).sum()
    return q, s


@pytest.mark.parametrize(("shape", "axis"), [((6, 4, 3, 3), 0), ((8, 5), 1), ((7,), 0), ((3, 9), -2)])
def test_every_slice_follows_the_definition(shape, axis):
    w = RNG.normal(0, 1, shape).astype(np.float32)
    codes, scale = ternarize(w, axis=axis)
    assert (codes.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (shape[axis],))
    for part, own, s in zip(np.moveaxis(w, axis, 0), np.moveaxis(codes, axis, 0), scale, strict=True):
        q, expected = by_hand(part.astype(np.float64))
        np.testing.assert_array_equal(own, q)
        assert s == pytest.approx(expected, rel=1e-6)


def test_one_scale_for_all_and_the_error_shrinks_with_the_turns():
    w = RNG.standard_t(3, 4000)
    errors = []
    for turns in (1, 5, 50):
        codes, scale = ternarize(w, iterations=turns)
        assert scale.shape == ()
        errors.append(np.square(w - scale * codes).sum())
    assert errors[0] > errors[1] >= errors[2] * 0.999


def test_weights_that_are_ternary_come_back_exactly():
    codes = RNG.integers(-1, 2, (5, 20)).astype(np.int8)
    codes[:, 0] = 1
    scale = np.float32([0.5, 1, 2, 0.25, 3])
    found, own = ternarize(codes * scale[:, None], axis=0)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(own, scale, rtol=1e-6)


def test_zeros_stay_zeros():
    codes, scale = ternarize(np.zeros((3, 4), np.float32), axis=0)
    assert not codes.any()
    assert not scale.any()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 1001])
def test_packing_is_exact_and_takes_two_bits(count):
    codes = RNG.integers(-1, 2, count).astype(np.int8)
    packed = pack_ternary(codes)
    assert packed.nbytes == -(-count // 4)
    np.testing.assert_array_equal(unpack_ternary(packed, count), codes)


def test_the_first_code_is_in_the_lowest_bits():
    assert pack_ternary(np.array([1, -1, 0, 1])).tolist() == [0b01_00_11_01]


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: ternarize(np.array([1, 2])), ShapeError, "expected float32"),
        (lambda: ternarize(np.array([np.inf])), OptionError, "NaN or infinity"),
        (lambda: ternarize(np.ones(3), iterations=0), OptionError, "iterations = 0"),
        (lambda: pack_ternary(np.array([0, 2])), OptionError, "codes = 2"),
        (lambda: unpack_ternary(np.zeros(1, np.uint8), 5), ShapeError, "1 bytes"),
        (lambda: unpack_ternary(np.array([0b10], np.uint8), 4), OptionError, "a field of 10"),
    ],
)
def test_what_is_no_ternary_weight_is_refused(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
