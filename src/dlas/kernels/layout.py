"""How a tensor lies in memory.

``plain`` is ONNX's own order. ``blocked`` is (N, C/B, H, W, B) float32 for feature maps, B the vector length, so that
one vector holds neighbouring channels of one pixel. ``nhwc`` is (N, H, W, C) for 8-bit feature maps. Blocked and nhwc
tensors may stand inside a frame of padding (:class:`Halo`), which is how convolutions never see an edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Layout(StrEnum):
    """Order of a tensor's elements."""

    PLAIN = "plain"
    BLOCKED = "blocked"
    NHWC = "nhwc"


@dataclass(frozen=True)
class Halo:
    """Pixels of padding that lie around a feature map in memory."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    def __bool__(self) -> bool:
        return any((self.top, self.left, self.bottom, self.right))

    def __or__(self, other: Halo) -> Halo:
        """The smallest halo that holds both."""
        return Halo(
            max(self.top, other.top),
            max(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )


NO_HALO = Halo()


@dataclass(frozen=True)
class Storage:
    """A tensor in memory: shape and strides of the view that kernels are given.

    Attributes:
        shape: Sizes of the view, five numbers when blocked.
        strides: In elements.
        dtype: NumPy name.
        first: Elements before the view's first one (the halo's upper left corner).
        size: Elements of the whole buffer, halo included.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    first: int
    size: int

    @property
    def bytes(self) -> int:
        """Size of the buffer."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def spec(self) -> tuple[list[int], list[int], str]:
        """What the native module takes for a tensor without data."""
        return list(self.shape), list(self.strides), self.dtype

    def empty(self) -> np.ndarray:
        """A zeroed buffer of this form, as the view of shape ``shape``; it starts on a cache line."""
        raw = np.zeros(self.bytes + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return self.view(raw[start : start + self.bytes].view(self.dtype))

    def view(self, buffer: np.ndarray) -> np.ndarray:
        """The view inside a flat buffer of ``size`` elements."""
        item = np.dtype(self.dtype).itemsize
        return np.lib.stride_tricks.as_strided(
            buffer[self.first :], self.shape, tuple(s * item for s in self.strides)
        )


def storage(
    shape: tuple[int, ...],
    dtype: str,
    layout: Layout = Layout.PLAIN,
    *,
    halo: Halo = NO_HALO,
    block: int = 16,
) -> Storage:
    """Memory of a tensor of ONNX shape ``shape``; blocked and nhwc want (N, C, H, W).

    A blocked tensor ends with one spare vector, so that a kernel may read a whole vector at its last element.
    """
    if layout is Layout.PLAIN:
        strides = np.cumprod((1, *shape[:0:-1]))[::-1].tolist() if shape else []
        return Storage(tuple(shape), tuple(strides), dtype, 0, int(np.prod(shape, dtype=np.int64)))
    n, c, h, w = shape
    height, width = h + halo.top + halo.bottom, w + halo.left + halo.right
    if layout is Layout.NHWC:
        pixel = c
        strides = (height * width * pixel, width * pixel, pixel, 1)
        first = (halo.top * width + halo.left) * pixel
        return Storage((n, h, w, c), strides, dtype, first, n * strides[0] + 64)
    blocks = -(-c // block)
    plane = height * width * block
    strides = (blocks * plane, plane, width * block, block, 1)
    first = (halo.top * width + halo.left) * block
    return Storage((n, blocks, h, w, block), strides, dtype, first, n * blocks * plane + block)


def to_layout(array: np.ndarray, form: Storage) -> np.ndarray:
    """``array`` in ONNX order copied into new memory of ``form``; the halo is zero. For tests and Python layers."""
    view = form.empty()
    if len(form.shape) == 5 and array.ndim == 4:
        n, blocks, h, w, block = form.shape
        whole = np.zeros((n, blocks * block, h, w), array.dtype)
        whole[:, : array.shape[1]] = array
        view[...] = whole.reshape(n, blocks, block, h, w).transpose(0, 1, 3, 4, 2)
    elif array.ndim == 4 and form.size > array.size:
        # Nhwc: it has spare bytes, and the shapes of (N, 4, 4, 4) do not tell.
        view[...] = array.transpose(0, 2, 3, 1)
    else:
        view[...] = array
    return view


def from_blocked(view: np.ndarray, channels: int) -> np.ndarray:
    """A blocked view as (N, C, H, W)."""
    n, blocks, h, w, block = view.shape
    return np.ascontiguousarray(view.transpose(0, 1, 4, 2, 3).reshape(n, blocks * block, h, w)[:, :channels])
