"""Operators that treat every element alike: one input (functions) or two (arithmetic)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.layout import Perm
from dlas.graph.formats.tflite.ops.convolution import activation_code
from dlas.graph.formats.tflite.ops.dense import softmax_quant
from dlas.graph.formats.tflite.places import Constant, Place
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation, Quant
from dlas.graph.formats.tflite.writer import Writer

# tflite, ONNX, options table, does the integer kernel exist
UNARY = [
    ("LOGISTIC", "Sigmoid", "", True),
    ("TANH", "Tanh", "", True),
    ("ELU", "Elu", "", True),
    ("EXP", "Exp", "ExpOptions", True),
    ("LOG", "Log", "", False),
    ("SQRT", "Sqrt", "", False),
    ("NEG", "Neg", "NegOptions", False),
    ("ABS", "Abs", "AbsOptions", True),
    ("FLOOR", "Floor", "", False),
    ("CEIL", "Ceil", "", False),
    ("ROUND", "Round", "", False),
    ("SIN", "Sin", "", False),
    ("COS", "Cos", "CosOptions", False),
    ("SIGN", "Sign", "SignOptions", False),
    ("LOGICAL_NOT", "Not", "LogicalNotOptions", False),
    ("HARD_SWISH", "HardSwish", "HardSwishOptions", True),
]
BINARY = [
    ("ADD", "Add", "AddOptions", True),
    ("SUB", "Sub", "SubOptions", True),
    ("MUL", "Mul", "MulOptions", True),
    ("DIV", "Div", "DivOptions", False),
    ("MAXIMUM", "Max", "MaximumMinimumOptions", True),
    ("MINIMUM", "Min", "MaximumMinimumOptions", True),
    ("POW", "Pow", "PowOptions", False),
    ("GREATER", "Greater", "GreaterOptions", False),
    ("GREATER_EQUAL", "GreaterOrEqual", "GreaterEqualOptions", False),
    ("LESS", "Less", "LessOptions", False),
    ("LESS_EQUAL", "LessOrEqual", "LessEqualOptions", False),
    ("EQUAL", "Equal", "EqualOptions", False),
    ("LOGICAL_AND", "And", "LogicalAndOptions", False),
    ("LOGICAL_OR", "Or", "LogicalOrOptions", False),
]
_FUSING = ("AddOptions", "SubOptions", "MulOptions", "DivOptions")


def _tanh_quant(dtype: str) -> Quant:
    return Quant.of(1 / 128, 0 if dtype == "int8" else 128)


# Reading


def read_unary(r: Reader, op: Operation, kind: str) -> None:
    """One input, one output of the same shape, no attribute: ``kind`` in ONNX."""
    perm = r.perm(op.inputs[0])
    r.give(op.outputs[0], r.emit(kind, [r.real(op.inputs[0], perm)]), perm)


def _read_rsqrt(r: Reader, op: Operation) -> None:
    perm = r.perm(op.inputs[0])
    root = r.emit("Sqrt", [r.real(op.inputs[0], perm)])
    r.give(op.outputs[0], r.emit("Reciprocal", [root]), perm)


def _read_square(r: Reader, op: Operation) -> None:
    perm = r.perm(op.inputs[0])
    x = r.real(op.inputs[0], perm)
    r.give(op.outputs[0], r.emit("Mul", [x, x]), perm)


def common_perm(r: Reader, inputs: Sequence[int], rank: int) -> Perm:
    """The order in which most full-rank inputs are there already, so that the fewest transpositions are needed."""
    votes: Counter[Perm] = Counter()
    for i in inputs:
        if not r.is_constant(i) and len(r.shape(i)) == rank:
            votes.update(r.perms(i))
    plain = layout.identity(rank)
    return max(votes, key=lambda p: (votes[p], p != plain), default=plain)


def aligned(r: Reader, i: int, rank: int, perm: Perm) -> str:
    """Numbers of tensor ``i``, stretched to ``rank`` axes in order ``perm`` for broadcasting."""
    shape = r.shape(i)
    if len(shape) == rank:
        return r.real(i, perm)
    name = r.real(i, layout.identity(len(shape)))
    if not shape or max(shape) == 1:
        return name
    full = (1,) * (rank - len(shape)) + shape
    name = r.emit("Reshape", [name, r.int64(full)])
    return (
        r.emit("Transpose", [name], perm=list(perm))
        if layout.moves_data(full, perm) or perm != layout.identity(rank)
        else name
    )


def _read_binary(r: Reader, op: Operation, kind: str, options: str) -> None:
    out = op.outputs[0]
    rank = len(r.shape(out))
    perm = common_perm(r, op.inputs, rank)
    name = r.emit(kind, [aligned(r, i, rank, perm) for i in op.inputs[:2]])
    if options in _FUSING:
        name = r.activate(name, r.options(op, options).fusedActivationFunction)
    r.give(out, name, perm)


def _read_squared_difference(r: Reader, op: Operation) -> None:
    rank = len(r.shape(op.outputs[0]))
    perm = common_perm(r, op.inputs, rank)
    difference = r.emit("Sub", [aligned(r, i, rank, perm) for i in op.inputs[:2]])
    r.give(op.outputs[0], r.emit("Mul", [difference, difference]), perm)


def _read_select(r: Reader, op: Operation) -> None:
    rank = len(r.shape(op.outputs[0]))
    condition, *choices = op.inputs
    deep = len(r.shape(condition))
    perm = common_perm(r, op.inputs, rank)
    if op.kind == "SELECT" and 0 < deep < rank:  # it picks whole rows
        perm = layout.identity(rank)
        name = r.real(condition, layout.identity(deep))
        mask = r.emit("Reshape", [name, r.int64([*r.shape(condition), *[1] * (rank - deep)])])
    else:
        mask = aligned(r, condition, rank, perm)
    r.give(op.outputs[0], r.emit("Where", [mask, *(aligned(r, i, rank, perm) for i in choices)]), perm)


def _read_quantize(r: Reader, op: Operation) -> None:
    perm = r.perm(op.inputs[0])
    r.give(op.outputs[0], r.real(op.inputs[0], perm), perm)


def _read_dequantize(r: Reader, op: Operation) -> None:
    source = r.tensor(op.inputs[0])
    if source.data is not None:
        r.give_constant(op.outputs[0], source)
    else:
        _read_quantize(r, op)


def _read_cast(r: Reader, op: Operation) -> None:
    perm = r.perm(op.inputs[0])
    dtype = r.tensor(op.outputs[0]).dtype
    name = r.emit("Cast", [r.raw(op.inputs[0], perm)], to=r.element_type(dtype))
    r.give_raw(op.outputs[0], name, perm)


# Writing


def _write_unary(w: Writer, node: ir.Node, kind: str, options: str, integer: bool) -> None:
    value = w.input(node, 0)
    site = w.site(node, [value])
    if site.quant is not None and not integer:
        site = w.as_float(site)
    if kind == "ELU" and w.attribute(node, "alpha", 1.0) != 1.0:
        raise UnsupportedError(f"Elu {node.name!r}: tflite knows alpha = 1 only")
    x = w.argument(site, value)
    fixed = {"LOGISTIC": softmax_quant, "TANH": _tanh_quant}.get(kind)
    table = w.file.options(options) if options else None
    w.done(site, w.fixed_scale(kind, [x], site, fixed, table), w.perm(value))


def _write_reciprocal(w: Writer, node: ir.Node) -> None:
    value = w.input(node, 0)
    site = w.site(node, [])
    x = w.real(value)
    one = w.numbers(np.array(1.0))
    made = w.add("DIV", [one, x], w.file.cells[x].shape, options=w.file.options("DivOptions"))
    w.done(site, made, w.perm(value))


def order_of(w: Writer, values: Sequence[ir.Value], rank: int) -> Perm:
    """The order in which most full-rank inputs are stored."""
    votes = Counter(w.perm(v) for v in values if w.constant(v) is None and len(w.shape(v)) == rank)
    plain = layout.identity(rank)
    return max(votes, key=lambda p: (votes[p], p != plain), default=plain)


def operand(w: Writer, value: ir.Value, rank: int, perm: Perm, integer: bool) -> int:
    """Tensor of an operand stretched to ``rank`` axes in order ``perm`` for broadcasting."""
    shape = w.shape(value)
    full = (1,) * (rank - len(shape)) + shape
    constant = w.constant(value)
    if constant is not None:
        quant = constant.quant
        if integer and quant is not None:
            if quant.axis is not None:
                raise UnsupportedError(
                    f"operand {value.name!r} is quantised per channel; tflite arithmetic is per tensor"
                )
            return w.weights(
                Constant(constant.array.reshape(full), quant), perm, value.name or "", integer=True
            )
        array = constant.real().reshape(full).transpose(perm)
        kind = array.dtype.name
        if kind in ("int64", "int32", "bool"):
            return w.file.constant(array.astype(np.int32 if kind != "bool" else np.bool_))
        return w.numbers(array)
    if len(shape) == rank:
        return w.place(value, perm) if integer else w.real(value, perm)
    plain = layout.identity(len(shape))
    tensor = w.place(value, plain) if integer else w.real(value, plain)
    return (
        w.reorder(w.reshape(tensor, full), perm) if perm != layout.identity(rank) else w.reshape(tensor, full)
    )


def write_binary(w: Writer, node: ir.Node, kind: str, options: str, integer: bool) -> None:
    """Two inputs, or a chain of them, that are broadcast: ``kind`` in tflite.

    Args:
        w: The writer.
        node: The ONNX node.
        kind: Builtin operator.
        options: Its options table; may be empty.
        integer: Whether it has an integer kernel.
    """
    values = [w.input(node, i) for i in range(len(node.inputs))]
    if len(values) != 2 and kind not in ("ADD", "MAXIMUM", "MINIMUM"):
        raise UnsupportedError(f"{node.op_type} {node.name!r} has {len(values)} inputs")
    site = w.site(node, values, fuse=options in _FUSING)
    whole = all(isinstance(found := w.as_integer(v), Place) or _one_scale(found) for v in values)
    if site.quant is not None and not (integer and whole and len(values) == 2):
        site = w.as_float(site)
    rank = len(w.shape(site.result))
    perm = order_of(w, values, rank)
    inputs = [operand(w, v, rank, perm, site.quant is not None) for v in values]
    shape = layout.permute(w.shape(site.result), perm)
    if site.quant is not None and kind in ("MAXIMUM", "MINIMUM"):  # the kernels compare stored integers
        inputs = [w.on_grid(site, i) for i in inputs]
    made = inputs[0]
    table = w.file.options(options)
    if options in _FUSING:
        table.fusedActivationFunction = activation_code(w, site.activation)
    for other in inputs[1:]:
        made = w.add(kind, [made, other], shape, dtype=site.dtype, quant=site.quant, options=table)
    w.done(site, made, perm)


def _one_scale(found: object) -> bool:
    return isinstance(found, Constant) and found.quant is not None and found.quant.axis is None


def _write_batch_norm(w: Writer, node: ir.Node) -> None:
    value = w.input(node, 0)
    scale, shift, mean, variance = (w.need(w.input(node, i)).astype(np.float64) for i in range(1, 5))
    factor = scale / np.sqrt(variance + float(w.attribute(node, "epsilon", 1e-5)))
    rank = len(w.shape(value))
    site = w.site(node, [value], fuse=True)
    if site.quant is not None:
        site = w.as_float(site)
    perm = (0, *range(2, rank), 1) if rank > 2 else layout.identity(rank)
    x = w.real(value, perm)
    shape = w.file.cells[x].shape
    x = w.add("MUL", [x, w.numbers(factor)], shape, options=w.file.options("MulOptions"))
    table = w.file.options("AddOptions", fusedActivationFunction=activation_code(w, site.activation))
    w.done(site, w.add("ADD", [x, w.numbers(shift - mean * factor)], shape, options=table), perm)


def _write_where(w: Writer, node: ir.Node) -> None:
    values = [w.input(node, i) for i in range(3)]
    site = w.site(node, values[1:])
    if site.quant is not None and not all(
        isinstance(found := w.as_integer(v), Place) or _one_scale(found) for v in values[1:]
    ):
        site = w.as_float(site)
    rank = len(w.shape(site.result))
    perm = order_of(w, values, rank)
    integer = site.quant is not None
    inputs = [operand(w, values[0], rank, perm, False)]
    inputs += [w.on_grid(site, operand(w, v, rank, perm, integer)) for v in values[1:]]
    shape = layout.permute(w.shape(site.result), perm)
    table = w.file.options("SelectV2Options")
    made = w.add("SELECT_V2", inputs, shape, dtype=site.dtype, quant=site.quant, options=table)
    w.done(site, made, perm)


def _write_identity(w: Writer, node: ir.Node) -> None:
    value = w.input(node, 0)
    constant = w.constant(value)
    if constant is not None:
        w.keep(node.outputs[0], constant)
    else:
        w.bind(node.outputs[0], w.place(value), w.perm(value))


RULES = [
    *(
        Rule((kind,), (onnx,), partial(read_unary, kind=onnx), partial(_write_unary, kind=kind, options=o, integer=i))
        for kind, onnx, o, i in UNARY
    ),
    *(
        Rule((kind,), (onnx,), partial(_read_binary, kind=onnx, options=o),
             partial(write_binary, kind=kind, options=o, integer=i))
        for kind, onnx, o, i in BINARY
    ),
    Rule(("RSQRT",), ("Reciprocal",), _read_rsqrt, _write_reciprocal),
    Rule(("SQUARE",), (), _read_square),
    Rule(("SQUARED_DIFFERENCE",), (), _read_squared_difference),
    Rule(("QUANTIZE",), (), _read_quantize),
    Rule(("DEQUANTIZE",), (), _read_dequantize),
    Rule(("CAST",), (), _read_cast),
    Rule((), ("BatchNormalization",), None, _write_batch_norm),
    Rule(("SELECT_V2", "SELECT"), ("Where",), _read_select, _write_where),
    Rule((), ("Identity", "Dropout"), None, _write_identity),
]  # fmt: skip
