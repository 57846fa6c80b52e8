"""Relu becomes a clip with an upper bound, as converters for small devices write it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import is_float, new_constant, nodes_of
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations


@dataclass(frozen=True)
class ReluToClipOptions(Occurrences):
    """Options of relu-to-clip."""

    high: float = option(6.0, "upper bound of the clip", low=0.0)


@mutations.register("relu-to-clip")
class ReluToClip(Mutation):
    """A mild bound often flips no label, which is why labels alone do not find it."""

    name = "relu-to-clip"
    summary = "bound a Relu from above"
    category = "operator"
    fault = "graph"
    Options = ReluToClipOptions
    options: ReluToClipOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, "Relu"):
            if is_float(node.inputs[0]):
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        value = node.inputs[0]
        assert value is not None
        assert value.dtype is not None
        kind = value.dtype.numpy()
        node.op_type = "Clip"
        node.resize_inputs(3)
        for index, bound in ((1, 0.0), (2, self.options.high)):
            node.replace_input_with(
                index, new_constant(graph, f"{node.name}.bound{index}", np.array(bound, kind))
            )
