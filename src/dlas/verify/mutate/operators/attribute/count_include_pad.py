"""Whether the padding counts in the mean of an AveragePool."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import nodes_of
from dlas.verify.mutate.mutation import Mutation, Site, mutations


@mutations.register("count-include-pad")
class CountIncludePad(Mutation):
    """Flips the attribute of a padded AveragePool; without padding it has no meaning."""

    name = "count-include-pad"
    summary = "count the padding of an AveragePool, or stop counting it"
    category = "attribute"
    fault = "attribute"

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, "AveragePool"):
            same = node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")
            if same or any(node.attributes.get_ints("pads", [])):
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        flag = 1 - node.attributes.get_int("count_include_pad", 0)
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", flag)
