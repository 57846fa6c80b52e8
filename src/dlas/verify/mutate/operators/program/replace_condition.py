"""CO1 to CO4 of MutateNN: another comparison in a condition."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from dlas.core.options import option
from dlas.verify.mutate.mutation import Occurrences, ProgramMutation, mutations
from dlas.verify.mutate.script import Program

_CHANGES: dict[str, tuple[type[ast.cmpop], type[ast.cmpop]]] = {
    "less-to-less-equal": (ast.Lt, ast.LtE),
    "less-to-greater": (ast.Lt, ast.Gt),
    "greater-to-less": (ast.Gt, ast.Lt),
    "greater-to-greater-equal": (ast.Gt, ast.GtE),
    "less-equal-to-less": (ast.LtE, ast.Lt),
}


@dataclass(frozen=True)
class ReplaceConditionOptions(Occurrences):
    """Options of replace-condition."""

    change: str = option("any", "CO1 to CO4 of MutateNN, <= to <, or any", choices=("any", *_CHANGES))


@mutations.register("replace-condition")
class ReplaceCondition(ProgramMutation):
    """Changes one comparison, such as the one that tells padding from image."""

    name = "replace-condition"
    summary = "compare the other way in a condition"
    category = "condition"
    Options = ReplaceConditionOptions
    options: ReplaceConditionOptions

    def _places(self, program: Program) -> Iterator[tuple[ast.AST, str]]:
        for node in program.comparisons():
            for change, (old, _) in _CHANGES.items():
                if self.options.change in ("any", change) and type(node.ops[0]) is old:
                    yield node, change

    def _rewrite(self, program: Program, node: ast.AST, change: str) -> None:
        assert isinstance(node, ast.Compare)
        node.ops = [_CHANGES[change][1]()]
