"""Intermediate tensors of two networks, paired by name: where do they part?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlas.graph.model import Model
from dlas.graph.signature import encoding_of
from dlas.verify.differential.outputs import compare_outputs
from dlas.verify.running import fed_rows


def compare_layers(source: Model, target: Model, x: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Differences of the intermediate tensors with the same name and shape, in the order of the source."""
    from dlas.graph.reference import intermediates

    few = {name: rows[:16] for name, rows in x.items()}
    a = intermediates(source, few)
    names = [spec.name for spec in target.inputs]
    b = intermediates(target, dict(zip(names, fed_rows(target, few, None), strict=True)))
    found = []
    for name, value in a.items():
        other = b.get(name)
        if other is not None and np.issubdtype(other.dtype, np.integer):
            other = _decoded(other, target, name)
        if other is None or other.shape != value.shape or not np.issubdtype(value.dtype, np.floating):
            continue
        # Masks hold -inf on purpose: there is no distance to measure.
        if value.size == 0 or not np.isfinite(value).all():
            continue
        result = compare_outputs(value, other.astype(value.dtype), classify=False)
        found.append(
            {
                "tensor": name,
                "sqnr_db": result.sqnr_db,
                "max_abs": result.max_abs,
                "relative_l2": result.relative_l2,
            }
        )
    return found


def _decoded(codes: np.ndarray, model: Model, name: str) -> np.ndarray | None:
    """The real values that an integer tensor of a quantised network stands for; None if it stands for none."""
    for node in model.ir.graph:
        if node.op_type == "QuantizeLinear" and node.outputs[0].name == name:
            known = encoding_of(node)
            return None if known is None else (codes.astype(np.float32) - known[1]) * np.float32(known[0])
    return None
