"""LT1 to LT5 of MutateNN: two equal axes of an operator's input exchanged, so that every shape stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import (
    CONVOLUTIONS,
    DENSE,
    constant,
    equal_axes,
    layers,
    node_before,
    nodes_of,
    swapped,
)
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations


@dataclass(frozen=True)
class TransposeInputOptions(Occurrences):
    """Options of transpose-input."""

    where: str = option(
        "any",
        "conv, dense (LT1, LT2), layers (both, LT3), weights (of both, LT4), batch-norm (LT5), pad, or any of them",
        choices=("any", "conv", "dense", "layers", "weights", "batch-norm", "pad"),
    )


_OPERATORS = {
    "conv": CONVOLUTIONS,
    "dense": DENSE,
    "layers": (*CONVOLUTIONS, *DENSE),
    "weights": (),
    "batch-norm": ("BatchNormalization",),
    "pad": ("Pad",),
    "any": (*CONVOLUTIONS, *DENSE, "BatchNormalization", "Pad"),
}


@mutations.register("transpose-input")
class TransposeInput(Mutation):
    """Inserts a Transpose of the first two equal axes before an input; the batch axis of data stays."""

    name = "transpose-input"
    summary = "transpose two equal axes of the input or weight of a layer"
    category = "layout"
    fault = "layout"
    Options = TransposeInputOptions
    options: TransposeInputOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        where = self.options.where
        weighted = {node.name for node in layers(graph)}
        for node in nodes_of(graph):
            data = node.op_type in _OPERATORS[where] and constant(node.inputs[0]) is None
            if data and equal_axes(node.inputs[0], 1):
                yield Site(str(node.name), "input 0")
            if where in ("weights", "any") and node.name in weighted and equal_axes(node.inputs[1], 0):
                yield Site(str(node.name), "input 1")

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        value = node.inputs[site.number]
        axes = equal_axes(value, 0 if site.number else 1)
        assert value is not None
        assert value.shape is not None
        assert axes is not None
        node_before(graph, node, site.number, "Transpose", perm=swapped(len(value.shape), *axes))
