"""Ways to write the same network otherwise, as converters and optimisers do: nothing in them is a fault.

Every one changes a prepared graph (unique node names, shapes inferred) in place, and says whether it found anything
to change.
"""

from __future__ import annotations

import onnx_ir as ir

from dlas.graph.passes import infer_shapes, remove_unused
from dlas.testing.rewrites import operators as _operators
from dlas.testing.rewrites import parameters as _parameters
from dlas.testing.rewrites._edit import REWRITES
from dlas.verify.mutate.editing import forget_shapes, name_nodes

__all__ = ["REWRITES", "rewritten"]

assert _operators
assert _parameters


def rewritten(graph: ir.Model, *names: str) -> ir.Model | None:
    """A copy rewritten in these ways, one after the other; None where one of them finds nothing to change."""
    copy = graph.clone()
    for name in names:
        if not REWRITES[name](copy):
            return None
        forget_shapes(copy)
        remove_unused(copy)
        copy.graph.sort()
        name_nodes(copy)
        infer_shapes(copy)
    return copy
