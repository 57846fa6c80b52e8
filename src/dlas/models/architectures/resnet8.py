"""ResNet-8: image classification of MLPerf Tiny.

Banbury et al. 2021, "MLPerf Tiny Benchmark": three stages of one residual block with 16, 32 and 64 channels on 32 x 32
images; where a stage begins, a 1 x 1 convolution with a bias and without normalisation takes the shortcut. The "same"
padding of a stride of two puts all of it at the right and bottom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlas.core.options import option
from dlas.graph.preprocessing import Preprocessing
from dlas.models.architecture import Architecture, architectures

if TYPE_CHECKING:
    import torch
    from torch import nn


@architectures.register("resnet8")
class ResNet8(Architecture):
    """The image classifier of MLPerf Tiny, of any width and number of classes."""

    name = "resnet8"
    summary = "Residual network of 8 layers for 32x32 images (MLPerf Tiny)"

    @dataclass(frozen=True)
    class Options:
        """Options of the family."""

        classes: int = option(10, "number of classes", low=2, high=100_000)
        width: int = option(16, "channels of the first stage; the next ones double", low=1, high=512)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(3, 32, 32)``."""
        return (3, 32, 32)

    @property
    def preprocessing(self) -> Preprocessing:
        """RGB in 0..1."""
        return Preprocessing(32, 32, scale=1 / 255)

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return self.options.classes

    def build(self) -> nn.Module:
        """A freshly initialised network in eval mode."""
        return _network(self.options.width, self.options.classes)


def _network(width: int, classes: int) -> nn.Module:
    from torch import nn
    from torch.nn import functional as F  # noqa: N812

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.pad = (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1)
            self.conv1 = nn.Conv2d(before, after, 3, stride, bias=False)
            self.bn1 = nn.BatchNorm2d(after)
            self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(after)
            self.shortcut = nn.Sequential() if before == after else nn.Conv2d(before, after, 1, stride)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.relu(self.bn1(self.conv1(F.pad(x, self.pad))))
            return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
            self.bn = nn.BatchNorm2d(width)
            self.stages = nn.Sequential(
                Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)
            )
            self.linear = nn.Linear(4 * width, classes)
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(module.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.stages(F.relu(self.bn(self.conv(x)))).mean((2, 3)))

    return Network().eval()
