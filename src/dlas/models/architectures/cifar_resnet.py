"""Residual networks for 32 x 32 images with parameter-free shortcuts.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2: three stages of 16, 32 and 64
channels, ``(depth - 2) / 6`` blocks each; where a stage begins, the shortcut takes every second pixel and fills the
new channels with zeros ("option A"). Tensor names are those of the widely used CIFAR-10 checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlas.core.options import option
from dlas.graph.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from dlas.models.architecture import Architecture, architectures

if TYPE_CHECKING:
    from torch import nn

DEPTHS = (20, 32, 44, 56, 110)
WIDTHS = (16, 32, 64)
_FIRST_OF_BLOCK = re.compile(r"layer1\.\d+\.conv1\.weight")


@architectures.register("cifar-resnet")
class CifarResNet(Architecture):
    """ResNet-20 to ResNet-110 with option-A shortcuts."""

    name = "cifar-resnet"
    summary = "Residual network for 32x32 images, parameter-free shortcuts (He et al. 2016)"

    @dataclass(frozen=True)
    class Options:
        """Options of the family."""

        depth: int = option(20, "number of weight layers", choices=DEPTHS)
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
        return _network((self.options.depth - 2) // 6, self.options.classes)

    @classmethod
    def candidates(cls) -> list[dict[str, Any]]:
        """Every published depth."""
        return [{"depth": depth} for depth in DEPTHS]

    @classmethod
    def options_from(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The number of classes is the number of rows of the last layer, the depth follows from the blocks."""
        rows = shapes.get("linear.bias", ())
        found = {"classes": rows[0]} if len(rows) == 1 and rows[0] >= 2 else {}
        depth = 6 * sum(_FIRST_OF_BLOCK.fullmatch(name) is not None for name in shapes) + 2
        return {**found, "depth": depth} if depth in DEPTHS else found


def _network(blocks: int, classes: int) -> nn.Module:
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812

    class Shortcut(nn.Module):
        """Every second pixel, with zeros for the channels that the new stage adds (half of them on each side)."""

        def __init__(self, added: int) -> None:
            super().__init__()
            self.pad = (0, 0, 0, 0, added // 2, added - added // 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.pad(x[:, :, ::2, ::2], self.pad)

    class Block(nn.Module):
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            stride = 1 if before == after else 2
            self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(after)
            self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(after)
            self.shortcut = nn.Sequential() if before == after else Shortcut(after - before)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            return F.relu(y + self.shortcut(x))

    def stage(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(*(Block(before if i == 0 else after, after) for i in range(blocks)))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(WIDTHS[0])
            self.layer1 = stage(WIDTHS[0], WIDTHS[0])
            self.layer2 = stage(WIDTHS[0], WIDTHS[1])
            self.layer3 = stage(WIDTHS[1], WIDTHS[2])
            self.linear = nn.Linear(WIDTHS[-1], classes)
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(module.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.bn1(self.conv1(x)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.linear(x.mean((2, 3)))

    return Network().eval()
