"""Shortening what a framework's exporter leaves behind, without changing what it computes."""

from __future__ import annotations

import onnx_ir as ir

from dlas.graph.passes import tidy

# By their names in onnxscript. Above all, a Reshape to a shape computed from the batch becomes one to a constant.
_RULES = (
    "materialize_reshape_shape",
    "squeeze_reshape_1d",
    "reshape_reshape",
    "unsqueeze_unsqueeze",
    "transpose_transpose",
    "no_op_transpose",
    "no_op_expand",
    "no_op_cast",
    "cast_cast",
    "collapse_slice",
    "collapse_slice2",
    "mul_by_1",
    "div_by_1",
    "add_0",
    "sub_0",
)


def shorten(graph: ir.Model, first: tuple[str, ...] = (), last: tuple[str, ...] = ()) -> None:
    """Tidy ``graph`` in place and apply the rewriting rules that every exporter's graph profits from.

    Batch norms are kept: fine-tuning needs them, and criteria on weights mean something else once they are folded.

    Args:
        graph: The network, changed in place.
        first: More rules of onnxscript, tried before the common ones.
        last: More rules, tried after them.
    """
    from onnxscript import rewriter
    from onnxscript.rewriter.rules import common

    tidy(graph)
    names = (*first, *_RULES, *last)
    rewriter.RewritePass([getattr(common, f"{name}_rule") for name in names])(graph)
    tidy(graph)


def fresh_name(name: str, taken: set[str]) -> str:
    """``name``, numbered where it is among the ``taken`` ones; the answer is added to them."""
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    taken.add(unique)
    return unique
