"""Between samples as an attack changes them, numbers from 0 to 1, and what a network is fed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dlas.core.errors import DataError, OptionError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.data.preprocess import prepare, quantize
from dlas.graph.model import Model
from dlas.graph.preprocessing import Preprocessing
from dlas.graph.signature import layout_of

if TYPE_CHECKING:
    import torch

UNIT = (0.0, 1.0)
_OUTSIDE = 0.01  # share of features beyond 0..1 that may be cut


@dataclass(frozen=True, eq=False)
class Pixels:
    """How a network takes samples in 0..1: ``(sample * factor - mean) / std``, and integers made of that.

    Attributes:
        shape: Of one sample, in the network's axes.
        channels: Which of those axes holds the channels; None where samples are no images.
        order: Where each of the network's axes stands in a shared sample (the batch first).
        flipped: The network takes the channels of a shared sample in reverse (BGR).
        factor: Range of the values that 0..1 stands for.
        mean: Broadcast over a sample, ``float32``.
        std: Likewise.
        dtype: Of the network's input.
        encoding: Scale and zero point of integers.
        space: What a shared sample is; samples of one network are tried on another where both are the same.
    """

    shape: tuple[int, ...]
    channels: int | None
    order: tuple[int, ...]
    flipped: bool
    factor: np.float32
    mean: np.ndarray
    std: np.ndarray
    dtype: str
    encoding: tuple[float, int]
    space: tuple[object, ...]

    def own(self, shared: np.ndarray) -> np.ndarray:
        """Shared samples in the network's axes."""
        turned = shared.transpose(self.order)
        if self.flipped and self.channels is not None:
            turned = np.flip(turned, self.channels + 1)
        return np.ascontiguousarray(turned)

    def shared(self, own: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`own`."""
        if self.flipped and self.channels is not None:
            own = np.flip(own, self.channels + 1)
        return np.ascontiguousarray(own.transpose(np.argsort(self.order)))

    def fed(self, samples: np.ndarray) -> np.ndarray:
        """What the network is fed for samples ``(N, ...) float32``, in its dtype."""
        values = (samples * self.factor - self.mean) / self.std
        if np.dtype(self.dtype).kind in "iu":
            return quantize(values, self.dtype, *self.encoding)
        return values.astype(self.dtype)

    def fed_tensor(self, samples: torch.Tensor) -> torch.Tensor:
        """The same for tensors; integers are carried as floats, and rounding them lets the gradient through."""
        import torch

        values = samples * float(self.factor)
        values = (values - torch.from_numpy(self.mean)) / torch.from_numpy(self.std)
        kind = np.dtype(self.dtype)
        if kind.kind in "iu":
            scale, zero_point = self.encoding
            steps = values.double() / scale  # halves are halves only so; see `quantize`
            whole = torch.copysign(torch.floor(steps.abs() + 0.5), steps)
            limits = np.iinfo(kind)
            carried = steps + (whole - steps).detach() + zero_point
            return torch.clamp(carried, limits.min, limits.max).float()
        return values if kind == np.float32 else values.to(getattr(torch, self.dtype))


def pixels_of(
    model: Model, data: Dataset, value_range: tuple[float, float] = UNIT
) -> tuple[Pixels, np.ndarray]:
    """How ``model`` takes the samples of ``data``, and those samples as numbers in 0..1, in the network's axes.

    Args:
        model: A network with one input whose preprocessing is known, or which takes the samples as they are.
        data: Images (encoded, or ``uint8`` pixels), recordings, or arrays that are ready for the network.
        value_range: For ready arrays: the values that 0 and 1 stand for.

    Raises:
        UnsupportedError: The network has several inputs, or one that is not of numbers.
        DataError: The samples do not fit it, or ready arrays leave ``value_range``.
    """
    if len(model.inputs) != 1:
        raise UnsupportedError(
            f"{model.name} has {len(model.inputs)} inputs; an attack changes the samples of one"
        )
    spec = model.inputs[0]
    if spec.dtype not in ("float32", "float16", "int8", "uint8"):
        raise UnsupportedError(f"{model.name} takes {spec.dtype}, which no small change can be made to")
    steps = model.preprocessing
    array = data.samples if isinstance(data.samples, np.ndarray) else None
    if array is not None and (array.dtype != np.uint8 or steps is None or not steps.height):
        return _ready(model, data, array, value_range)
    if steps is not None and steps.features:
        return _heard(model, data, steps)
    if steps is None:
        raise DataError(
            f"{data.name} holds images, and {model.name} does not say how to prepare them",
            "state the preprocessing",
        )
    return _image(model, data, steps)


def _heard(model: Model, data: Dataset, steps: Preprocessing) -> tuple[Pixels, np.ndarray]:
    """Features of recordings, which the network's normalisation brings to 0..1; what little lies outside is cut."""
    plain = replace(steps, layout="NHWC", dtype="float32", quant_scale=1.0, quant_zero_point=0)
    values = prepare(data, plain)
    outside = float(((values < 0) | (values > 1)).mean())
    if outside > _OUTSIDE:
        raise DataError(
            f"{100 * outside:.1f} % of the features of {data.name} leave 0..1 in the preprocessing of {model.name}",
            "attack with the features as arrays and --range, or state the mean and std that bring them to 0..1",
        )
    found, samples = _ready(model, data, np.clip(values, 0, 1), UNIT)
    heard = ("features", steps.features, steps.sample_rate, steps.height, steps.mean, steps.std)
    return replace(found, space=heard), samples


def _image(model: Model, data: Dataset, steps: Preprocessing) -> tuple[Pixels, np.ndarray]:
    grey = steps.colour == "L"
    plain = replace(
        steps, colour="L" if grey else "RGB", scale=1 / 255, mean=(0.0,), std=(1.0,), layout="NHWC",
        dtype="float32", quant_scale=1.0, quant_zero_point=0,
    )  # fmt: skip
    shared = prepare(data, plain)
    first = steps.layout != "NHWC"
    channels = 0 if first else 2
    order = (0, 3, 1, 2) if first else (0, 1, 2, 3)
    shape = tuple(shared.shape[axis] for axis in order[1:])
    _check_fit(model, shape, data)
    spread = [1, 1, 1]
    spread[channels] = -1
    found = Pixels(
        shape=shape,
        channels=channels,
        order=order,
        flipped=steps.colour == "BGR",
        factor=np.float32(255 * steps.scale),
        mean=np.asarray(steps.mean, np.float32).reshape(spread),
        std=np.asarray(steps.std, np.float32).reshape(spread),
        dtype=model.inputs[0].dtype,
        encoding=(steps.quant_scale, steps.quant_zero_point),
        space=("image", steps.height, steps.width, steps.resize, steps.squash, grey),
    )
    return found, found.own(shared)


def _ready(
    model: Model, data: Dataset, array: np.ndarray, value_range: tuple[float, float]
) -> tuple[Pixels, np.ndarray]:
    low, high = value_range
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise OptionError("range", f"{low}:{high}", "two numbers LOW:HIGH, the first one smaller")
    values = array.astype(np.float32)
    least, most = float(values.min()), float(values.max())
    if not np.isfinite(values).all():
        raise DataError(f"{data.name} holds values that are NaN or infinite")
    if least < low or most > high:
        raise DataError(
            f"the samples of {data.name} go from {least:g} to {most:g}, outside of {low:g} to {high:g}",
            "an attack needs images (uint8 pixels), or the range of the values: --range LOW:HIGH",
        )
    order = _order(model, array.shape[1:], data)
    spec, steps = model.inputs[0], model.preprocessing
    coded = array.dtype.name == spec.dtype or steps is None
    found = Pixels(
        shape=tuple(array.shape[axis] for axis in order[1:]),
        channels={"NCHW": 0, "NHWC": 2}.get(layout_of(spec)),
        order=order,
        flipped=False,
        factor=np.float32(high - low),
        mean=np.asarray(-low, np.float32),
        std=np.asarray(1, np.float32),
        dtype=spec.dtype,
        encoding=(1.0, 0) if coded or steps is None else (steps.quant_scale, steps.quant_zero_point),
        space=("array", array.shape[1:], low, high),
    )
    return found, found.own((values - np.float32(low)) / np.float32(high - low))


def _order(model: Model, shape: tuple[int, ...], data: Dataset) -> tuple[int, ...]:
    """The axes of a ready sample as the network takes them; conversions may have turned them."""
    wanted = model.inputs[0].shape[1:]
    for order in itertools.permutations(range(len(shape))):
        turned = [shape[axis] for axis in order]
        if len(turned) == len(wanted) and all(
            isinstance(w, str) or w == t for w, t in zip(wanted, turned, strict=True)
        ):
            return (0, *(axis + 1 for axis in order))
    _check_fit(model, shape, data)
    raise AssertionError("an order was found, or the samples do not fit")


def _check_fit(model: Model, shape: tuple[int, ...], data: Dataset) -> None:
    spec = model.inputs[0]
    wanted = spec.shape[1:]
    fits = len(wanted) == len(shape) and all(
        isinstance(w, str) or w == s for w, s in zip(wanted, shape, strict=True)
    )
    if not fits:
        raise DataError(
            f"samples of {data.name} are {list(shape)}, but {model.name} takes {list(wanted)}",
            "attack a network with the data set it was trained for",
        )
