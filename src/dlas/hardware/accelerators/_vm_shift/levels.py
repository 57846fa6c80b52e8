"""From int8 weights to codes of shifts, with the factors that change with the unit of the weights."""

from __future__ import annotations

import dataclasses

import numpy as np

from dlas.hardware.accelerators._gemm.product import Lowered
from dlas.kernels.formats.grid import Grid
from dlas.kernels.formats.grids import by_name
from dlas.kernels.formats.recovery import fit
from dlas.kernels.reference.requantize import quantize_multiplier

METHODS = {name: by_name(name, 4) for name in ("apot", "msq", "po2")}


def on_levels(lowered: Lowered, method: str, semantics: str) -> tuple[Lowered | None, str]:
    """A product whose weights are levels of ``method``, or why they are not.

    Args:
        lowered: A layer with int8 weights.
        method: One of ``METHODS``.
        semantics: ``true``: each weight becomes its level, and a channel's scale takes up the rest. ``tflite``: sums
            stay those of the int8 weights; 127, which stands for 128, becomes 128 - 1 by a second look at its input.
    """
    grid, product = METHODS[method], lowered.product
    if len(lowered.again):
        return None, "its weights have more than 8 bits"
    rows = product.weights.astype(np.int64)
    if semantics == "tflite":
        return _exact(lowered, rows)
    found = fit(rows, grid)
    if not found.fits.all():
        missed, worst = int((~found.fits).sum()), float(found.distance.max())
        return (
            None,
            f"{missed} of {len(rows)} filters are not on the levels of {method} (up to {worst:.1f} off)",
        )
    # A channel of zeros alone has no factor, and needs none.
    factor = np.where(found.factor > 0, found.factor, 1.0)
    integers = found.integers
    if not grid.has_zero and (integers == 0).any():
        return None, f"it has weights of 0, which {method} lacks"
    # The zero point of the input is folded in anew: in the bias it is in the old unit, and rounded.
    zero, plain = _unfolded(lowered)
    bias = np.rint(plain / factor).astype(np.int64) - zero * integers.sum(1)
    reals = [
        float(m) * 2.0 ** (int(s) - 31) * f
        for m, s, f in zip(product.multipliers, product.shifts, factor, strict=True)
    ]
    pairs = [quantize_multiplier(real) for real in reals]
    return _with(lowered, grid, integers, bias, pairs), ""


def _unfolded(lowered: Lowered) -> tuple[int, np.ndarray]:
    """Zero point of the int8 input, and the bias as the network has it."""
    node = lowered.node
    zero = int(node.attributes["x_zero_point"]) - (128 if node.operand(0).dtype == "uint8" else 0)
    given = node.constant(2)
    return zero, np.zeros(len(lowered.product.weights)) if given is None else given.astype(np.float64)


def _exact(lowered: Lowered, rows: np.ndarray) -> tuple[Lowered | None, str]:
    grid = METHODS["po2"]
    stored = np.where(np.abs(rows) == 127, np.sign(rows) * 128, rows)
    off = ~np.isin(stored, grid.integers) & (stored != 0)
    if off.any():
        return None, f"{int(off.any(1).sum())} of {len(rows)} filters hold numbers that are no powers of two"
    # Where a column holds 127 or 0, each of its weights is the sum of two powers: 128 - 1, 1 - 1, 2 - 1, 2^(e-1) twice.
    again = np.flatnonzero(((np.abs(rows) == 127) | (rows == 0)).any(0))
    sign, size = np.sign(rows[:, again]), np.abs(rows[:, again])
    first = np.select([size == 127, size == 0, size == 1], [128 * sign, 1, 2 * sign], sign * (size // 2))
    first_all = stored.copy()
    first_all[:, again] = first
    whole = np.concatenate([first_all, rows[:, again] - first], 1)
    product = lowered.product
    pairs = list(zip(product.multipliers.tolist(), product.shifts.tolist(), strict=True))
    made = _with(lowered, grid, whole, product.bias.astype(np.int64), pairs)
    return dataclasses.replace(made, again=again), ""


def _with(
    lowered: Lowered, grid: Grid, integers: np.ndarray, bias: np.ndarray, pairs: list[tuple[int, int]]
) -> Lowered:
    product = dataclasses.replace(
        lowered.product,
        weights=integers.astype(np.int16),
        codes=grid.encode(integers),
        bias=bias.astype(np.int32),
        multipliers=np.array([p[0] for p in pairs], np.int32),
        shifts=np.array([p[1] for p in pairs], np.int8),
    )
    return dataclasses.replace(lowered, product=product)
