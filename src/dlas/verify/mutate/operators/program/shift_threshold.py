"""CT1 of MutateNN: the threshold of a condition moved by a half, compared in floating point."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from dlas.core.options import option
from dlas.verify.mutate.mutation import Occurrences, ProgramMutation, mutations
from dlas.verify.mutate.script import Program, cast, number


@dataclass(frozen=True)
class ShiftThresholdOptions(Occurrences):
    """Options of shift-threshold."""

    by: float = option(0.5, "what is added to the threshold")


@mutations.register("shift-threshold")
class ShiftThreshold(ProgramMutation):
    """``a < b`` becomes ``a < b + 0.5``."""

    name = "shift-threshold"
    summary = "add a half to the threshold of a condition"
    category = "condition"
    Options = ShiftThresholdOptions
    options: ShiftThresholdOptions

    def _places(self, program: Program) -> Iterator[tuple[ast.AST, str]]:
        for node in program.comparisons():
            if isinstance(node.ops[0], ast.Lt):
                yield node, ""

    def _rewrite(self, program: Program, node: ast.AST, change: str) -> None:
        assert isinstance(node, ast.Compare)
        moved = ast.BinOp(cast("float32", node.comparators[0]), ast.Add(), number("float32", self.options.by))
        node.left, node.comparators = cast("float32", node.left), [moved]
