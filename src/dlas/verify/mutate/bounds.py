"""Would a changed program read or write outside its buffers? Found without running it.

Interval arithmetic over the loops of a program: every index has a range, which a condition around it narrows. What
cannot be bounded is taken to be fine, so a program is called out of bounds only where it surely is.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass

from dlas.verify.mutate.script import Program, constant_of, is_call

Interval = tuple[float, float]
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
}


def out_of_bounds(script: str) -> str:
    """The first access outside its buffer, as text; empty where none is seen."""
    program = Program.parse(script)
    checker = _Checker(program)
    for node in program.tree.body:
        checker.statement(node, {})
    return checker.found


Ranges = dict[str, Interval]


@dataclass
class _Checker:
    program: Program
    found: str = ""

    def statement(self, node: ast.stmt, ranges: Ranges) -> None:
        if isinstance(node, ast.FunctionDef):
            self.block(node.body, dict(ranges))
        elif isinstance(node, ast.For):
            self.block(node.body, {**ranges, **_loops(node)})
        elif isinstance(node, ast.With):
            self.block(node.body, dict(ranges))
        elif isinstance(node, ast.If):
            self.expression(node.test, ranges)
            inside = narrowed(node.test, ranges)
            if inside is not None:
                self.block(node.body, inside)
            self.block(node.orelse, dict(ranges))
        elif isinstance(node, ast.Assign):
            self.expression(node.value, ranges)
            for target in node.targets:
                self.expression(target, ranges)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self.expression(node.value, ranges)

    def block(self, body: list[ast.stmt], ranges: Ranges) -> None:
        for node in body:
            if isinstance(node, ast.Assign):
                ranges.update(_axes(node, ranges))
            if isinstance(node, ast.Expr) and is_call(node.value, "where"):
                assert isinstance(node.value, ast.Call)
                inside = narrowed(node.value.args[0], ranges)
                if inside is None:  # the block never runs
                    return
                ranges.update(inside)
            self.statement(node, ranges)

    def expression(self, node: ast.AST, ranges: Ranges) -> None:
        if is_call(node, "if_then_else"):
            assert isinstance(node, ast.Call)
            test, yes, no = node.args[:3]
            self.expression(test, ranges)
            inside = narrowed(test, ranges)
            if inside is not None:
                self.expression(yes, inside)
            self.expression(no, ranges)
            return
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            self._access(node, ranges)
        for child in ast.iter_child_nodes(node):
            self.expression(child, ranges)

    def _access(self, node: ast.Subscript, ranges: Ranges) -> None:
        assert isinstance(node.value, ast.Name)
        buffer = self.program.buffers.get(node.value.id)
        indices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if buffer is None or len(indices) != len(buffer.shape) or self.found:
            return
        for axis, (index, size) in enumerate(zip(indices, buffer.shape, strict=True)):
            bounds = interval(index, ranges)
            if bounds is not None and size is not None and (bounds[0] < 0 or bounds[1] > size - 1):
                self.found = f"{ast.unparse(node)} reaches {bounds[0]:g} to {bounds[1]:g} on axis {axis} of size {size}"


def interval(node: ast.AST, ranges: Ranges) -> Interval | None:
    """Smallest and largest value of an index expression; None where that is not known."""
    value = constant_of(node)
    if value is not None:
        return value, value
    if isinstance(node, ast.Name):
        return ranges.get(node.id)
    if isinstance(node, ast.BinOp):
        return _arithmetic(node, interval(node.left, ranges), interval(node.right, ranges))
    if is_call(node, "min", "max"):
        assert isinstance(node, ast.Call)
        parts = [interval(a, ranges) for a in node.args]
        if len(parts) != 2 or parts[0] is None or parts[1] is None:
            return None
        choose = min if is_call(node, "min") else max
        return choose(parts[0][0], parts[1][0]), choose(parts[0][1], parts[1][1])
    if is_call(node, "Cast"):
        assert isinstance(node, ast.Call)
        return interval(node.args[1], ranges)
    return None


def _arithmetic(node: ast.BinOp, a: Interval | None, b: Interval | None) -> Interval | None:
    if a is None or b is None:
        return None
    if isinstance(node.op, ast.Add):
        return a[0] + b[0], a[1] + b[1]
    if isinstance(node.op, ast.Sub):
        return a[0] - b[1], a[1] - b[0]
    if isinstance(node.op, ast.Mult):
        products = [x * y for x in a for y in b]
        return min(products), max(products)
    if b[0] != b[1] or b[0] <= 0:
        return None
    if isinstance(node.op, ast.FloorDiv):
        return a[0] // b[0], a[1] // b[0]
    if isinstance(node.op, ast.Mod):
        return (a[0], a[1]) if a[0] >= 0 and a[1] < b[0] else (0, b[0] - 1)
    return None


def narrowed(test: ast.AST, ranges: Ranges) -> Ranges | None:
    """Ranges where a condition holds; None where it never does."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        inside: Ranges | None = dict(ranges)
        for part in test.values:
            if inside is not None:
                inside = narrowed(part, inside)
        return inside
    if is_call(test, "And"):
        assert isinstance(test, ast.Call)
        return narrowed(ast.BoolOp(ast.And(), list(test.args)), ranges)
    if is_call(test, "likely"):
        assert isinstance(test, ast.Call)
        return narrowed(test.args[0], ranges)
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return dict(ranges)
    kind, left, right = type(test.ops[0]), test.left, test.comparators[0]
    found = _with_bound(kind, left, right, dict(ranges))
    if found is None or kind not in _MIRRORED:
        return found
    return _with_bound(_MIRRORED[kind], right, left, found)


def _with_bound(kind: type[ast.cmpop], left: ast.AST, right: ast.AST, ranges: Ranges) -> Ranges | None:
    """``ranges`` after ``variable + shift < expression``; None where that leaves nothing."""
    variable, shift = _linear(left)
    bound = interval(right, ranges)
    if variable is None or bound is None or variable not in ranges:
        return ranges
    low, high = ranges[variable]
    if kind in (ast.Lt, ast.LtE, ast.Eq):
        most = bound[1] - shift
        high = min(high, math.ceil(most) - 1 if kind is ast.Lt else math.floor(most))
    if kind in (ast.Gt, ast.GtE, ast.Eq):
        least = bound[0] - shift
        low = max(low, math.floor(least) + 1 if kind is ast.Gt else math.ceil(least))
    return {**ranges, variable: (low, high)} if low <= high else None


def _linear(node: ast.AST) -> tuple[str | None, float]:
    """``v``, ``v + 3`` or ``v - 3`` as a name and a number."""
    if is_call(node, "Cast"):
        assert isinstance(node, ast.Call)
        return _linear(node.args[1])
    if isinstance(node, ast.Name):
        return node.id, 0
    if (
        isinstance(node, ast.BinOp)
        and isinstance(node.left, ast.Name)
        and isinstance(node.op, ast.Add | ast.Sub)
    ):
        value = constant_of(node.right)
        if value is not None:
            return node.left.id, value if isinstance(node.op, ast.Add) else -value
    return None, 0


def _loops(node: ast.For) -> Ranges:
    """Ranges of the variables of ``for i, j in T.grid(2, 3)`` and of ``for i in range(3)``."""
    names = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
    if not isinstance(node.iter, ast.Call):
        return {}
    starts = [0.0] * len(names)
    extents = [constant_of(a) for a in node.iter.args]
    if not is_call(node.iter, "grid") and len(extents) == 2 and len(names) == 1:
        first, last = extents
        if first is None or last is None:
            return {}
        starts, extents = [first], [last - first]
    return {
        name.id: (start, start + extent - 1)
        for name, start, extent in zip(names, starts, extents, strict=False)
        if isinstance(name, ast.Name) and extent is not None
    }


def _axes(node: ast.Assign, ranges: Ranges) -> Ranges:
    """Ranges of block variables: ``T.axis.remap("SR", [i, j])`` and ``T.axis.spatial(3, i * 2 + j)``."""
    value = node.value
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)):
        return {}
    owner = value.func.value
    if not (isinstance(owner, ast.Attribute) and owner.attr == "axis"):
        return {}
    target = node.targets[0]
    if value.func.attr == "remap" and isinstance(value.args[1], ast.List):
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        found = {
            name.id: interval(loop, ranges)
            for name, loop in zip(names, value.args[1].elts, strict=False)
            if isinstance(name, ast.Name)
        }
        return {name: bounds for name, bounds in found.items() if bounds is not None}
    extent = constant_of(value.args[0]) if value.args else None
    if isinstance(target, ast.Name) and extent is not None:
        return {target.id: (0, extent - 1)}
    return {}
