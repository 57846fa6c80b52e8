"""Copies between strided views: what every operator that only moves elements comes down to.

A kernel of this family cuts views out of its inputs and outputs with NumPy's own slicing, transposing and
broadcasting; the native layer is given their strides and offsets, once.
"""

from __future__ import annotations

import math
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
        source: Number of the input, -1 for the fill value, or -2 - n for output n.
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
        seen = [None if s is None else in_onnx_order(s) for s in inputs]
        places = [in_onnx_order(s) for s in outputs]
        bits = int.from_bytes(self.fill(node).tobytes().ljust(8, b"\0"), "little", signed=True)
        attributes: dict[str, Any] = {
            f"piece{index}": _numbers(piece) for index, piece in enumerate(self.pieces(node, seen, places))
        }
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


def in_onnx_order(place: Storage) -> np.ndarray:
    """A view of ``place`` that may be cut but not read, (N, C/B, H, W, B) or else in the order of ONNX.

    All views start at one address.
    """
    dtype = np.dtype(place.dtype)
    strides = tuple(s * dtype.itemsize for s in place.strides)
    view = np.lib.stride_tricks.as_strided(_ORIGIN.view(dtype)[:1], place.shape, strides, writeable=False)
    # Only shapes tell layouts apart, and those of (N, 4, 4, 4) do not; but a plain tensor has no spare bytes.
    nhwc = view.ndim == 4 and place.size > math.prod(place.shape)
    return view.transpose(0, 3, 1, 2) if nhwc else view


def map_forms(node: Node, in_blocks: bool) -> tuple[Form, ...]:
    """One layout for all maps of a node: blocked or nhwc, unless something is no map, and plain."""
    plain = Form.all(node, Layout.PLAIN)
    moved = [*node.outputs, *(i for i in node.inputs if i is not None and i.constant is None)]
    if any(len(o.shape) != 4 for o in moved) or node.operand(0).constant is not None:
        return (plain,)
    if all(o.dtype == "float32" for o in moved):
        return (Form.all(node, Layout.BLOCKED), plain) if in_blocks else (plain,)
    if all(o.dtype in ("int8", "uint8") for o in moved):
        return (Form.all(node, Layout.NHWC), plain)
    return (plain,)


def between(plain: np.ndarray, blocked: np.ndarray, *, to_blocked: bool) -> list[Piece]:
    """Copies between (N, C, H, W) in any strides and blocks; lanes of the output that hold no channel become 0."""
    (n, channels, h, w), block = plain.shape, blocked.shape[4]
    whole, rest = divmod(channels, block)
    sn, sc, sh, sw = plain.strides
    pieces = []
    for first, blocks, lanes in ((0, whole, block), (whole, 1, rest)):
        if not blocks or not lanes:
            continue
        part = np.lib.stride_tricks.as_strided(
            plain[:, first * block :],
            (n, blocks, h, w, lanes),
            (sn, sc * block, sh, sw, sc),
            writeable=False,
        )
        lane = blocked[:, first : first + blocks, :, :, :lanes]
        pieces.append(Piece(0, part, 0, lane) if to_blocked else Piece(0, lane, 0, part))
    if to_blocked and rest:
        pieces.append(Piece(-1, np.zeros(1, blocked.dtype), 0, blocked[:, whole:, :, :, rest:]))
    return pieces


def _numbers(piece: Piece) -> list[int]:
    place, item = piece.place, piece.place.itemsize
    seen = np.broadcast_to(piece.seen, place.shape)
    numbers = [piece.source, piece.target, 0 if piece.source == -1 else _first(seen), _first(place)]
    for size, step, stride in zip(place.shape, seen.strides, place.strides, strict=True):
        numbers += [size, step // item, stride // item]
    return numbers


def _first(view: np.ndarray) -> int:
    if not view.size:
        return 0
    return (view.__array_interface__["data"][0] - _ORIGIN.__array_interface__["data"][0]) // view.itemsize
