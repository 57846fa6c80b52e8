"""Which stores mutations of values change."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from dlas.verify.mutate.script import Program


def float_stores(program: Program, *, init: bool | None = None) -> Iterator[ast.Assign]:
    """Stores into float32 buffers; see :meth:`Program.stores`."""
    for store in program.stores(init=init):
        target = store.targets[0]
        assert isinstance(target, ast.Subscript)
        buffer = program.buffers.get(target.value.id) if isinstance(target.value, ast.Name) else None
        if buffer is not None and buffer.dtype == "float32":
            yield store
