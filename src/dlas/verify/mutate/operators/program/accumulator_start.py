"""A sum that does not start at zero."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from dlas.core.options import option
from dlas.verify.mutate.mutation import Occurrences, ProgramMutation, mutations
from dlas.verify.mutate.operators.program._stores import float_stores
from dlas.verify.mutate.script import Program, constant_of, number


@dataclass(frozen=True)
class AccumulatorStartOptions(Occurrences):
    """Options of accumulator-start."""

    value: float = option(0.001, "what a reduction starts from instead of its constant")


@mutations.register("accumulator-start")
class AccumulatorStart(ProgramMutation):
    """Changes what a reduction is initialised with, where that is a number."""

    name = "accumulator-start"
    summary = "start a sum from a small number instead of zero"
    category = "value"
    Options = AccumulatorStartOptions
    options: AccumulatorStartOptions

    def _places(self, program: Program) -> Iterator[tuple[ast.AST, str]]:
        for store in float_stores(program, init=True):
            if constant_of(store.value) is not None:
                yield store, ""

    def _rewrite(self, program: Program, node: ast.AST, change: str) -> None:
        assert isinstance(node, ast.Assign)
        node.value = number("float32", self.options.value)
