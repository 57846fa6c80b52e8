"""Compressed sparse rows: for each output channel the columns and values of its weights that are not 0.

The column of a convolution's weight is ``(c * KH + i) * KW + j``, its place in the flattened filter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlas.core.errors import ShapeError

_MOST = 2**31 - 1  # what int32 counts


@dataclass(frozen=True)
class Csr:
    """A matrix by rows, columns ascending within each.

    Attributes:
        rowptr: ``(K+1,)`` int32: row k holds the entries ``rowptr[k] .. rowptr[k+1]``.
        colidx: ``(nnz,)`` int32.
        val: ``(nnz,)`` float32 (or another dtype of the weights).
        shape: Shape of the dense weights, ``(K, ...)``.
    """

    rowptr: np.ndarray
    colidx: np.ndarray
    val: np.ndarray
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        rows = self.shape[0] if self.shape else 0
        width = _width(self.shape)
        for name in ("rowptr", "colidx"):
            array = getattr(self, name)
            if array.dtype != np.int32 or array.ndim != 1:
                raise ShapeError(f"{name} is {array.dtype} with {array.ndim} axes, expected a row of int32")
        if self.val.shape != self.colidx.shape:
            raise ShapeError(f"val has the shape {list(self.val.shape)}, colidx {list(self.colidx.shape)}")
        if len(self.rowptr) != rows + 1:
            raise ShapeError(f"rowptr has {len(self.rowptr)} numbers, expected {rows + 1} for {rows} rows")
        if self.rowptr[0] or self.rowptr[-1] != len(self.val) or (np.diff(self.rowptr) < 0).any():
            raise ShapeError(f"rowptr does not ascend from 0 to the {len(self.val)} values")
        if len(self.colidx) and not (self.colidx.min() >= 0 and self.colidx.max() < width):
            raise ShapeError(f"colidx reaches beyond the {width} columns of the shape {list(self.shape)}")
        same_row = np.diff(self.row_of_entry()) == 0
        if (np.diff(self.colidx)[same_row] <= 0).any():
            raise ShapeError("colidx does not ascend within each row")

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that are 0."""
        size = self.shape[0] * _width(self.shape)
        return 1 - len(self.val) / size if size else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.rowptr.nbytes + self.colidx.nbytes + self.val.nbytes

    def row_of_entry(self) -> np.ndarray:
        """``(nnz,)`` row each entry stands in."""
        return np.repeat(np.arange(len(self.rowptr) - 1), np.diff(self.rowptr))

    def dense(self) -> np.ndarray:
        """The weights, ``shape`` in the dtype of ``val``."""
        found = np.zeros((self.shape[0], _width(self.shape)), self.val.dtype)
        found[self.row_of_entry(), self.colidx] = self.val
        return found.reshape(self.shape)


def to_csr(weight: np.ndarray) -> Csr:
    """Leave the zeros of a weight out.

    Args:
        weight: ``(K, ...)``: filters of a convolution or rows of a matrix, any number dtype. NaN is kept, the sign
            of zeros is not.

    Returns:
        The same numbers by rows; ``dense`` gives them back.

    Raises:
        ShapeError: It has fewer than two axes, or more entries than int32 counts.
    """
    if not isinstance(weight, np.ndarray) or weight.ndim < 2:
        shape = list(np.shape(weight))
        raise ShapeError(f"the weight has the shape {shape}, expected at least 2 axes, output channels first")
    flat = weight.reshape(len(weight), _width(weight.shape))
    rows, columns = np.nonzero(flat)
    if max(len(columns), flat.shape[1]) > _MOST:
        raise ShapeError(f"the weight has {len(columns)} entries, int32 counts {_MOST}")
    rowptr = np.zeros(len(flat) + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=len(flat)), out=rowptr[1:])
    return Csr(rowptr, columns.astype(np.int32), flat[rows, columns], weight.shape)


def _width(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[1:], dtype=np.int64))
