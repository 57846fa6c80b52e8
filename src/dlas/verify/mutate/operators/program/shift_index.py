"""An index that is off by one, held inside the buffer."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from dlas.verify.mutate.mutation import ProgramMutation, mutations
from dlas.verify.mutate.script import Program, call, number

_STEPS = ("+1", "-1")


@mutations.register("shift-index")
class ShiftIndex(ProgramMutation):
    """Reads the neighbour of an element along one axis; the element itself at the edge."""

    name = "shift-index"
    summary = "read the element next to the right one"
    category = "loop"

    def _places(self, program: Program) -> Iterator[tuple[ast.AST, str]]:
        for load in program.loads():
            assert isinstance(load.value, ast.Name)
            shape = program.buffers[load.value.id].shape
            for axis, size in enumerate(shape):
                if size is not None and size > 1 and len(shape) == len(_indices(load)):
                    for step in _STEPS:
                        yield load, f"axis {axis} {step}"

    def _rewrite(self, program: Program, node: ast.AST, change: str) -> None:
        assert isinstance(node, ast.Subscript)
        assert isinstance(node.value, ast.Name)
        _, axis, step = change.split()
        indices = _indices(node)
        size = program.buffers[node.value.id].shape[int(axis)]
        assert size is not None
        index = indices[int(axis)]
        kind = "int64" if "T.int64" in ast.unparse(program.tree) else "int32"
        if step == "+1":
            moved = call("min", ast.BinOp(index, ast.Add(), number(kind, 1)), number(kind, size - 1))
        else:
            moved = call("max", ast.BinOp(index, ast.Sub(), number(kind, 1)), number(kind, 0))
        indices[int(axis)] = moved
        node.slice = ast.Tuple(indices, ast.Load()) if len(indices) > 1 else indices[0]
        program.drop_regions()


def _indices(load: ast.Subscript) -> list[ast.expr]:
    return list(load.slice.elts) if isinstance(load.slice, ast.Tuple) else [load.slice]
