"""Einsum as transpositions, products and sums."""

from __future__ import annotations

import onnx_ir as ir

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite.lowering import Lowering, Rewrite


def _einsum(r: Rewrite) -> list[ir.Value]:
    """One or two operands with every letter once each: a batched matrix product over the shared letters."""
    equation = r.attribute("equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "")
        result = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    clear = "." not in equation and all(len(set(t)) == len(t) for t in (*terms, result))
    if not clear or len(terms) != len(r.node.inputs) or len(terms) > 2:
        raise UnsupportedError(f"Einsum {r.node.name!r}: {equation!r} cannot be written")
    operands = [
        _reduced(r, r.input(i), term, [*terms[:i], *terms[i + 1 :], result]) for i, term in enumerate(terms)
    ]
    if len(operands) == 1:
        value, term = operands[0]
        return [_ordered(r, value, term, result)]
    return [_product(r, operands, result)]


def _reduced(r: Rewrite, value: ir.Value, term: str, others: list[str]) -> tuple[ir.Value, str]:
    """Letters that occur nowhere else are summed over at once."""
    alone = [place for place, letter in enumerate(term) if not any(letter in other for other in others)]
    if alone:
        value = r.op("ReduceSum", value, r.ints(*alone), keepdims=0)
    return value, "".join(c for place, c in enumerate(term) if place not in alone)


def _product(r: Rewrite, operands: list[tuple[ir.Value, str]], result: str) -> ir.Value:
    (a, first), (b, second) = operands
    sizes = {}
    for index, term in enumerate(r.attribute("equation").replace(" ", "").partition("->")[0].split(",")):
        sizes |= dict(zip(term, r.shape(r.input(index)), strict=True))
    batch = [c for c in first if c in second and c in result]
    summed = [c for c in first if c in second and c not in result]
    rows, columns = (
        [c for c in term if c not in other] for term, other in ((first, second), (second, first))
    )
    a = _grouped(r, _ordered(r, a, first, "".join([*batch, *rows, *summed])), [batch, rows, summed], sizes)
    b = _grouped(
        r, _ordered(r, b, second, "".join([*batch, *summed, *columns])), [batch, summed, columns], sizes
    )
    made = r.op("MatMul", a, b)
    letters = [*batch, *rows, *columns]
    made = r.op("Reshape", made, r.ints(*(sizes[c] for c in letters)))
    return _ordered(r, made, "".join(letters), result)


def _grouped(r: Rewrite, value: ir.Value, groups: list[list[str]], sizes: dict[str, int]) -> ir.Value:
    """Axes of each group as one."""
    shape = []
    for group in groups:
        total = 1
        for letter in group:
            total *= sizes[letter]
        shape.append(total)
    return r.op("Reshape", value, r.ints(*(shape if groups[0] else shape[1:])))


def _ordered(r: Rewrite, value: ir.Value, held: str, wanted: str) -> ir.Value:
    if held == wanted:
        return value
    return r.op("Transpose", value, perm=[held.index(c) for c in wanted])


EINSUM: dict[str, Lowering] = {"Einsum": _einsum}
