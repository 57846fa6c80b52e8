"""What a network expects to be done to a sample before it sees it, as data that travels with the model.

The order is fixed: resize the short side, crop the centre, colour order, ``(pixel * scale - mean) / std``, layout,
quantise to the input's dtype. Of a recording, features take the place of the pixels. ``dlas.data.preprocess`` carries
it out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dlas.core.errors import OptionError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FEATURES = ("", "mfcc", "log-mel")


@dataclass(frozen=True)
class Preprocessing:
    """Steps from a stored sample to the network's input.

    Attributes:
        height: Input height in pixels; 0 for samples that are not images.
        width: Input width in pixels.
        resize: Length the short side is resized to before the centre crop; 0 resizes straight to height x width.
        squash: With ``resize``, bring both sides to that length, ignoring the aspect ratio.
        colour: ``RGB``, ``BGR`` or ``L`` (one channel); ignored when height is 0.
        scale: Factor applied to pixels 0..255 first.
        mean: Subtracted per channel, after ``scale``.
        std: Divisor per channel.
        layout: ``NCHW``, ``NHWC`` or ``N*`` (samples are passed as they are).
        dtype: dtype of the network's input: ``float32``, ``float16``, ``int8`` or ``uint8``.
        quant_scale: Input scale when dtype is an integer type.
        quant_zero_point: Input zero point when dtype is an integer type.
        features: ``mfcc`` or ``log-mel`` for recordings, as :mod:`dlas.data.audio.features` defines them: ``height``
            frames of ``width`` features, one channel; mean and std hold one number, or one per feature. Empty for
            everything else.
        sample_rate: Of the recordings, in samples per second.
    """

    height: int = 0
    width: int = 0
    resize: int = 0
    squash: bool = False
    colour: str = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NCHW"
    dtype: str = "float32"
    quant_scale: float = 1.0
    quant_zero_point: int = 0
    features: str = ""
    sample_rate: int = 0

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("colour", self.colour, ("RGB", "BGR", "L")),
            ("layout", self.layout, ("NCHW", "NHWC", "N*")),
            ("dtype", self.dtype, ("float32", "float16", "int8", "uint8")),
            ("features", self.features, FEATURES),
        ):
            if value not in accepted:
                raise OptionError(
                    f"preprocessing: {name}", value, "one of " + ", ".join(filter(None, accepted))
                )
        if self.features:
            self._check_features()
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if not all(s > 0 for s in self.std):
            raise OptionError("preprocessing: std", self.std, "positive numbers")
        if not self.quant_scale > 0:
            raise OptionError("preprocessing: quant_scale", self.quant_scale, "a positive number")

    def _check_features(self) -> None:
        most = 40 if self.features == "mfcc" else 512
        for name, low, high in (("sample_rate", 1000, 192_000), ("height", 1, 10_000), ("width", 1, most)):
            if not low <= getattr(self, name) <= high:
                raise OptionError(
                    f"preprocessing: {name}", getattr(self, name), f"{low}..{high} with {self.features}"
                )
        if self.layout == "N*":
            raise OptionError("preprocessing: layout", self.layout, "NCHW or NHWC with features")

    def to_json(self) -> str:
        """One line of JSON, as stored in the ONNX metadata."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """From TOML or JSON fields; raises UnknownNameError or OptionError on what does not fit."""
        from dlas.core.options import build_options

        return build_options(cls, fields, "preprocessing")
