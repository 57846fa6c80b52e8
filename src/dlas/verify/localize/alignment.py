"""Do two tensors hold the same values, perhaps with their axes in another order?

Converters rename tensors, add and drop axes of size one and turn channels first into channels last. Two tensors are
the same when one order of the axes that are left after dropping those of size one makes them agree. Values are
``(rows, ...)`` on both sides, and rows always correspond.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

Order = tuple[int, ...]
_FEW = 3  # rows on which an order is tried before all are looked at
_MOST_AXES = 5


@dataclass(frozen=True)
class Match:
    """A tensor of the target and the one of the source that it stands for.

    Attributes:
        target: Name in the target.
        source: Name in the source.
        order: Which axis of the source (of those not of size one) each axis of the target is.
        error: ``||target - source|| / ||source||`` over all rows.
        ambiguous: Another order of the axes fits as well, because the values do not tell axes apart.
    """

    target: str
    source: str
    order: Order
    error: float
    ambiguous: bool = False


def squeezed(values: np.ndarray) -> np.ndarray:
    """``(rows, ...)`` without axes of size one behind the rows."""
    return values.reshape(len(values), *(d for d in values.shape[1:] if d != 1))


def orders(source: tuple[int, ...], target: tuple[int, ...]) -> Iterator[Order]:
    """Every order of the axes of a ``source`` shape that gives a ``target`` shape, the identity first."""
    if sorted(source) == sorted(target) and len(source) <= _MOST_AXES:
        for order in itertools.permutations(range(len(source))):
            if tuple(source[a] for a in order) == target:
                yield order


def turned(source: np.ndarray, order: Order, shape: tuple[int, ...]) -> np.ndarray:
    """Values of the source as the target's tensor of ``shape`` (without rows) would hold them."""
    small = squeezed(source)
    return np.ascontiguousarray(small.transpose(0, *(a + 1 for a in order))).reshape(len(source), *shape)


def relative(source: np.ndarray, target: np.ndarray) -> float:
    """``||target - source|| / ||source||``; infinite where the source is zero and the target is not."""
    if source.dtype != np.float32 or target.dtype != np.float32:
        source, target = source.astype(np.float64), target.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        noise, signal = _norm(source - target), _norm(source)
        # Squares of very large or very small numbers leave the range of float32.
        if source.dtype == np.float32 and not 0 < signal + noise < np.inf:
            wide = source.astype(np.float64)
            noise, signal = _norm(wide - target), _norm(wide)
    if not np.isfinite(noise):
        return float("inf")
    return noise / signal if signal else (0.0 if noise == 0 else float("inf"))


class Candidates:
    """Tensors of the source, found again by what does not depend on the order of axes.

    Args:
        values: ``(rows, ...)`` by name, in the order of execution; floating point only.
    """

    def __init__(self, values: Iterable[tuple[str, np.ndarray]]) -> None:
        self.values: dict[str, np.ndarray] = {}
        self._place: dict[str, int] = {}
        self._shapes: dict[tuple[int, ...], list[str]] = {}
        self._norms: dict[str, np.ndarray] = {}
        for name, array in values:
            if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
                continue
            small = squeezed(array)
            self.values[name] = array
            self._place[name] = len(self._place)
            self._shapes.setdefault(tuple(sorted(small.shape[1:])), []).append(name)
            self._norms[name] = _norms(small)

    def of_shape(self, shape: tuple[int, ...]) -> list[str]:
        """Names of the tensors with these sizes in any order (sizes of one aside)."""
        return self._shapes.get(tuple(sorted(d for d in shape if d != 1)), [])

    def find(
        self, name: str, values: np.ndarray, tolerance: float, after: int = -1, prefer: str = ""
    ) -> Match | None:
        """The source's tensor that ``values`` of the target are, or None.

        Args:
            name: Name of the target's tensor, for the Match.
            values: ``(rows, ...)``.
            tolerance: Largest relative error.
            after: Of several that fit equally well, the first one at or behind this place is taken.
            prefer: Name taken if it fits as well as the best.
        """
        if not np.issubdtype(values.dtype, np.floating) or not np.isfinite(values).all():
            return None
        small = squeezed(values)
        norms = _norms(small)
        found: list[Match] = []
        for other in self.of_shape(small.shape[1:]):
            known = self._norms[other]
            # The norms differ by no more than the norm of the difference.
            if not np.all(np.abs(norms - known).sum() <= tolerance * known.sum() * 1.5 + 1e-30):
                continue
            match = self.fit(name, other, small, tolerance)
            if match is not None:
                found.append(match)
        if not found:
            return None
        best = min(m.error for m in found)
        close = [m for m in found if m.error <= 2 * best + 1e-9]
        named = [m for m in close if m.source == prefer]
        behind = [m for m in close if self._place[m.source] >= after]
        return (named or sorted(behind, key=lambda m: self._place[m.source]) or close)[0]

    def fit(self, name: str, source: str, small: np.ndarray, tolerance: float) -> Match | None:
        """The best order of axes under which squeezed values of the target agree with one tensor of the source."""
        wanted = squeezed(self.values[source])
        passed: list[Match] = []
        for order in orders(wanted.shape[1:], small.shape[1:]):
            axes = (0, *(a + 1 for a in order))
            # A few rows may be all zero in one tensor; then only all of them can tell.
            if relative(wanted[:_FEW].transpose(axes), small[:_FEW]) > 4 * tolerance and wanted[:_FEW].any():
                continue
            error = relative(wanted.transpose(axes), small)
            if error <= tolerance:
                passed.append(Match(name, source, order, error))
        if not passed:
            return None
        best = min(passed, key=lambda m: m.error)
        alike = [m for m in passed if m.error <= 2 * best.error + 1e-9]
        return Match(best.target, best.source, best.order, best.error, ambiguous=len(alike) > 1)

    def place(self, name: str) -> int:
        """Position of a tensor in the order of execution."""
        return self._place[name]


def _norm(values: np.ndarray) -> float:
    # np.linalg.norm starts the threads of the BLAS for every small tensor.
    flat = values.reshape(-1)
    return float(np.sqrt(np.einsum("i,i->", flat, flat)))


def _norms(small: np.ndarray) -> np.ndarray:
    """Norm of every row: the same for every order of the axes."""
    flat = small.reshape(len(small), -1)
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->i", flat, flat)
    if flat.dtype != np.float64 and not ((squares > 0) & (squares < np.inf)).all():
        return _norms(flat.astype(np.float64))
    return np.sqrt(squares.astype(np.float64))
