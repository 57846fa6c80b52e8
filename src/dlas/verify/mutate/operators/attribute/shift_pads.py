"""Padding moved by one: as much in total, on the other side (SAME_UPPER read as SAME_LOWER)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from dlas.verify.mutate.editing import CONVOLUTIONS, POOLS, constant, nodes_of, set_constant
from dlas.verify.mutate.mutation import Mutation, Site, mutations

_OTHER = {"SAME_UPPER": "SAME_LOWER", "SAME_LOWER": "SAME_UPPER"}


@mutations.register("shift-pads")
class ShiftPads(Mutation):
    """One axis of a convolution, pooling or Pad gets one more in front and one less behind, or the reverse."""

    name = "shift-pads"
    summary = "move the padding of one axis by one"
    category = "attribute"
    fault = "attribute"
    reshapes = True

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, *CONVOLUTIONS, *POOLS, "Pad"):
            if node.attributes.get_string("auto_pad", "NOTSET") in _OTHER:
                yield Site(str(node.name), "auto_pad")
                continue
            pads = _pads(node)
            half = len(pads) // 2
            for axis in range(half):
                if pads[axis] > 0 or pads[half + axis] > 0:
                    yield Site(str(node.name), f"axis {axis}")

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        if site.detail == "auto_pad":
            other = _OTHER[node.attributes.get_string("auto_pad", "")]
            node.attributes["auto_pad"] = ir.AttrString("auto_pad", other)
            return
        pads = _pads(node)
        front, behind = site.number, len(pads) // 2 + site.number
        step = 1 if pads[behind] > 0 else -1
        pads[front] += step
        pads[behind] -= step
        if node.op_type == "Pad":
            set_constant(graph, node, 1, np.array(pads, np.int64))
        else:
            node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def _pads(node: ir.Node) -> list[int]:
    if node.op_type == "Pad":
        amounts = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return [] if amounts is None else [int(a) for a in amounts.reshape(-1)]
    return list(node.attributes.get_ints("pads", []))
