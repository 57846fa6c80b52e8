"""Convolution and transposed convolution of images, as ONNX Conv and ConvTranspose (opset 13) define them.

``y[n,k,oh,ow] = b[k] + sum over c,i,j of xpad[n, (k div K/G)*C/G + c, oh*sh + i*dh, ow*sw + j*dw] * w[k,c,i,j]``
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlas.core.errors import ShapeError
from dlas.kernels.arrays import length, numbers, real, taps


def conv2d(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """Grouped, dilated convolution.

    Args:
        x: ``(N, C, H, W)`` float32.
        w: ``(K, C/groups, KH, KW)`` float32.
        b: ``(K,)`` float32, or None.
        strides: Vertical, horizontal.
        pads: Zeros at the top, left, bottom, right.
        dilations: Vertical, horizontal.
        groups: Independent slices of the channels.

    Returns:
        ``(N, K, OH, OW)`` float32.

    Raises:
        ShapeError: The attribute named in the message does not fit.
    """
    found = correlate(
        real(x, "x", 4), real(w, "w", 4), strides=strides, pads=pads, dilations=dilations, groups=groups
    )
    return _biased(found, b).astype(np.float32)


def correlate(
    x: np.ndarray,
    w: np.ndarray,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> np.ndarray:
    """The sums of :func:`conv2d` in float64, without bias; exact where ``x`` and ``w`` hold integers of 8 bits.

    Args:
        x: ``(N, C, H, W)`` float64.
        w: ``(K, C/groups, KH, KW)`` float64.
        strides: Vertical, horizontal.
        pads: Zeros at the top, left, bottom, right.
        dilations: Vertical, horizontal.
        groups: Independent slices of the channels.

    Returns:
        ``(N, K, OH, OW)`` float64.

    Raises:
        ShapeError: The attribute named in the message does not fit.
    """
    rows, columns = output_size(x.shape, w.shape, strides, pads, dilations, groups)
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    count, channels = x.shape[:2]
    filters, per_group, kernel_rows, kernel_columns = w.shape
    weights = w.reshape(groups, filters // groups, per_group, kernel_rows, kernel_columns)
    y = np.zeros((count, groups, filters // groups, rows * columns))
    for i, j, seen in taps(
        padded, (kernel_rows, kernel_columns), _pair(strides), _pair(dilations), (rows, columns)
    ):
        y += weights[..., i, j] @ seen.reshape(count, groups, channels // groups, rows * columns)
    return y.reshape(count, filters, rows, columns)


def output_size(
    x: Sequence[int],
    w: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> tuple[int, int]:
    """Rows and columns of the output of a convolution, after checking that everything fits.

    Args:
        x: Shape of the input, ``(N, C, H, W)``.
        w: Shape of the weights, ``(K, C/groups, KH, KW)``.
        strides: Vertical, horizontal.
        pads: Top, left, bottom, right.
        dilations: Vertical, horizontal.
        groups: Independent slices of the channels.

    Raises:
        ShapeError: The attribute named in the message does not fit.
    """
    _geometry(strides, pads, dilations, groups, w)
    if x[1] % groups:
        raise ShapeError(f"groups = {groups} does not divide the {x[1]} channels of x")
    if w[0] % groups:
        raise ShapeError(f"groups = {groups} does not divide the {w[0]} filters of w")
    if w[1] != x[1] // groups:
        raise ShapeError(f"w has {w[1]} channels per group, expected {x[1]} / {groups} = {x[1] // groups}")
    size = [length(x[2 + a], pads[a], pads[2 + a], w[2 + a], strides[a], dilations[a]) for a in (0, 1)]
    if min(size) < 1:
        raise ShapeError(
            f"the output would be {size[0]} x {size[1]}: a window of {list(w[2:])} with dilations "
            f"{list(dilations)} does not fit into {list(x[2:])} with pads {list(pads)}"
        )
    return size[0], size[1]


def conv_transpose2d(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    output_padding: Sequence[int] = (0, 0),
    dilations: Sequence[int] = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """Transposed convolution: every input value adds its filter, scaled, to the output.

    Args:
        x: ``(N, C, H, W)`` float32.
        w: ``(C, K/groups, KH, KW)`` float32.
        b: ``(K,)`` float32, or None.
        strides: Distance of neighbouring filters in the output; vertical, horizontal.
        pads: What is cut off the output at the top, left, bottom, right.
        output_padding: Rows at the bottom and columns at the right that are added.
        dilations: Vertical, horizontal.
        groups: Independent slices of the channels.

    Returns:
        ``(N, K, OH, OW)`` float32, ``OH = (H-1)*sh + (KH-1)*dh + 1 - top - bottom + output_padding[0]``.

    Raises:
        ShapeError: The attribute named in the message does not fit.
    """
    values, weights = real(x, "x", 4), real(w, "w", 4)
    _geometry(strides, pads, dilations, groups, w.shape)
    extra = numbers(output_padding, "output_padding", 2, 0)
    count, channels, height, width = x.shape
    if channels % groups:
        raise ShapeError(f"groups = {groups} does not divide the {channels} channels of x")
    if w.shape[0] != channels:
        raise ShapeError(f"w has {w.shape[0]} input channels, x has {channels}")
    if any(extra[a] >= max(strides[a], dilations[a]) for a in (0, 1)):
        raise ShapeError(
            f"output_padding = {list(extra)} is not accepted: expected less than the stride "
            f"{list(strides)} or the dilation {list(dilations)}"
        )
    _, per_group, kernel_rows, kernel_columns = w.shape
    full = [
        (s - 1) * strides[a] + (w.shape[2 + a] - 1) * dilations[a] + 1 + extra[a]
        for a, s in enumerate((height, width))
    ]
    size = [full[a] - pads[a] - pads[2 + a] for a in (0, 1)]
    if min(size) < 1:
        raise ShapeError(f"the output would be {size[0]} x {size[1]}: pads = {list(pads)} cut everything off")
    parts = values.reshape(count, groups, channels // groups, height * width)
    filters = weights.reshape(groups, channels // groups, per_group, kernel_rows, kernel_columns)
    y = np.zeros((count, groups * per_group, *full))
    shape = (count, groups * per_group, height, width)
    for i, j, place in taps(
        y, (kernel_rows, kernel_columns), _pair(strides), _pair(dilations), (height, width)
    ):
        place += (filters[..., i, j].transpose(0, 2, 1) @ parts).reshape(shape)
    y = y[:, :, pads[0] : pads[0] + size[0], pads[1] : pads[1] + size[1]]
    return _biased(y, b).astype(np.float32)


def _geometry(
    strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], groups: int, w: Sequence[int]
) -> None:
    numbers(strides, "strides", 2, 1)
    numbers(pads, "pads", 4, 0)
    numbers(dilations, "dilations", 2, 1)
    numbers([groups], "groups", 1, 1)
    if min(w) < 1:
        raise ShapeError(f"w has the shape {list(w)}, expected no axis of size 0")


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def _biased(y: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    if b is None:
        return y
    bias = real(b, "b", 1)
    if len(bias) != y.shape[1]:
        raise ShapeError(f"b has {len(bias)} values, expected one for each of {y.shape[1]} filters")
    return y + bias[:, None, None]
