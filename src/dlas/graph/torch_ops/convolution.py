"""Convolutions and their transposes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_ops.table import Call, Node, op
from dlas.graph.torch_ops.window import Pads, Window, halves, once_known, torch_pad

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@op("Conv")
def _conv(node: Node) -> Call:
    return once_known(node, convolution, weight=1)


def convolution(node: Node, rank: int) -> Call:
    """The convolution ``(x, weight, bias=None) -> y`` that a node's attributes describe."""
    if rank not in _CONV:
        raise node.refuse(f"{rank} spatial dimensions")
    conv, window, groups = _CONV[rank], Window.of(node, rank), node.attr("group", 1)
    strides, dilations, both = window.strides, window.dilations, window.symmetric()
    if both is not None:
        return lambda x, w, b=None: conv(x, w, b, strides, both, dilations, groups)

    def call(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        around = window.padding(x.shape[2:], w.shape[2:])
        return conv(F.pad(x, torch_pad(around)), w, b, strides, 0, dilations, groups)

    return call


@op("ConvTranspose")
def _conv_transpose(node: Node) -> Call:
    return once_known(node, _transposed, weight=1)


def _transposed(node: Node, rank: int) -> Call:
    if rank not in _CONV_TRANSPOSE:
        raise node.refuse(f"{rank} spatial dimensions")
    conv: Any = _CONV_TRANSPOSE[rank]
    window, groups = Window.of(node, rank), node.attr("group", 1)
    strides, dilations, both = window.strides, window.dilations, window.symmetric()
    extra = tuple(node.attr("output_padding", (0,) * rank))
    wanted = node.attr("output_shape")
    if both is not None and wanted is None and not any(extra):
        return lambda x, w, b=None: conv(x, w, b, strides, both, 0, groups, dilations)

    def around(sizes: Sequence[int], kernel: Sequence[int]) -> Pads:
        """What is cut from begin and end of the full answer; the extra elements of the end are counted off."""
        cuts = window.pads
        if wanted is not None or window.same:
            cuts = []
            for i, size in enumerate(sizes):
                full = (size - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 + extra[i]
                target = wanted[-rank:][i] if wanted is not None else size * strides[i]
                total = full - target  # what is missing is added at the end
                cuts.append(halves(total, window.auto == "SAME_UPPER") if total > 0 else (0, total))
        return tuple((-begin, more - end) for (begin, end), more in zip(cuts, extra, strict=True))

    def call(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        y = conv(x, w, None, strides, 0, 0, groups, dilations)
        y = F.pad(y, torch_pad(around(x.shape[2:], w.shape[2:])))
        return y if b is None else y + b.reshape(-1, *[1] * rank)

    return call


@op("Col2Im")
def _col2im(node: Node) -> Call:
    image, block = node.ints(1), node.ints(2)
    rank = len(node.attr("strides", (1, 1)))
    if rank != 2:
        raise node.refuse(f"{rank} spatial dimensions")
    window = Window.of(node, rank)
    both = window.symmetric()
    if both is None:
        raise node.refuse("padding that differs at begin and end")
    assert image is not None
    assert block is not None

    def call(*args: Any) -> Tensor:
        x, size, kernel = args[0], tuple(image(args)), tuple(block(args))
        if len(size) != 2:
            raise node.refuse(f"{len(size)} spatial dimensions")
        return F.fold(x, size, kernel, window.dilations, both, window.strides)

    return call
