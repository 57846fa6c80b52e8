"""Which pixel a Resize reads: half_pixel, asymmetric and align_corners are mixed up again and again."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import nodes_of
from dlas.verify.mutate.mutation import Mutation, Site, mutations

_OTHER = {
    "half_pixel": "asymmetric",
    "half_pixel_symmetric": "asymmetric",
    "pytorch_half_pixel": "align_corners",
    "align_corners": "half_pixel",
    "asymmetric": "half_pixel",
}


@mutations.register("resize-coordinates")
class ResizeCoordinates(Mutation):
    """Another coordinate transformation in a Resize."""

    name = "resize-coordinates"
    summary = "use another coordinate transformation in a Resize"
    category = "attribute"
    fault = "attribute"

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, "Resize"):
            if _mode(node) in _OTHER:
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        key = "coordinate_transformation_mode"
        node.attributes[key] = ir.AttrString(key, _OTHER[_mode(node)])


def _mode(node: ir.Node) -> str:
    return node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
