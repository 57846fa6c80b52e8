"""The bytes of quantised activations: exact, as small as they say, and refused when damaged."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from dlas.core.errors import DataError, DlasError, OptionError, ShapeError
from dlas.kernels.formats import dqa


def layout(channels: int = 4, **changes: object) -> dqa.Layout:
    fields: dict = {
        "bits": 3,
        "extra": np.array([3, 0] * (channels // 2), np.uint8),
        "signed": True,
        "span": "batch",
        "peaks": np.ones(channels, np.float32),
    }
    return dqa.Layout(**{**fields, **changes})


def drawn(rng: np.random.Generator) -> tuple[np.ndarray, dqa.Layout]:
    channels, inner = int(rng.integers(1, 7)), tuple(rng.integers(1, 6, rng.integers(0, 3)).tolist())
    scale = rng.choice([0, 1, 100, 1e-20], (1, channels, *[1] * len(inner)))
    x = (rng.standard_normal((int(rng.integers(0, 5)), channels, *inner)) * scale).astype(np.float32)
    signed, extra = bool(rng.integers(2)), rng.integers(0, 4, channels).astype(np.uint8)
    tables = dqa.TABLES[rng.integers(3)]
    made = dqa.Layout(
        int(rng.integers(2, 9)),
        extra,
        signed,
        dqa.SPANS[rng.integers(3)],  # type: ignore[arg-type]
        np.abs(rng.standard_normal(channels if rng.integers(2) else 1)).astype(np.float32),
        bool(rng.integers(2)),
        tables,  # type: ignore[arg-type]
        dqa.static_tables(rng.integers(0, 99, (channels, 8)), extra) if tables == "static" else None,
    )
    return (x if signed else np.abs(x)), made


def test_what_is_decoded_is_what_was_rounded():
    rng = np.random.default_rng(0)
    for _ in range(150):
        x, made = drawn(rng)
        data, stored = dqa.encode_measured(x, made)
        back = dqa.decode(data, made, x.shape[2:])
        assert back.shape == x.shape
        assert back.tobytes() == dqa.dequantized(x, made).tobytes()
        assert (stored.bits, stored.values) == (8 * len(data), x.size)
        codes, steps = dqa.quantize(x, made)
        np.testing.assert_array_equal(back, codes.astype(np.float32) * steps)


def test_published_formulas():
    """``M / 2**(n-1)`` times ``q + e / 2**m``, with q and e from the (n+m)-bit code."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((6, 4, 5, 5)).astype(np.float32)
    back = dqa.dequantized(x, layout())
    for c in range(4):
        peak, m = np.abs(x[:, c]).max(), [3, 0, 3, 0][c]
        whole = np.clip(np.rint(x[:, c] / (peak / 2 ** (2 + m))), -(2 ** (2 + m)), 2 ** (2 + m) - 1).astype(
            int
        )
        q, e = whole >> m, whole & (2**m - 1)
        assert q.min() >= -4
        assert q.max() <= 3
        np.testing.assert_allclose(back[:, c], peak / 4 * (q + e / 2**m), rtol=1e-6)


@pytest.mark.parametrize("full", [True, False])
def test_unsigned_grids(full: bool):
    x = np.array([[0.0], [0.5], [1.0], [2.0]], np.float32)
    made = layout(1, extra=np.zeros(1, np.uint8), signed=False, span="static", full=full)
    codes, steps = dqa.quantize(x, made)
    assert codes.max() == 7
    assert float(steps.item()) == pytest.approx(1 / 7 if full else 1 / 8)
    assert dqa.dequantized(x, made)[2, 0] == (1.0 if full else 0.875)


def test_zeros_constants_and_no_rows():
    for tables in dqa.TABLES:
        lengths = dqa.static_tables(np.zeros((4, 8), np.int64), np.array([3, 0, 3, 0]))
        made = layout(tables=tables, lengths=lengths)
        for x in (np.zeros((3, 4, 2, 2)), np.full((3, 4, 2, 2), 0.7), np.zeros((0, 4, 2, 2))):
            x = x.astype(np.float32)
            back = dqa.decode(dqa.encode(x, made), made, (2, 2))
            np.testing.assert_array_equal(back, dqa.dequantized(x, made))
        assert not back.size
    zero = dqa.decode(dqa.encode(np.zeros((2, 4, 3), np.float32), layout()), layout(), (3,))
    assert not zero.any()


def test_a_channel_of_one_error_pays_its_table_only():
    x = np.ones((16, 2, 8, 8), np.float32)
    made = layout(2)
    stored = dqa.encode_measured(x, made)[1]
    assert stored.errors == 16 * 64
    assert stored.error_bits == 0
    # rows, two peaks, 3 bits per value, one table and the count of its payload
    assert stored.bits == 32 + 64 + 3 * x.size + 24 + 32


def test_errors_never_take_more_than_uncoded_ones():
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, (8, 4, 8, 8)).astype(np.float32)
    sizes = {t: dqa.encode_measured(x, layout(tables=t))[1] for t in ("dynamic", "raw")}
    assert sizes["dynamic"].error_bits <= 3 * sizes["dynamic"].errors
    assert sizes["raw"].bits == 32 + 4 * 32 + 3 * x.size + 3 * x.size // 2
    peaked = (rng.laplace(size=(32, 4, 8, 8)) ** 3).astype(np.float32)
    assert dqa.encode_measured(peaked, layout())[1].bits_per_error < 2.8


def test_tables_fixed_beforehand_save_the_tables():
    rng = np.random.default_rng(3)
    x = (rng.laplace(size=(1, 4, 8, 8)) ** 3).astype(np.float32)
    counts = dqa.error_counts((rng.laplace(size=(64, 4, 8, 8)) ** 3).astype(np.float32), layout())
    lengths = dqa.static_tables(counts, layout().extra)
    fixed = layout(tables="static", lengths=lengths)
    assert len(dqa.encode(x, fixed)) < len(dqa.encode(x, layout()))
    assert fixed.side_bytes == layout().side_bytes + 2 * 3


def test_rows_apart_have_ranges_apart():
    x = np.stack([np.ones((2, 3)), np.full((2, 3), 100.0)]).astype(np.float32)
    made = layout(2, span="sample")
    alone = dqa.dequantized(x[:1], made)
    np.testing.assert_array_equal(dqa.dequantized(x, made)[:1], alone)
    assert not np.array_equal(dqa.dequantized(x, layout(2))[:1], dqa.dequantized(x[:1], layout(2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float):
    x = np.ones((2, 4, 3), np.float32)
    x[1, 2, 0] = bad
    with pytest.raises(OptionError, match="finite"):
        dqa.encode(x, layout())


def test_other_shapes_are_refused():
    for x in (np.ones((2, 3, 4), np.float32), np.ones((2, 4), np.float64), np.ones(4, np.float32)):
        with pytest.raises(ShapeError):
            dqa.encode(x, layout())
    with pytest.raises(OptionError):
        layout(bits=9)
    with pytest.raises(OptionError):
        layout(extra=np.full(4, 4, np.uint8))


def test_damaged_bytes_are_refused_or_decode_to_something():
    rng = np.random.default_rng(4)
    for _ in range(25):
        x, made = drawn(rng)
        data = dqa.encode(x, made)
        for bad in (data[:-1], data + b"\0", data[: len(data) // 2]):
            with pytest.raises(DataError):
                dqa.decode(bad, made, x.shape[2:])
        for _ in range(10):
            changed = bytearray(data)
            changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            with contextlib.suppress(DlasError):  # any other error fails the test
                assert np.isfinite(dqa.decode(bytes(changed), made, x.shape[2:])).all()
    with pytest.raises(DataError, match="expected"):
        dqa.decode(b"\xff\xff\xff\xff", layout(), (1000, 1000))
