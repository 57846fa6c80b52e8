"""4-bit weights in column blocks of 16, as the 8-bit by 4-bit product reads them.

For 16 columns and 8 rows (k) one block of 64 bytes: byte ``4*n + t`` holds the code of row ``t`` in its low and of row
``t + 4`` in its high nibble, so that each half, spread to bytes, is an operand of four-way dot products. A code is
``w + 8``, or the index of ``w`` in a table of 16 values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlas.core.errors import OptionError, ShapeError

COLUMNS, ROWS = 16, 8
LOW, HIGH = -8, 7


@dataclass(frozen=True)
class PackedInt4:
    """A packed matrix ``(K, N)``.

    Attributes:
        data: ``(ceil(N/16), ceil(K/8), 64)`` uint8.
        k: Rows of the matrix; those added to fill a block hold the code of 0.
        n: Columns of the matrix; those added likewise.
        column_sums: ``(N,)`` int32: sums of the weights of each column, by which unsigned activations are corrected.
        table: ``(16,)`` int8: value of each code; None for ``code - 8``.
    """

    data: np.ndarray
    k: int
    n: int
    column_sums: np.ndarray
    table: np.ndarray | None = None

    def __post_init__(self) -> None:
        expected = (-(-self.n // COLUMNS), -(-self.k // ROWS), COLUMNS * ROWS // 2)
        if self.data.dtype != np.uint8 or self.data.shape != expected:
            raise ShapeError(
                f"data is {self.data.dtype} {list(self.data.shape)}, expected uint8 {list(expected)}"
            )
        if self.table is not None:
            check_table(self.table)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes."""
        return self.data.nbytes


def pack_w4(w: np.ndarray, table: np.ndarray | None = None) -> PackedInt4:
    """Pack a matrix of 4-bit weights.

    Args:
        w: ``(K, N)`` integers within -8 .. 7, or among the values of ``table``.
        table: ``(16,)`` int8: value of each code.

    Returns:
        The packed matrix; :func:`unpack_w4` gives ``w`` back.

    Raises:
        ShapeError: ``w`` has another shape or dtype, or an axis of size 0.
        OptionError: A weight has no code.
    """
    codes = _codes(w, table)
    k, n = w.shape
    # Kernels keep the activations of added rows at 0, so that a table without 0 does no harm.
    zero = 8 if table is None else int(np.argmax(np.asarray(table) == 0))
    filled = np.pad(codes, ((0, -k % ROWS), (0, -n % COLUMNS)), constant_values=zero)
    halves = filled.reshape(-1, 2, ROWS // 2, filled.shape[1] // COLUMNS, COLUMNS)
    data = (halves[:, 0] | halves[:, 1] << 4).transpose(2, 0, 3, 1)  # block of columns, of rows, n, t
    data = np.ascontiguousarray(data).reshape(*data.shape[:2], COLUMNS * ROWS // 2)
    sums = w.astype(np.int64).sum(axis=0).astype(np.int32)
    return PackedInt4(data, k, n, sums, None if table is None else np.asarray(table, np.int8))


def unpack_codes(packed: PackedInt4) -> np.ndarray:
    """The codes, ``(K, N)`` uint8."""
    blocks, groups, _ = packed.data.shape
    pairs = packed.data.reshape(blocks, groups, COLUMNS, ROWS // 2)
    halves = np.stack([pairs & 15, pairs >> 4], axis=2)  # block of columns, of rows, half, n, t
    codes = halves.transpose(1, 2, 4, 0, 3).reshape(groups * ROWS, blocks * COLUMNS)
    return codes[: packed.k, : packed.n]


def unpack_w4(packed: PackedInt4) -> np.ndarray:
    """The weights, ``(K, N)`` int8."""
    codes = unpack_codes(packed)
    return codes.astype(np.int8) - np.int8(8) if packed.table is None else packed.table[codes]


def check_table(table: np.ndarray) -> np.ndarray:
    """``table`` as 16 int8; raises ShapeError if it is none."""
    if not isinstance(table, np.ndarray) or table.shape != (16,) or table.dtype != np.int8:
        raise ShapeError(f"the table is {_described(table)}, expected 16 int8")
    return table


def check_codes(w: np.ndarray, name: str = "w") -> None:
    """Raise unless ``w`` is a matrix of integers within -8 .. 7.

    Raises:
        ShapeError: It is no matrix of integers, or has an axis of size 0.
        OptionError: A weight lies outside.
    """
    if not isinstance(w, np.ndarray) or w.ndim != 2 or w.dtype.kind not in "iu":
        raise ShapeError(f"{name} is {_described(w)}, expected a matrix (K, N) of integers")
    if 0 in w.shape:
        raise ShapeError(f"{name} has the shape {list(w.shape)}, expected K >= 1 and N >= 1")
    lowest, highest = int(w.min()), int(w.max())
    if lowest < LOW or highest > HIGH:
        wrong = lowest if lowest < LOW else highest
        raise OptionError(name, wrong, f"4-bit weights, {LOW} .. {HIGH}")


def _codes(w: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    if table is None:
        check_codes(w)
        return (w.astype(np.int64) + 8).astype(np.uint8)
    values = check_table(table)
    if not isinstance(w, np.ndarray) or w.ndim != 2 or w.dtype.kind not in "iu" or 0 in w.shape:
        raise ShapeError(f"w is {_described(w)}, expected a matrix (K, N) of integers, K >= 1 and N >= 1")
    order = np.argsort(values, kind="stable")
    places = np.searchsorted(values, w, sorter=order)
    codes = order[np.minimum(places, 15)].astype(np.uint8)
    wrong = w[values[codes] != w]
    if wrong.size:
        raise OptionError("w", int(wrong[0]), f"one of the table: {sorted(set(values.tolist()))}")
    return codes


def _described(array: object) -> str:
    if isinstance(array, np.ndarray):
        return f"{array.dtype} {list(array.shape)}"
    return f"a {type(array).__name__}"
