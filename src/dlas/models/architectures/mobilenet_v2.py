"""MobileNetV2.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018), table 2. Tensor names are those
of the widely used PyTorch checkpoints.
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

# Expansion, channels, blocks, stride of the first block.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@architectures.register("mobilenet-v2")
class MobileNetV2(Architecture):
    """MobileNetV2 of any width."""

    name = "mobilenet-v2"
    summary = "Inverted residuals with depthwise convolutions (Sandler et al. 2018)"

    @dataclass(frozen=True)
    class Options:
        """Options of the family."""

        width: float = option(1.0, "channels, as a multiple of the published ones", low=0.1, high=2.0)
        size: int = option(224, "height and width of an image", low=32, high=448)
        classes: int = option(1000, "number of classes", low=2, high=100_000)
        reduction: int = option(
            32, "side of an image over that of the last maps; 8 suits images of 32 x 32", choices=(32, 16, 8)
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(3, size, size)``."""
        return (3, self.options.size, self.options.size)

    @property
    def preprocessing(self) -> Preprocessing:
        """RGB in 0..1, normalised with the ImageNet statistics."""
        size = self.options.size
        return Preprocessing(size, size, scale=1 / 255, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return self.options.classes

    def build(self) -> nn.Module:
        """A freshly initialised network in eval mode."""
        return _network(self.options.width, self.options.classes, self.options.reduction)

    @classmethod
    def options_from(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The number of classes is the number of rows of the last layer."""
        rows = shapes.get("classifier.1.bias", ())
        return {"classes": rows[0]} if len(rows) == 1 and rows[0] >= 2 else {}


def divisible(channels: float, by: int = 8) -> int:
    """The multiple of ``by`` nearest to ``channels``, at least ``by`` and never less than 90 % of it."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def _network(width: float, classes: int, reduction: int) -> nn.Module:
    from torch import nn

    def convolution(
        before: int, after: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> nn.Sequential:
        conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU6())

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
            super().__init__()
            inside = before * expansion
            layers: list[nn.Module] = [] if expansion == 1 else [convolution(before, inside)]
            layers.append(convolution(inside, inside, 3, stride, inside))
            layers += [nn.Conv2d(inside, after, 1, bias=False), nn.BatchNorm2d(after)]
            self.conv = nn.Sequential(*layers)
            self.residual = stride == 1 and before == after

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.conv(x) if self.residual else self.conv(x)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            before = divisible(32 * width)
            layers: list[nn.Module] = [convolution(3, before, 3, 2 if reduction == 32 else 1)]
            for number, (expansion, channels, blocks, published) in enumerate(_STAGES):
                stride = (
                    1 if reduction == 8 and number == 1 else published
                )  # the first stage that would shrink
                after = divisible(channels * width)
                for block in range(blocks):
                    layers.append(Block(before, after, stride if block == 0 else 1, expansion))
                    before = after
            last = divisible(1280 * max(1.0, width))
            self.features = nn.Sequential(*layers, convolution(before, last))
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.features(x).mean((2, 3)))

    return Network().eval()
