"""A small residual CNN for the 8 x 8 digits that ship with scikit-learn.

Small enough to train in a minute on two cores, and with what compression is about: convolutions with batch
normalisation, a residual sum that ties channels together, a stride, a pooling and a fully connected layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlas.core.options import option
from dlas.graph.preprocessing import Preprocessing
from dlas.models.architecture import Architecture, architectures

if TYPE_CHECKING:
    from torch import nn


@architectures.register("digits-cnn")
class DigitsCnn(Architecture):
    """Four 3 x 3 convolutions around a residual sum, then a fully connected layer."""

    name = "digits-cnn"
    summary = "Small residual CNN for the 8x8 digits of scikit-learn"

    @dataclass(frozen=True)
    class Options:
        """Options of the network."""

        width: int = option(24, "channels of the first stage; the second has twice as many", low=1, high=1024)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(1, 8, 8)``."""
        return (1, 8, 8)

    @property
    def preprocessing(self) -> Preprocessing:
        """Grey values to 0..1."""
        return Preprocessing(8, 8, colour="L", scale=1 / 255)

    @property
    def classes(self) -> int:
        """Ten digits."""
        return 10

    def build(self) -> nn.Module:
        """A freshly initialised network in eval mode."""
        return _network(self.options.width)


def _network(width: int) -> nn.Module:
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn3 = nn.BatchNorm2d(width)
            self.conv4 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
            self.bn4 = nn.BatchNorm2d(2 * width)
            self.pool = nn.MaxPool2d(2)
            self.linear = nn.Linear(2 * width * 4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.bn1(self.conv1(x)))
            y = F.relu(self.bn2(self.conv2(x)))
            x = F.relu(x + self.bn3(self.conv3(y)))
            x = self.pool(F.relu(self.bn4(self.conv4(x))))
            return self.linear(x.flatten(1))

    return Network().eval()
