"""An input from which another mean was taken."""

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
class ShiftInputOptions(Occurrences):
    """Options of shift-input."""

    by: float = option(0.5, "what is added to the input")


@mutations.register("shift-input")
class ShiftInput(Mutation):
    """Adds a number to an input."""

    name = "shift-input"
    summary = "take another mean from the input"
    category = "input"
    fault = "input"
    Options = ShiftInputOptions
    options: ShiftInputOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for value, reader in fed(graph):
            if is_float(value):
                yield site(reader, value)

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        value = value_of(graph, site)
        assert value.dtype is not None
        amount = np.array(self.options.by, value.dtype.numpy())
        node_after(graph, value, "Add", [new_constant(graph, f"{value.name}.shift", amount)])
