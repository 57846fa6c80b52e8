"""What convolutions and pools share: how a window moves over the spatial dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dlas.graph.torch_ops.table import Node

Pads = tuple[tuple[int, int], ...]


def spatial_rank(node: Node, weight: int | None = None) -> int | None:
    """Number of spatial dimensions, from the attributes or from an input's rank; None where it is not known.

    Args:
        node: A convolution or a pool.
        weight: Position of the kernel's weights.
    """
    for name, per_dimension in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 2)):
        if node.attr(name) is not None:
            return len(node.attr(name)) // per_dimension
    for position in (weight, 0):
        rank = None if position is None else node.rank(position)
        if rank is not None:
            return rank - 2
    return None


@dataclass(frozen=True)
class Window:
    """How a window moves.

    Attributes:
        strides: Step per spatial dimension.
        dilations: Distance of the window's elements per spatial dimension.
        pads: Elements added at begin and end of each spatial dimension (``auto_pad`` NOTSET and VALID).
        auto: ``auto_pad`` of the node.
    """

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: Pads
    auto: str

    @staticmethod
    def of(node: Node, rank: int) -> Window:
        """Read the attributes of a node."""
        auto = node.attr("auto_pad", "NOTSET")
        flat = node.attr("pads", (0,) * 2 * rank) if auto == "NOTSET" else (0,) * 2 * rank
        return Window(
            tuple(node.attr("strides", (1,) * rank)),
            tuple(node.attr("dilations", (1,) * rank)),
            tuple((flat[i], flat[i + rank]) for i in range(rank)),
            auto,
        )

    @property
    def same(self) -> bool:
        """Whether the padding depends on the size of the input."""
        return self.auto in ("SAME_UPPER", "SAME_LOWER")

    def symmetric(self) -> tuple[int, ...] | None:
        """Padding per dimension where begin and end agree and do not depend on the input."""
        if self.same or any(begin != end for begin, end in self.pads):
            return None
        return tuple(begin for begin, _ in self.pads)

    def padding(self, sizes: Sequence[int], kernel: Sequence[int]) -> Pads:
        """Elements to add at begin and end of spatial dimensions of these sizes."""
        if not self.same:
            return self.pads
        pads = []
        for size, k, s, d in zip(sizes, kernel, self.strides, self.dilations, strict=True):
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            pads.append(halves(total, self.auto == "SAME_UPPER"))
        return tuple(pads)

    def overhang(self, sizes: Sequence[int], pads: Pads, kernel: Sequence[int]) -> Pads:
        """Elements by which the last window of ``ceil_mode`` reaches beyond the padded input.

        A window that would start in the padding is left out, as torch and the later ONNX operator sets have it.
        """
        extra = []
        for size, (begin, end), k, s, d in zip(
            sizes, pads, kernel, self.strides, self.dilations, strict=True
        ):
            span, width = size + begin + end, (k - 1) * d + 1
            count = -(-(span - width) // s) + 1
            if (count - 1) * s >= size + begin:
                count -= 1
            extra.append((0, max((count - 1) * s + width - span, 0)))
        return tuple(extra)

    def views(self, x: Tensor, kernel: Sequence[int]) -> Tensor:
        """``(N, C, *counts, *kernel)``: every window of an ``(N, C, *sizes)`` tensor, nothing copied."""
        for axis, (k, s, d) in enumerate(zip(kernel, self.strides, self.dilations, strict=True)):
            x = x.unfold(2 + axis, (k - 1) * d + 1, s)[..., ::d]
        return x


def halves(total: int, end_gets_more: bool) -> tuple[int, int]:
    """Two parts of a sum, of which one is larger by one where it is odd."""
    small, large = total // 2, total - total // 2
    return (small, large) if end_gets_more else (large, small)


def torch_pad(pads: Pads) -> list[int]:
    """The argument of ``torch.nn.functional.pad``, which counts from the last dimension."""
    return [p for pair in reversed(pads) for p in pair]


def once_known(
    node: Node, build: Callable[[Node, int], Callable[..., Tensor]], weight: int
) -> Callable[..., Tensor]:
    """The call for the spatial rank, which a graph without shapes tells only when it runs."""
    rank = spatial_rank(node, weight)
    if rank is not None:
        return build(node, rank)
    return lambda x, *args: build(node, x.dim() - 2)(x, *args)
