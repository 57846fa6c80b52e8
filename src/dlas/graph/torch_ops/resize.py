"""Resize, one axis after the other: an output element is a weighted sum of a few input elements per axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlas.graph.torch_ops.table import Call, Node, op

_NEAREST = {
    "round_prefer_floor": lambda c: np.ceil(c - 0.5),
    "round_prefer_ceil": lambda c: np.floor(c + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized.

    Attributes:
        before: Elements of the input.
        after: Elements of the output.
        scale: Output size over input size, as given, not rounded.
        start: Begin of the region of interest as a fraction of the input.
        end: End of the region of interest.
    """

    before: int
    after: int
    scale: float
    start: float = 0.0
    end: float = 1.0


class _Filter:
    """The attributes of a Resize, and from them the weights of input elements."""

    def __init__(self, node: Node) -> None:
        resize, later = node.kind == "Resize", node.opset >= 11
        self.mode = node.attr("mode", "nearest")
        self.transform = node.attr("coordinate_transformation_mode", "half_pixel")
        if not resize or not later:
            self.transform = "asymmetric"
        if self.mode not in ("nearest", "linear", "cubic"):
            raise node.refuse(f"mode {self.mode!r} is not supported")
        self.rounding = _NEAREST[node.attr("nearest_mode", "round_prefer_floor" if later else "floor")]
        self.cubic = float(node.attr("cubic_coeff_a", -0.75))
        self.exclude = bool(node.attr("exclude_outside", 0))
        self.smooth = bool(node.attr("antialias", 0))
        self.outside = float(node.attr("extrapolation_value", 0.0))

    def where(self, axis: _Axis) -> np.ndarray:
        """Where each output element lies on the input axis."""
        place = np.arange(axis.after, dtype=np.float32)
        scale = np.float32(axis.scale)  # ties at whole coordinates fall as they do in single precision
        if self.transform == "asymmetric":
            return place / scale
        if self.transform == "align_corners":
            steps = axis.after - 1
            return place * (axis.before - 1) / steps if steps > 0 else np.zeros(axis.after)
        if self.transform == "tf_crop_and_resize":
            last = axis.before - 1
            if axis.after <= 1:
                return np.full(axis.after, 0.5 * (axis.start + axis.end) * last)
            return axis.start * last + place * (axis.end - axis.start) * last / (axis.after - 1)
        if self.transform == "pytorch_half_pixel" and axis.after <= 1:
            return np.zeros(axis.after)
        shift = 0.0
        if self.transform == "half_pixel_symmetric":
            shift = axis.before / 2 * (1 - axis.after / (axis.before * scale))
        return shift + (place + 0.5) / scale - 0.5

    def taps(self, axis: _Axis, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(taps, after)``: which input elements each output element reads, and their weights."""
        last = axis.before - 1
        if self.mode == "nearest":
            rows = np.clip(self.rounding(where), 0, last).astype(np.int64)
            return rows[None], np.ones((1, len(where)))
        stretch = min(axis.scale, 1.0) if self.smooth else 1.0
        reach = 1 if self.mode == "linear" else 2
        if not self.smooth and self.mode == "linear":
            where = np.clip(where, 0, last)
        low = np.floor(where)
        first = int(np.floor(-reach / stretch)) + 1
        offsets = np.arange(first, 2 - first)
        distance = np.abs(offsets[:, None] - (where - low)) * stretch
        weights = self._kernel(distance)
        rows = low.astype(np.int64) + offsets[:, None]
        if self.exclude:
            weights = np.where((rows < 0) | (rows > last), 0, weights)
        return np.clip(rows, 0, last), weights / weights.sum(0)

    def _kernel(self, distance: np.ndarray) -> np.ndarray:
        """Weight of an input element at this distance (Keys 1981 for the cubic one)."""
        if self.mode == "linear":
            return np.clip(1 - distance, 0, 1)
        a, d = self.cubic, distance
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    def apply(self, x: Tensor, dimension: int, axis: _Axis) -> Tensor:
        """Resize one dimension."""
        where = self.where(axis)
        rows, weights = self.taps(axis, where)
        index = torch.from_numpy(rows).to(x.device)
        if self.mode == "nearest":
            y = x.index_select(dimension, index[0])
        else:
            shape = [1] * x.dim()
            shape[dimension] = axis.after
            parts = torch.from_numpy(weights).to(x.device, x.dtype)
            y = sum(
                x.index_select(dimension, i) * p.reshape(shape) for i, p in zip(index, parts, strict=True)
            )
            assert isinstance(y, Tensor)
        if self.transform == "tf_crop_and_resize":
            beyond = torch.from_numpy((where < 0) | (where > axis.before - 1)).to(x.device)
            shape = [axis.after if i == dimension else 1 for i in range(x.dim())]
            y = torch.where(beyond.reshape(shape), self.outside, y)
        return y


@op("Resize", "Upsample")
def _resize(node: Node) -> Call:
    kernel = _Filter(node)
    policy = node.attr("keep_aspect_ratio_policy", "stretch")
    axes = node.attr("axes")
    later = node.kind == "Resize" and node.opset >= 11
    factors = _floats(node, 2 if later else 1, "scales")
    region = _floats(node, 1) if later and kernel.transform == "tf_crop_and_resize" else None
    sizes = node.ints(3) if later else None

    def call(*args: Any) -> Tensor:
        x = args[0]
        over = [a % x.dim() for a in axes] if axes is not None else list(range(x.dim()))
        before = [x.shape[a] for a in over]
        scales = factors(args) if factors is not None else []
        if sizes is not None and not scales:
            after, scales = _fitted(before, sizes(args), policy)
        else:
            after = [int(np.floor(n * s)) for n, s in zip(before, scales, strict=True)]
        bounds = region(args) if region is not None else [0.0] * len(over) + [1.0] * len(over)
        wide = x if x.is_floating_point() or kernel.mode == "nearest" else x.float()
        for i, dimension in enumerate(over):
            axis = _Axis(before[i], after[i], scales[i], bounds[i], bounds[i + len(over)])
            if axis.after != axis.before or axis.scale != 1.0 or (axis.start, axis.end) != (0.0, 1.0):
                wide = kernel.apply(wide, dimension, axis)
        return wide.to(x.dtype)

    return call


def _floats(node: Node, position: int, attribute: str = "") -> Any:
    """A list of numbers from an input or, in older operator sets, an attribute; None where there is none."""
    fixed = node.attr(attribute) if attribute else None
    if fixed is None and node.peek(position) is not None:
        fixed = np.ravel(node.constant(position)).tolist()  # type: ignore[arg-type]
    if fixed is not None:
        listed = [float(v) for v in fixed]
        return (lambda _: listed) if listed else None
    return (lambda args: args[position].reshape(-1).tolist()) if node.has(position) else None


def _fitted(before: list[int], wanted: list[int], policy: str) -> tuple[list[int], list[float]]:
    """Sizes and scales; a policy keeps the proportions within or around the wanted sizes."""
    scales = [after / size for after, size in zip(wanted, before, strict=True)]
    if policy == "stretch":
        return wanted, scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [int(np.floor(scale * size + 0.5)) for size in before], [scale] * len(before)
