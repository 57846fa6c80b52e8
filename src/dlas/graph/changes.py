"""What changed between two networks, layer by layer."""

from __future__ import annotations

import numpy as np

from dlas.graph.analysis import Layer, layers
from dlas.graph.model import Model


def diff(before: Model, after: Model) -> list[dict[str, str]]:
    """Layers with parameters whose weights differ in shape, dtype, bits, zeros or number.

    Layers are matched by node name; those left over by operator, in order.

    Returns:
        Rows ``{"layer", "op", "before", "after"}``, in the order of ``before``, then what only ``after`` has.
    """
    old = [layer for layer in layers(before) if layer.params]
    new = [layer for layer in layers(after) if layer.params]
    pairs = _matched(old, new)
    rows = []
    for layer, other in pairs:
        was, became = _described(layer), _described(other)
        shown = layer or other
        if was != became and shown is not None:
            rows.append({"layer": shown.name, "op": shown.op, "before": was, "after": became})
    return rows


def _matched(old: list[Layer], new: list[Layer]) -> list[tuple[Layer | None, Layer | None]]:
    by_name = {layer.name: layer for layer in new}
    names = {layer.name for layer in old}
    spare: dict[str, list[Layer]] = {}
    for layer in new:
        if layer.name not in names:
            spare.setdefault(layer.op, []).append(layer)
    pairs: list[tuple[Layer | None, Layer | None]] = []
    for layer in old:
        match = by_name.get(layer.name)
        if match is None and spare.get(layer.op):
            match = spare[layer.op].pop(0)
        pairs.append((layer, match))
    pairs += [(None, layer) for rest in spare.values() for layer in rest]
    return pairs


def _described(layer: Layer | None) -> str:
    if layer is None:
        return "not there"
    parts = ["x".join(map(str, layer.weight_shape)) or "1", layer.weight_dtype]
    stored_bits = np.dtype(layer.weight_dtype).itemsize * 8 if layer.weight_dtype[:1] in "fiu" else 0
    if layer.weight_bits != stored_bits:
        parts.append(f"on {layer.weight_bits} bits")
    text = f"{' '.join(parts)}, {layer.params} params"
    return text + (f", {layer.sparsity:.1%} zeros" if layer.sparsity else "")
