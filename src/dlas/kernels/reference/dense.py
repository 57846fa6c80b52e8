"""Products of matrices, as ONNX Gemm and MatMul define them."""

from __future__ import annotations

import numpy as np

from dlas.core.errors import ShapeError
from dlas.kernels.arrays import real


def gemm(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    trans_a: bool = False,
    trans_b: bool = False,
) -> np.ndarray:
    """``alpha * A' @ B' + beta * C``.

    Args:
        a: ``(M, K)`` float32, or ``(K, M)`` where ``trans_a``.
        b: ``(K, N)`` float32, or ``(N, K)`` where ``trans_b``.
        c: Anything float32 that broadcasts to ``(M, N)``, or None.
        alpha: Factor of the product.
        beta: Factor of ``c``.
        trans_a: Whether ``a`` is stored transposed.
        trans_b: Whether ``b`` is stored transposed.

    Returns:
        ``(M, N)`` float32.

    Raises:
        ShapeError: The arrays do not fit each other.
    """
    left, right = real(a, "a", 2), real(b, "b", 2)
    left = left.T if trans_a else left
    right = right.T if trans_b else right
    _inner(left, right)
    y = alpha * (left @ right)
    if c is not None:
        added = real(c, "c")
        if not _fits(c.shape, y.shape):
            raise ShapeError(f"c has the shape {list(c.shape)}, expected one that fits {list(y.shape)}")
        y = y + beta * added
    return y.astype(np.float32)


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product over the last two axes; the others broadcast, a vector is a row or a column.

    Args:
        a: ``(..., M, K)`` or ``(K,)`` float32.
        b: ``(..., K, N)`` or ``(K,)`` float32.

    Returns:
        ``(..., M, N)`` float32, without the axes that a vector did not have.

    Raises:
        ShapeError: The arrays do not fit each other.
    """
    left, right = real(a, "a"), real(b, "b")
    check_matmul(a, b)
    return np.asarray(left @ right).astype(np.float32)


def check_matmul(a: np.ndarray, b: np.ndarray) -> None:
    """Raise ShapeError unless ``a @ b`` exists."""
    if not a.ndim or not b.ndim:
        raise ShapeError("a matrix product needs arrays with at least one axis")
    _inner(a if a.ndim > 1 else a[None], b if b.ndim > 1 else b[:, None])
    try:
        np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ShapeError(
            f"a has the shape {list(a.shape)}, b {list(b.shape)}: their leading axes do not fit"
        ) from None


def _inner(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape[-1] != b.shape[-2]:
        raise ShapeError(f"a has {a.shape[-1]} columns, b has {b.shape[-2]} rows: they must be equal")


def _fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    if len(shape) > len(target):
        return False
    return all(s in (1, t) for s, t in zip(reversed(shape), reversed(target), strict=False))
