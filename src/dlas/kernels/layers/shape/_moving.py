"""Copies between strided views: what every operator that only moves elements comes down to.

A kernel of this family cuts views out of its inputs and outputs with NumPy's own slicing, transposing and
broadcasting; the native layer is given their strides and offsets, once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.kernels.extension import need_native
from dlas.kernels.kernel import Context, Form, NativeKernel, Node
from dlas.kernels.layout import Layout, Storage


class Piece(NamedTuple):
    """One copy.

    Attributes:
        source: Number of the input, or -1 for the fill value.
        seen: Strided view of the input that broadcasts to ``place``; for the fill an array of one element.
        target: Number of the output.
        place: Strided view of the output.
    """

    source: int
    seen: np.ndarray
    target: int
    place: np.ndarray


class MoveKernel(NativeKernel):
    """Base of the kernels that only copy."""

    @abstractmethod
    def pieces(
        self, node: Node, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray]
    ) -> list[Piece]:
        """The copies, in order. The arrays are views without memory: cut them, but never read them."""

    def fill(self, node: Node) -> np.ndarray:
        """The fill value, in the dtype of the output."""
        return np.zeros(1, node.output.dtype)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Bytes of the outputs, read and written at 8 GB/s."""
        size = sum(int(np.prod(o.shape, dtype=np.int64)) * np.dtype(o.dtype).itemsize for o in node.outputs)
        return 1e-6 + size / 4e9

    def prepare(
        self, node: Node, inputs: Sequence[Storage | None], outputs: Sequence[Storage], context: Context
    ) -> Any:
        """The native copy; raises UnsupportedError with its own reason."""
        seen = [None if s is None else view_without_memory(s) for s in inputs]
        places = [view_without_memory(s) for s in outputs]
        return native_copy(node, inputs, outputs, self.pieces(node, seen, places), self.fill(node), context)


def native_copy(
    node: Node,
    inputs: Sequence[Storage | None],
    outputs: Sequence[Storage],
    pieces: Sequence[Piece],
    fill: np.ndarray,
    context: Context,
) -> Any:
    """The native kernel that makes these copies; raises UnsupportedError with its own reason."""
    bits = int.from_bytes(fill.tobytes().ljust(8, b"\0"), "little", signed=True)
    attributes: dict[str, Any] = {f"piece{index}": _numbers(piece) for index, piece in enumerate(pieces)}
    given = [None if s is None else s.spec for s in inputs]
    try:
        return need_native().Kernel(
            context.pool,
            context.isa,
            "Move",
            "move",
            attributes | {"fill": bits},
            given,
            [o.spec for o in outputs],
        )
    except (RuntimeError, ValueError) as error:
        raise UnsupportedError(f"{node.op} {node.name!r}: {error}") from error


_ORIGIN = np.zeros(1, np.float64)


def view_without_memory(place: Storage) -> np.ndarray:
    """An array of the shape and strides of ``place`` that may be cut but not read; all of them start at one address."""
    dtype = np.dtype(place.dtype)
    strides = tuple(s * dtype.itemsize for s in place.strides)
    return np.lib.stride_tricks.as_strided(_ORIGIN.view(dtype)[:1], place.shape, strides, writeable=False)


def _numbers(piece: Piece) -> list[int]:
    place, item = piece.place, piece.place.itemsize
    seen = np.broadcast_to(piece.seen, place.shape)
    numbers = [piece.source, piece.target, 0 if piece.source < 0 else _first(seen), _first(place)]
    for size, step, stride in zip(place.shape, seen.strides, place.strides, strict=True):
        numbers += [size, step // item, stride // item]
    return numbers


def _first(view: np.ndarray) -> int:
    if not view.size:
        return 0
    return (view.__array_interface__["data"][0] - _ORIGIN.__array_interface__["data"][0]) // view.itemsize
