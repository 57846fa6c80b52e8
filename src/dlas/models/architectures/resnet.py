"""Residual networks for ImageNet: ResNet-18 and ResNet-34.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), table 1, with projections where a stage begins
("option B"). Tensor names are those of the widely used PyTorch checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlas.core.options import option
from dlas.graph.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from dlas.models.architecture import Architecture, architectures

if TYPE_CHECKING:
    import torch
    from torch import nn

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_WIDTHS = (64, 128, 256, 512)


@architectures.register("resnet")
class ResNet(Architecture):
    """ResNet-18 and ResNet-34."""

    name = "resnet"
    summary = "Residual network for 224x224 images, 18 or 34 layers (He et al. 2016)"

    @dataclass(frozen=True)
    class Options:
        """Options of the family."""

        depth: int = option(18, "number of weight layers", choices=tuple(_BLOCKS))
        classes: int = option(1000, "number of classes", low=2, high=100_000)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(3, 224, 224)``."""
        return (3, 224, 224)

    @property
    def preprocessing(self) -> Preprocessing:
        """RGB in 0..1, normalised with the ImageNet statistics."""
        return Preprocessing(224, 224, scale=1 / 255, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return self.options.classes

    def build(self) -> nn.Module:
        """A freshly initialised network in eval mode."""
        return _network(_BLOCKS[self.options.depth], self.options.classes)

    @classmethod
    def candidates(cls) -> list[dict[str, Any]]:
        """Both depths."""
        return [{"depth": depth} for depth in _BLOCKS]

    @classmethod
    def options_from(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The number of classes is the number of rows of the last layer, the depth follows from the first stage."""
        rows = shapes.get("fc.bias", ())
        found = {"classes": rows[0]} if len(rows) == 1 and rows[0] >= 2 else {}
        first = sum(f"layer1.{block}.conv1.weight" in shapes for block in range(4))
        return {**found, "depth": 18 if first == _BLOCKS[18][0] else 34}


def _network(blocks: tuple[int, ...], classes: int) -> nn.Module:
    from torch import nn
    from torch.nn import functional as F  # noqa: N812

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(after)
            self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(after)
            self.downsample = None
            if stride != 1 or before != after:
                projection = nn.Conv2d(before, after, 1, stride, bias=False)
                self.downsample = nn.Sequential(projection, nn.BatchNorm2d(after))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            return F.relu(y + (x if self.downsample is None else self.downsample(x)))

    def stage(number: int) -> nn.Sequential:
        before, after = _WIDTHS[max(number - 1, 0)], _WIDTHS[number]
        first = Block(before, after, 1 if number == 0 else 2)
        return nn.Sequential(first, *(Block(after, after, 1) for _ in range(blocks[number] - 1)))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
            self.layer1, self.layer2, self.layer3, self.layer4 = (stage(i) for i in range(4))
            self.fc = nn.Linear(_WIDTHS[-1], classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(x.mean((2, 3)))

    return Network().eval()
