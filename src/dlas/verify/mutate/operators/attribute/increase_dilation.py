"""A dilation one too large, where the network still holds together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import constant, nodes_of
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations


@dataclass(frozen=True)
class IncreaseDilationOptions(Occurrences):
    """Options of increase-dilation."""

    pad: bool = option(True, "pad as much more as keeps the output's size, as a converter would")


@mutations.register("increase-dilation")
class IncreaseDilation(Mutation):
    """Adds one to all dilations of a convolution whose kernel is larger than one."""

    name = "increase-dilation"
    summary = "make the dilations of a convolution one larger"
    category = "attribute"
    fault = "attribute"
    reshapes = True
    Options = IncreaseDilationOptions
    options: IncreaseDilationOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, "Conv"):
            if any(k > 1 for k in _kernel(node)):
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        kernel = _kernel(node)
        dilations = node.attributes.get_ints("dilations", [1] * len(kernel))
        node.attributes["dilations"] = ir.AttrInt64s("dilations", [d + 1 for d in dilations])
        if self.options.pad and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID"):
            pads = node.attributes.get_ints("pads", [0] * 2 * len(kernel))
            front = [p + (k - 1) // 2 for p, k in zip(pads, kernel, strict=False)]
            behind = [p + k // 2 for p, k in zip(pads[len(kernel) :], kernel, strict=True)]
            node.attributes.pop("auto_pad", None)
            node.attributes["pads"] = ir.AttrInt64s("pads", front + behind)


def _kernel(node: ir.Node) -> list[int]:
    weight = constant(node.inputs[1])
    return list(node.attributes.get_ints("kernel_shape", weight.shape[2:] if weight is not None else []))
