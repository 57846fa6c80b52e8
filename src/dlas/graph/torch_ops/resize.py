"""Resize, one axis after the other: an output element is a weighted sum of at most two input elements per axis."""

from __future__ import annotations

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


@op("Resize", "Upsample")
def _resize(node: Node) -> Call:
    mode = node.attr("mode", "nearest")
    transform = node.attr(
        "coordinate_transformation_mode", "half_pixel" if node.kind == "Resize" else "asymmetric"
    )
    if node.kind == "Resize" and node.opset < 11:
        transform = "asymmetric"
    if mode not in ("nearest", "linear") or node.attr("antialias", 0) or transform == "tf_crop_and_resize":
        raise node.refuse(f"mode {mode!r} with {transform!r} is not supported")
    if node.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refuse("only the policy 'stretch' is supported")
    rounding = _NEAREST[node.attr("nearest_mode", "round_prefer_floor" if node.opset >= 11 else "floor")]
    axes = node.attr("axes")
    at = 1 if node.kind == "Upsample" or node.opset < 11 else 2
    scales = node.peek(at)
    if scales is not None:
        scales = node.constant(at)
    if at == 2 and node.has(1):
        node.baked.add(1)  # the region of interest, for the refused mode only
    sizes = node.ints(3) if at == 2 and (scales is None or scales.size == 0) else None

    def call(*args: Any) -> Tensor:
        x = args[0]
        over = [a % x.dim() for a in axes] if axes is not None else list(range(x.dim()))
        wanted = sizes(args) if sizes is not None else None
        factors = scales if wanted is None else None
        for i, axis in enumerate(over):
            before = x.shape[axis]
            if wanted is not None:
                after, scale = wanted[i], wanted[i] / before
            else:
                assert factors is not None
                scale = float(factors[i])
                after = int(np.floor(before * scale))
            if after != before or scale != 1.0:
                x = _along(x, axis, _coordinates(transform, before, after, scale), mode, rounding)
        return x

    return call


def _coordinates(transform: str, before: int, after: int, scale: Any) -> np.ndarray:
    """Where each output element lies on the input axis."""
    where = np.arange(after, dtype=np.float32)
    scale = np.float32(scale)  # ties at whole coordinates fall as they do in single precision
    if transform == "asymmetric":
        return where / scale
    if transform == "align_corners":
        return where * (before - 1) / (after - 1) if after > 1 else np.zeros(after)
    if transform == "pytorch_half_pixel" and after <= 1:
        return np.zeros(after)
    shift = 0.0
    if transform == "half_pixel_symmetric":
        shift = before / 2 * (1 - after / (before * scale))
    return shift + (where + 0.5) / scale - 0.5


def _along(x: Tensor, axis: int, where: np.ndarray, mode: str, rounding: Any) -> Tensor:
    last = x.shape[axis] - 1
    if mode == "nearest":
        rows = np.clip(rounding(where), 0, last).astype(np.int64)
        return x.index_select(axis, torch.from_numpy(rows))
    where = np.clip(where, 0, last)
    low = np.floor(where).astype(np.int64)
    high = np.minimum(low + 1, last)
    shape = [1] * x.dim()
    shape[axis] = len(where)
    part = torch.from_numpy(where - low).to(x.dtype).reshape(shape)
    below, above = (x.index_select(axis, torch.from_numpy(r)) for r in (low, high))
    return below * (1 - part) + above * part
