"""SV1 and SV2 of MutateNN: a stored value moved by next to nothing. In float32 both are controls.

``x * 1.00000001`` is ``x``, because the factor rounds to 1, and ``x - 1e-8`` is ``x`` for all but small ``x``; what the
released code computes it does not even store.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from dlas.core.options import option
from dlas.verify.mutate.mutation import Occurrences, ProgramMutation, mutations
from dlas.verify.mutate.operators.program._stores import float_stores
from dlas.verify.mutate.script import Program, number

_CHANGES = ("subtract", "scale")


@dataclass(frozen=True)
class StoreValueOptions(Occurrences):
    """Options of store-value."""

    change: str = option(
        "any", "subtract 1e-8 (SV1), scale by 1.00000001 (SV2), or any", choices=("any", *_CHANGES)
    )


@mutations.register("store-value")
class StoreValue(ProgramMutation):
    """A negative control: no label may change."""

    name = "store-value"
    summary = "subtract 1e-8 from stored values, or scale them by 1.00000001: a control"
    category = "value"
    fault = "precision"
    Options = StoreValueOptions
    options: StoreValueOptions

    def _places(self, program: Program) -> Iterator[tuple[ast.AST, str]]:
        for store in float_stores(program):
            for change in _CHANGES:
                if self.options.change in ("any", change):
                    yield store, change

    def _rewrite(self, program: Program, node: ast.AST, change: str) -> None:
        assert isinstance(node, ast.Assign)
        if change == "subtract":
            node.value = ast.BinOp(node.value, ast.Sub(), number("float32", 1e-8))
        else:
            node.value = ast.BinOp(node.value, ast.Mult(), number("float32", 1.00000001))
