"""TVMScript of one tensor program as a Python syntax tree.

TVM 0.27 has no way to rewrite tensor programs from Python, but prints them as Python and reads that back.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dlas.core.errors import ModelError

_HEADER = "# from tvm.script import tirx as T\n"
_CONDITIONAL = ("if_then_else", "Select")


@dataclass(frozen=True)
class Buffer:
    """A buffer of a program.

    Attributes:
        shape: Sizes; None where one is not a number.
        dtype: TVM's name of the dtype.
    """

    shape: tuple[int | None, ...]
    dtype: str


@dataclass
class Program:
    """One tensor program."""

    tree: ast.Module
    buffers: dict[str, Buffer] = field(default_factory=dict)

    @classmethod
    def parse(cls, script: str) -> Program:
        """Read TVMScript.

        Raises:
            ModelError: It is no function.
        """
        try:
            tree = ast.parse(script)
        except SyntaxError as error:
            raise ModelError(f"a tensor program cannot be read: {error}") from error
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        if len(functions) != 1:
            raise ModelError(f"a tensor program holds {len(functions)} functions: expected 1")
        return cls(tree, dict(_buffers(functions[0])))

    def text(self) -> str:
        """TVMScript again."""
        return _HEADER + ast.unparse(ast.fix_missing_locations(self.tree)) + "\n"

    def stores(self, *, init: bool | None = None) -> list[ast.Assign]:
        """Statements that store into a buffer; with ``init``, those that (do not) start a reduction."""
        starting = {id(s) for block in _inits(self.tree) for s in ast.walk(block)}
        found = []
        for node in _walk(self.tree):
            stored = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript)
            if stored and (init is None or (id(node) in starting) == init):
                assert isinstance(node, ast.Assign)
                found.append(node)
        return found

    def comparisons(self) -> list[ast.Compare]:
        """Comparisons that stand in a condition: of ``T.if_then_else``, ``T.Select`` or an ``if``."""
        found: list[ast.Compare] = []
        for node in _walk(self.tree):
            test = None
            if isinstance(node, ast.If):
                test = node.test
            elif is_call(node, *_CONDITIONAL):
                assert isinstance(node, ast.Call)
                test = node.args[0]
            if test is not None:
                found += [n for n in _walk(test) if isinstance(n, ast.Compare) and len(n.ops) == 1]
        return list({id(n): n for n in found}.values())

    def calls(self, *names: str) -> list[ast.Call]:
        """Calls ``T.name(...)``."""
        return [n for n in _walk(self.tree) if isinstance(n, ast.Call) and is_call(n, *names)]

    def loads(self) -> list[ast.Subscript]:
        """Buffer elements that are read, annotations left out."""
        silent = {id(n) for call in self.calls("reads", "writes") for n in ast.walk(call)}
        return [
            n
            for n in _walk(self.tree)
            if isinstance(n, ast.Subscript)
            and isinstance(n.ctx, ast.Load)
            and isinstance(n.value, ast.Name)
            and n.value.id in self.buffers
            and id(n) not in silent
        ]

    def replace(self, old: ast.AST, new: ast.AST) -> None:
        """Put one node in place of another."""
        self.tree = _Replacement(old, new).visit(self.tree)

    def drop_regions(self) -> None:
        """Take out what a block says it reads and writes; TVM finds it again."""
        for node in ast.walk(self.tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                body[:] = [
                    s for s in body if not (isinstance(s, ast.Expr) and is_call(s.value, "reads", "writes"))
                ]


def is_call(node: ast.AST, *names: str) -> bool:
    """Whether a node is ``T.name(...)`` for one of the names."""
    function = node.func if isinstance(node, ast.Call) else None
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "T"
        and function.attr in names
    )


def call(name: str, *arguments: ast.expr) -> ast.Call:
    """``T.name(arguments)``."""
    function = ast.Attribute(ast.Name("T", ast.Load()), name, ast.Load())
    return ast.Call(function, list(arguments), [])


def number(dtype: str, value: float) -> ast.Call:
    """``T.dtype(value)``."""
    return call(dtype, ast.Constant(value))


def cast(dtype: str, value: ast.expr) -> ast.Call:
    """``T.Cast(dtype, value)``."""
    return call("Cast", ast.Constant(dtype), value)


def constant_of(node: ast.AST) -> int | float | None:
    """The number that ``3``, ``-3`` or ``T.int64(3)`` stands for; None for anything else."""
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, int | float)
        and not isinstance(node.value, bool)
    ):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = constant_of(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.Call) and len(node.args) == 1 and isinstance(node.func, ast.Attribute):
        typed = node.func.attr.startswith(("int", "uint", "float"))
        return constant_of(node.args[0]) if typed and is_call(node, node.func.attr) else None
    return None


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes in the order they are written (``ast.walk`` goes by depth)."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _walk(child)


def _inits(tree: ast.AST) -> Iterator[ast.With]:
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and is_call(node.items[0].context_expr, "init"):
            yield node


def _buffers(function: ast.FunctionDef) -> Iterator[tuple[str, Buffer]]:
    for argument in function.args.args:
        if argument.annotation is not None and is_call(argument.annotation, "Buffer"):
            yield argument.arg, _buffer(argument.annotation)
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            made = is_call(node.value, "sblock_alloc_buffer", "alloc_buffer", "match_buffer", "decl_buffer")
            if made:
                yield node.targets[0].id, _buffer(node.value)


def _buffer(made: Any) -> Buffer:
    arguments = [a for a in made.args if isinstance(a, ast.Tuple | ast.Constant)]
    sizes = arguments[0].elts if arguments and isinstance(arguments[0], ast.Tuple) else arguments[:1]
    shape = [constant_of(size) for size in sizes]
    dtype = next((a.value for a in arguments[1:] if isinstance(a, ast.Constant)), "float32")
    named = next((k.value for k in made.keywords if k.arg == "dtype"), None)
    if isinstance(named, ast.Constant):
        dtype = named.value
    return Buffer(tuple(None if s is None else int(s) for s in shape), str(dtype))


class _Replacement(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self._new if node is self._old else self.generic_visit(node)
