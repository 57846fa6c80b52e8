"""A loop that stops one too early."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from dlas.verify.mutate.mutation import ProgramMutation, mutations
from dlas.verify.mutate.script import Program, constant_of, is_call, number


@mutations.register("shorten-loop")
class ShortenLoop(ProgramMutation):
    """Takes one from the extent of a loop; what it would have written holds whatever was in memory."""

    name = "shorten-loop"
    summary = "leave out the last turn of a loop"
    category = "loop"

    def _places(self, program: Program) -> Iterator[tuple[ast.AST, str]]:
        for node in ast.walk(program.tree):
            if isinstance(node, ast.For) and isinstance(node.iter, ast.Call) and _counts(node.iter):
                for extent in node.iter.args:
                    if (constant_of(extent) or 0) > 1:
                        yield extent, f"{_variable(node, extent)} in"

    def _rewrite(self, program: Program, node: ast.AST, change: str) -> None:
        extent = constant_of(node)
        assert extent is not None
        kind = (
            node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else "int32"
        )
        program.replace(node, number(kind, int(extent) - 1))


def _counts(node: ast.Call) -> bool:
    plain = isinstance(node.func, ast.Name) and node.func.id == "range"
    return is_call(node, "grid", "serial", "parallel", "vectorized", "unroll") or (
        plain and len(node.args) == 1
    )


def _variable(node: ast.For, extent: ast.expr) -> str:
    names = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
    assert isinstance(node.iter, ast.Call)
    return ast.unparse(names[node.iter.args.index(extent)])
