"""DS-CNN: keyword spotting with depthwise separable convolutions, as in MLPerf Tiny.

Zhang et al. 2017, "Hello Edge: Keyword Spotting on Microcontrollers"; the small network with the sizes, the "same"
padding and the dropout that MLPerf Tiny (Banbury et al. 2021) trains and measures: a 10 x 4 convolution over 49 frames
of 10 MFCCs, four depthwise separable blocks, an average over the whole map and a fully connected layer.
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

FRAMES, COEFFICIENTS = 49, 10
# Where the ten coefficients lie: all but a few in a thousand of the frames of the spoken digits. The first one is
# -123.6 where nothing is heard.
_LOWEST = (-124.0, -10.0, -8.0, -8.0, -8.0, -8.0, -6.0, -5.0, -5.0, -5.0)
_HIGHEST = (24.0, 14.0, 10.0, 8.0, 6.0, 6.0, 4.0, 4.0, 4.0, 4.0)


@architectures.register("ds-cnn")
class DsCnn(Architecture):
    """The keyword spotter of MLPerf Tiny, of any width and number of classes."""

    name = "ds-cnn"
    summary = (
        "Keyword spotting by depthwise separable convolutions over MFCCs (Zhang et al. 2017, MLPerf Tiny)"
    )

    @dataclass(frozen=True)
    class Options:
        """Options of the family."""

        classes: int = option(12, "number of classes", low=2, high=100_000)
        width: int = option(64, "channels of every convolution", low=1, high=1024)
        blocks: int = option(4, "number of depthwise separable blocks", low=0, high=16)
        sample_rate: int = option(8000, "of the recordings, in samples per second", low=1000, high=192_000)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(1, 49, 10)``: one channel of 49 frames with 10 coefficients."""
        return (1, FRAMES, COEFFICIENTS)

    @property
    def preprocessing(self) -> Preprocessing:
        """MFCCs of about one second, each brought to 0..1 by where it usually lies."""
        spans = tuple(high - low for low, high in zip(_LOWEST, _HIGHEST, strict=True))
        return Preprocessing(
            FRAMES, COEFFICIENTS, colour="L", mean=_LOWEST, std=spans, features="mfcc",
            sample_rate=self.options.sample_rate,
        )  # fmt: skip

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return self.options.classes

    def build(self) -> nn.Module:
        """A freshly initialised network in eval mode."""
        return _network(self.options.width, self.options.blocks, self.options.classes)


def _network(width: int, blocks: int, classes: int) -> nn.Module:
    from torch import nn
    from torch.nn import functional as F  # noqa: N812

    def convolution(before: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(before, width, kernel, padding=kernel // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, width, (10, 4), stride=2, bias=False)
            self.bn = nn.BatchNorm2d(width)
            self.first_dropout = nn.Dropout(0.2)
            layers = [
                layer
                for _ in range(blocks)
                for layer in (convolution(width, 3, groups=width), convolution(width))
            ]
            self.blocks = nn.Sequential(*layers)
            self.dropout = nn.Dropout(0.4)
            self.linear = nn.Linear(width, classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # 49 x 10 to 25 x 5: "same" padding puts the odd one at the end.
            x = self.first_dropout(F.relu(self.bn(self.conv(F.pad(x, (1, 1, 4, 5))))))
            return self.linear(self.dropout(self.blocks(x)).mean((2, 3)))

    return Network().eval()
