"""A small vision transformer for 32 x 32 images.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021), with 4 x 4 patches: 64 tokens, a learned position for
each, blocks of attention and a two-layer perceptron with normalisation in front of each (Vaswani et al. 2017, pre-norm
form). The mean over the tokens feeds the classifier in place of a class token (Zhai et al., "Scaling Vision
Transformers", CVPR 2022). ``stem=conv`` reads the patches with two strided 3 x 3 convolutions, which learns faster
from few images (Xiao et al., "Early Convolutions Help Transformers See Better", NeurIPS 2021).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dlas.core.errors import OptionError
from dlas.core.options import option
from dlas.graph.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from dlas.models.architecture import Architecture, architectures

if TYPE_CHECKING:
    import torch
    from torch import nn

SIZE = 32
_BLOCK = re.compile(r"blocks\.\d+\.attention\.qkv\.weight")


@architectures.register("vit")
class Vit(Architecture):
    """Vision transformer whose attention is written out in products and a softmax."""

    name = "vit"
    summary = "Small vision transformer for 32x32 images, 4x4 patches (Dosovitskiy et al. 2021)"

    @dataclass(frozen=True)
    class Options:
        """Options of the family."""

        depth: int = option(6, "number of blocks", low=1, high=48)
        width: int = option(96, "numbers per token", low=4, high=2048)
        heads: int = option(3, "attention heads; they share the width evenly", low=1, high=64)
        patch: int = option(4, "height and width of a patch", choices=(2, 4, 8, 16))
        expansion: int = option(
            4, "width of the perceptron's middle, as a multiple of the width", low=1, high=8
        )
        stem: Literal["patch", "conv"] = option(
            "patch", "one linear map per patch, or strided 3x3 convolutions", choices=("patch", "conv")
        )
        classes: int = option(10, "number of classes", low=2, high=100_000)

        def __post_init__(self) -> None:
            if self.width % self.heads:
                raise OptionError("width", self.width, f"a multiple of the number of heads ({self.heads})")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(3, 32, 32)``."""
        return (3, SIZE, SIZE)

    @property
    def preprocessing(self) -> Preprocessing:
        """RGB in 0..1, normalised with the ImageNet statistics."""
        return Preprocessing(SIZE, SIZE, scale=1 / 255, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return self.options.classes

    def build(self) -> nn.Module:
        """A freshly initialised network in eval mode."""
        return _network(self.options)

    @classmethod
    def options_from(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Everything but the number of heads, which leaves no trace in the weights."""
        depth = sum(_BLOCK.fullmatch(name) is not None for name in shapes)
        position, rows = shapes.get("position", ()), shapes.get("head.bias", ())
        if not depth or len(position) != 3 or len(rows) != 1:
            return {}
        found: dict[str, Any] = {"depth": depth, "width": position[2], "classes": rows[0]}
        patches = {(SIZE // p) ** 2: p for p in (2, 4, 8, 16)}
        if position[1] in patches:
            found["patch"] = patches[position[1]]
        if middle := shapes.get("blocks.0.perceptron.0.bias"):
            found["expansion"] = middle[0] // position[2]
        return {**found, "stem": "conv" if "stem.1.weight" in shapes else "patch"}


def _stem(width: int, patch: int, kind: str) -> nn.Module:
    """``(N, 3, 32, 32)`` to ``(N, width, 32 / patch, 32 / patch)``."""
    from torch import nn

    if kind == "patch":
        return nn.Sequential(nn.Conv2d(3, width, patch, patch))
    halvings = patch.bit_length() - 1
    layers: list[nn.Module] = []
    before = 3
    for step in range(halvings):
        after = max(4, width >> (halvings - 1 - step))
        layers += [nn.Conv2d(before, after, 3, 2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    return nn.Sequential(*layers, nn.Conv2d(before, width, 1))


def _network(options: Vit.Options) -> nn.Module:
    import torch
    from torch import nn

    width, heads = options.width, options.heads
    side = SIZE // options.patch

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(width, 3 * width)
            self.proj = nn.Linear(width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = self.qkv(x).reshape(-1, side * side, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            query, key, value = parts[0], parts[1], parts[2]
            weights = (query * (width // heads) ** -0.5) @ key.transpose(-2, -1)
            mixed = weights.softmax(-1) @ value
            return self.proj(mixed.transpose(1, 2).reshape(-1, side * side, width))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = nn.LayerNorm(width)
            self.attention = Attention()
            self.norm2 = nn.LayerNorm(width)
            middle = width * options.expansion
            self.perceptron = nn.Sequential(nn.Linear(width, middle), nn.GELU(), nn.Linear(middle, width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attention(self.norm1(x))
            return x + self.perceptron(self.norm2(x))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = _stem(width, options.patch, options.stem)
            self.position = nn.Parameter(torch.zeros(1, side * side, width))
            self.blocks = nn.Sequential(*(Block() for _ in range(options.depth)))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, options.classes)
            nn.init.trunc_normal_(self.position, std=0.02)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.stem(x).flatten(2).transpose(1, 2) + self.position
            return self.head(self.norm(self.blocks(tokens)).mean(1))

    return Network().eval()
