"""An input in another range: 0 to 255 taken for 0 to 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import is_float, new_constant, node_after
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations
from dlas.verify.mutate.operators.input._inputs import fed, site, value_of


@dataclass(frozen=True)
class ScaleInputOptions(Occurrences):
    """Options of scale-input."""

    factor: float = option(1 / 255, "what the input is multiplied by")


@mutations.register("scale-input")
class ScaleInput(Mutation):
    """Multiplies an input."""

    name = "scale-input"
    summary = "divide the input by 255 once more"
    category = "input"
    fault = "input"
    Options = ScaleInputOptions
    options: ScaleInputOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for value, reader in fed(graph):
            if is_float(value):
                yield site(reader, value)

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        value = value_of(graph, site)
        assert value.dtype is not None
        factor = np.array(self.options.factor, value.dtype.numpy())
        node_after(graph, value, "Mul", [new_constant(graph, f"{value.name}.factor", factor)])
