"""TY1 to TY4 of MutateNN: a stored value goes through a narrower type."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from dlas.core.options import option
from dlas.verify.mutate.mutation import Occurrences, ProgramMutation, mutations
from dlas.verify.mutate.operators.program._stores import float_stores
from dlas.verify.mutate.script import Program, cast

_TYPES = ("float16", "int32", "int16", "int8")


@dataclass(frozen=True)
class StoreTypeOptions(Occurrences):
    """Options of store-type."""

    dtype: str = option(
        "any", "float16 (TY1), int32 (TY2), int16 (TY3), int8 (TY4), or any", choices=("any", *_TYPES)
    )


@mutations.register("store-type")
class StoreType(ProgramMutation):
    """Casts each value that is stored in float32 to another type and back."""

    name = "store-type"
    summary = "round stored values to float16, int32, int16 or int8"
    category = "type"
    fault = "precision"
    Options = StoreTypeOptions
    options: StoreTypeOptions

    def _places(self, program: Program) -> Iterator[tuple[ast.AST, str]]:
        for store in float_stores(program):
            for dtype in _TYPES:
                if self.options.dtype in ("any", dtype):
                    yield store, dtype

    def _rewrite(self, program: Program, node: ast.AST, change: str) -> None:
        assert isinstance(node, ast.Assign)
        node.value = cast("float32", cast(change, node.value))
