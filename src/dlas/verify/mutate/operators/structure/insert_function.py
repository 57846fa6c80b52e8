"""AF1 to AF4 of MutateNN: a function put before or after an operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import (
    CONVOLUTIONS,
    DENSE,
    constant,
    is_float,
    node_after,
    node_before,
    nodes_of,
)
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations


@dataclass(frozen=True)
class InsertFunctionOptions(Occurrences):
    """Options of insert-function."""

    where: str = option(
        "any",
        "exp-before-layers (AF1), exp-after-layers (AF2), exp-before-norms (AF3), round-before-norms (AF4), or any",
        choices=("any", "exp-before-layers", "exp-after-layers", "exp-before-norms", "round-before-norms"),
    )


@mutations.register("insert-function")
class InsertFunction(Mutation):
    """Exp before or after convolutions and dense layers, Exp or Round before batch norms."""

    name = "insert-function"
    summary = "put Exp or Round before or after an operator"
    category = "arithmetic"
    fault = "graph"
    Options = InsertFunctionOptions
    options: InsertFunctionOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, *CONVOLUTIONS, *DENSE, "BatchNormalization"):
            if not is_float(node.inputs[0]) or constant(node.inputs[0]) is not None:
                continue
            norm = node.op_type == "BatchNormalization"
            kinds = ("exp before", "round before") if norm else ("exp before", "exp after")
            for kind in kinds:
                spelled = kind.replace(" ", "-") + ("-norms" if norm else "-layers")
                if self.options.where in ("any", spelled):
                    yield Site(str(node.name), kind)

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        function, place = site.detail.split()
        if place == "before":
            node_before(graph, node, 0, function.capitalize())
        else:
            node_after(graph, node.outputs[0], function.capitalize())
