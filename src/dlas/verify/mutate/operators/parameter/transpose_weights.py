"""A stored weight in another layout of the same shape: kernels turned (HW), inputs for outputs (OI)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import set_constant
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations
from dlas.verify.mutate.operators.parameter._weights import weight_of, weighted


@dataclass(frozen=True)
class TransposeWeightsOptions(Occurrences):
    """Options of transpose-weights."""

    axes: str = option("any", "kernel axes (hw), channel axes (oi), or any", choices=("any", "hw", "oi"))


@mutations.register("transpose-weights")
class TransposeWeights(Mutation):
    """Exchanges two equal axes of a weight, where that changes it."""

    name = "transpose-weights"
    summary = "transpose the kernel, or the channels, of a layer's weights"
    category = "parameter"
    fault = "parameter"
    Options = TransposeWeightsOptions
    options: TransposeWeightsOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node, weight in weighted(graph):
            for kind, axes in (("hw", (2, 3)), ("oi", (0, 1))):
                if self.options.axes not in ("any", kind) or weight.ndim <= axes[1]:
                    continue
                first, second = axes
                turned = np.swapaxes(weight, first, second)
                if turned.shape == weight.shape and not np.array_equal(turned, weight):
                    yield Site(str(node.name), kind)

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        first, second = (2, 3) if site.detail == "hw" else (0, 1)
        set_constant(graph, node, 1, np.swapaxes(weight_of(node), first, second))
