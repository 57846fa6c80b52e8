"""Wide residual networks for 32 x 32 images, with groups.

Zagoruyko and Komodakis, "Wide Residual Networks" (BMVC 2016): three stages of 16, 32 and 64 times ``width`` channels,
``(depth - 4) / 6`` blocks each, batch norm and ReLU before every convolution. With ``groups`` above 1 the 3 x 3
convolutions inside the stages are grouped, the setting in which grouped convolution is studied at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from dlas.core.options import option
from dlas.graph.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from dlas.models.architecture import Architecture, architectures

if TYPE_CHECKING:
    import torch
    from torch import nn


@architectures.register("wide-resnet")
class WideResNet(Architecture):
    """WRN-depth-width, with the 3 x 3 convolutions in groups where asked for."""

    name = "wide-resnet"
    summary = (
        "Wide residual network for 32x32 images, 3x3 convolutions in groups (Zagoruyko & Komodakis 2016)"
    )

    @dataclass(frozen=True)
    class Options:
        """Options of the family."""

        depth: int = option(40, "number of weight layers", choices=(10, 16, 22, 28, 34, 40))
        width: int = option(2, "channels, as a multiple of 16, 32 and 64", low=1, high=16)
        groups: int = option(1, "groups of the 3x3 convolutions inside the stages", choices=(1, 2, 4, 8, 16))
        classes: int = option(10, "number of classes", low=2, high=100_000)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(3, 32, 32)``."""
        return (3, 32, 32)

    @property
    def preprocessing(self) -> Preprocessing:
        """RGB in 0..1, normalised with the ImageNet statistics."""
        return Preprocessing(32, 32, scale=1 / 255, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return self.options.classes

    def build(self) -> nn.Module:
        """A freshly initialised network in eval mode."""
        o = self.options
        return _network((o.depth - 4) // 6, o.width, o.groups, o.classes)


def _network(blocks: int, width: int, groups: int, classes: int) -> nn.Module:
    from torch import nn
    from torch.nn import functional as F  # noqa: N812

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.bn1 = nn.BatchNorm2d(before)
            inside = groups if before % groups == 0 else 1
            self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, groups=inside, bias=False)
            self.bn2 = nn.BatchNorm2d(after)
            self.conv2 = nn.Conv2d(after, after, 3, padding=1, groups=groups, bias=False)
            same = before == after and stride == 1
            self.shortcut = None if same else nn.Conv2d(before, after, 1, stride, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = F.relu(self.bn1(x))
            y = self.conv2(F.relu(self.bn2(self.conv1(first))))
            return y + (x if self.shortcut is None else self.shortcut(first))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = (16, 16 * width, 32 * width, 64 * width)
            self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
            stages = []
            for stage, (before, after) in enumerate(pairwise(sizes)):
                first = Block(before, after, 1 if stage == 0 else 2)
                stages.append(nn.Sequential(first, *(Block(after, after, 1) for _ in range(blocks - 1))))
            self.stages = nn.Sequential(*stages)
            self.bn = nn.BatchNorm2d(sizes[-1])
            self.linear = nn.Linear(sizes[-1], classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.bn(self.stages(self.conv1(x))))
            return self.linear(x.mean((2, 3)))

    return Network().eval()
