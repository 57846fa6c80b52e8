"""Images fed as BGR to a network that wants RGB."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from dlas.verify.mutate.editing import new_constant, node_after
from dlas.verify.mutate.mutation import Mutation, Site, mutations
from dlas.verify.mutate.operators.input._inputs import channel_axis, fed, site, value_of


@mutations.register("swap-colours")
class SwapColours(Mutation):
    """Reverses the three channels of an image input."""

    name = "swap-colours"
    summary = "feed BGR for RGB"
    category = "input"
    fault = "input"

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for value, reader in fed(graph):
            if channel_axis(value) is not None:
                yield site(reader, value)

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        value = value_of(graph, site)
        order = new_constant(graph, f"{value.name}.colours", np.array([2, 1, 0], np.int64))
        node_after(graph, value, "Gather", [order], axis=channel_axis(value))
