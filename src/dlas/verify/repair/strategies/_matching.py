"""Which node of the source a node of the target stands for, by the rule of FetaFix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

_NEAR = 0.2  # constants of nodes without a common name may differ by this much


@dataclass(frozen=True)
class Change:
    """A change that may be tried.

    Attributes:
        strategy: Which of the procedure's strategies proposes it.
        layer: Node of the target it is for; empty for the whole network.
        title: What it does, in one line.
        edit: Makes it, in place, in a copy of the target.
    """

    strategy: str
    layer: str
    title: str
    edit: Callable[[ir.Model], None]


@dataclass(frozen=True)
class Pairing:
    """Both graphs and the nodes that correspond.

    Attributes:
        source: Graph that is right.
        target: Graph under repair.
    """

    source: ir.Model
    target: ir.Model

    @cached_property
    def of_target(self) -> dict[str, ir.Node]:
        """Node of the source by the name of the target's.

        The same name and operator, or else the same operator, the same number of inputs and constant inputs of equal
        shape that differ by 0.2 at most. Of several that fit, the nearest that is not taken yet, the first in order.
        """
        named = {str(n.name): n for n in self.source.graph}
        found = {
            str(n.name): named[str(n.name)]
            for n in self.target.graph
            if str(n.name) in named and named[str(n.name)].op_type == n.op_type
        }
        free: dict[tuple[str, int], list[ir.Node]] = {}
        for node in self.source.graph:
            if str(node.name) not in found:
                free.setdefault((node.op_type, len(node.inputs)), []).append(node)
        for node in self.target.graph:
            candidates = [] if node.name in found else free.get((node.op_type, len(node.inputs)), [])
            apart = [_apart(node, other) for other in candidates]
            if apart and min(apart) <= _NEAR:
                found[str(node.name)] = candidates.pop(apart.index(min(apart)))
        return found

    @cached_property
    def of_source(self) -> dict[str, str]:
        """Name of the target's node by the name of the source's."""
        return {str(node.name): name for name, node in self.of_target.items()}


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """A value that is written into the graph, or None."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    maker = value.producer()
    if maker is not None and maker.op_type == "Constant" and "value" in maker.attributes:
        return maker.attributes["value"].as_tensor().numpy()
    return None


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Input ``index`` of a node; None where it has none."""
    return node.inputs[index] if index < len(node.inputs) else None


def data_of(node: ir.Node) -> ir.Value | None:
    """The first input of a node that is not constant: where the one path through it comes from."""
    return next((v for v in node.inputs if v is not None and constant_of(v) is None), None)


def alike(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether two constants are bit for bit the same, or both missing."""
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _apart(a: ir.Node, b: ir.Node) -> float:
    """Largest difference of the constants of two nodes; infinite where they are not of equal shape."""
    worst = 0.0
    for one, other in zip(a.inputs, b.inputs, strict=True):
        x, y = constant_of(one), constant_of(other)
        if x is None and y is None:
            continue
        if x is None or y is None or x.shape != y.shape:
            return float("inf")
        if x.size:
            difference = np.abs(x.astype(np.float64) - y.astype(np.float64)).max()
            worst = max(worst, float(difference) if np.isfinite(difference) else float("inf"))
    return worst
