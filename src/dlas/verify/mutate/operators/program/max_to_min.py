"""The maximum and the minimum exchanged."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from dlas.verify.mutate.mutation import ProgramMutation, mutations
from dlas.verify.mutate.script import Program, call

_OTHER = {"max": "min", "min": "max"}


@mutations.register("max-to-min")
class MaxToMin(ProgramMutation):
    """``T.max`` becomes ``T.min``, as in a ReLU or a pooling, and the other way round."""

    name = "max-to-min"
    summary = "take the minimum for the maximum, and the other way round"
    category = "arithmetic"

    def _places(self, program: Program) -> Iterator[tuple[ast.AST, str]]:
        for node in program.calls(*_OTHER):
            yield node, ""

    def _rewrite(self, program: Program, node: ast.AST, change: str) -> None:
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Attribute)
        program.replace(node, call(_OTHER[node.func.attr], *node.args))
