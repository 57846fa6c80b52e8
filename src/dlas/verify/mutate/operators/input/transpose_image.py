"""Images fed with height and width exchanged."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import node_after, swapped
from dlas.verify.mutate.mutation import Mutation, Site, mutations
from dlas.verify.mutate.operators.input._inputs import fed, image_axes, site, value_of


@mutations.register("transpose-image")
class TransposeImage(Mutation):
    """Transposes square images."""

    name = "transpose-image"
    summary = "exchange height and width of the input"
    category = "input"
    fault = "input"

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for value, reader in fed(graph):
            if image_axes(value) is not None:
                yield site(reader, value)

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        value = value_of(graph, site)
        axes = image_axes(value)
        assert axes is not None
        node_after(graph, value, "Transpose", perm=swapped(4, *axes))
