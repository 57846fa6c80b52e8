"""Reading of element-wise operators that ONNX at opset 18 has only in pieces."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.layout import Perm
from dlas.graph.formats.tflite.ops.elementwise import aligned, common_perm
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation

_FLOATS = ("float32", "float16", "float64")


def _operands(r: Reader, op: Operation) -> tuple[list[str], Perm]:
    rank = len(r.shape(op.outputs[0]))
    perm = common_perm(r, op.inputs, rank)
    return [aligned(r, i, rank, perm) for i in op.inputs], perm


def _read_not_equal(r: Reader, op: Operation) -> None:
    names, perm = _operands(r, op)
    r.give(op.outputs[0], r.emit("Not", [r.emit("Equal", names)]), perm)


def _read_plain(r: Reader, op: Operation, kind: str) -> None:
    names, perm = _operands(r, op)
    r.give(op.outputs[0], r.emit(kind, names), perm)


def _is_whole(r: Reader, i: int) -> bool:
    """Whether tensor ``i`` holds plain integers."""
    return r.tensor(i).dtype not in _FLOATS and not r.is_on_grid(i)


def _floor_mod(r: Reader, a: str, b: str, whole: bool) -> str:
    """Remainder with the sign of the divisor."""
    if whole:
        return r.emit("Mod", [a, b])
    rest, zero = r.emit("Mod", [a, b], fmod=1), r.number(0.0)
    signs = [r.emit("Less", [name, zero]) for name in (rest, b)]
    wrong = r.emit("And", [r.emit("Xor", signs), r.emit("Not", [r.emit("Equal", [rest, zero])])])
    return r.emit("Where", [wrong, r.emit("Add", [rest, b]), rest])


def _read_floor_mod(r: Reader, op: Operation) -> None:
    names, perm = _operands(r, op)
    r.give(op.outputs[0], _floor_mod(r, *names, whole=_is_whole(r, op.inputs[0])), perm)


def _read_floor_div(r: Reader, op: Operation) -> None:
    (a, b), perm = _operands(r, op)
    if _is_whole(r, op.inputs[0]):
        name = r.emit("Div", [r.emit("Sub", [a, _floor_mod(r, a, b, whole=True)]), b])
    else:
        name = r.emit("Floor", [r.emit("Div", [a, b])])
    r.give(op.outputs[0], name, perm)


def _read_add_n(r: Reader, op: Operation) -> None:
    names, perm = _operands(r, op)
    total = names[0]
    for name in names[1:]:
        total = r.emit("Add", [total, name])
    r.give(op.outputs[0], total, perm)


def _read_zeros_like(r: Reader, op: Operation) -> None:
    i, out = op.inputs[0], op.outputs[0]
    perm = r.perm(i)
    shape = r.emit("Shape", [r.raw(i, perm)])
    tensor = r.tensor(out)
    zero = 0 if tensor.quant is None else int(tensor.quant.zero_point[0])
    r.give_raw(out, r.emit("Expand", [r.number(zero, tensor.dtype), shape]), perm)


def _read_gelu(r: Reader, op: Operation) -> None:
    perm = r.perm(op.inputs[0])
    x = r.real(op.inputs[0], perm)
    if r.options(op, "GeluOptions").approximate:
        cube = r.emit("Mul", [x, r.emit("Mul", [x, x])])
        inner = r.emit("Add", [x, r.emit("Mul", [cube, r.number(0.044715)])])
        bent = r.emit("Tanh", [r.emit("Mul", [inner, r.number(math.sqrt(2 / math.pi))])])
    else:
        bent = r.emit("Erf", [r.emit("Mul", [x, r.number(math.sqrt(0.5))])])
    half = r.emit("Mul", [x, r.number(0.5)])
    r.give(op.outputs[0], r.emit("Mul", [half, r.emit("Add", [bent, r.number(1.0)])]), perm)


def _read_atan2(r: Reader, op: Operation) -> None:
    """The angle of (x, y); a negative zero counts as zero."""
    (y, x), perm = _operands(r, op)
    zero = r.number(0.0)
    flat = r.emit("Equal", [x, zero])
    angle = r.emit("Atan", [r.emit("Div", [y, r.emit("Where", [flat, r.number(1.0), x])])])
    below = r.emit("Less", [y, zero])
    turn = r.emit("Where", [below, r.number(-math.pi), r.number(math.pi)])
    angle = r.emit("Where", [r.emit("Less", [x, zero]), r.emit("Add", [angle, turn]), angle])
    upright = r.emit("Mul", [r.emit("Sign", [y]), r.number(math.pi / 2)])
    r.give(op.outputs[0], r.emit("Where", [flat, upright, angle]), perm)


def _read_xor(r: Reader, op: Operation) -> None:
    names, perm = _operands(r, op)
    kind = "Xor" if r.tensor(op.inputs[0]).dtype == "bool" else "BitwiseXor"
    r.give(op.outputs[0], r.emit(kind, names), perm)


def _read_right_shift(r: Reader, op: Operation) -> None:
    """Arithmetic shift: the floor of a division by a power of two, as ONNX shifts unsigned integers only."""
    names, perm = _operands(r, op)
    dtype = r.tensor(op.outputs[0]).dtype
    digits = np.iinfo(dtype).bits - 1
    a, b = (r.cast(name, "int64") for name in names)
    powers = r.int64([2**n for n in range(digits + 1)])
    by = r.emit("Gather", [powers, r.clip(b, 0, digits, dtype="int64")])
    name = r.emit("Div", [r.emit("Sub", [a, r.emit("Mod", [a, by])]), by])
    r.give_raw(op.outputs[0], r.cast(name, dtype), perm)


def _read_bucketize(r: Reader, op: Operation) -> None:
    bounds = np.array(r.options(op, "BucketizeOptions").boundaries, np.float32).reshape(-1)
    i, out = op.inputs[0], op.outputs[0]
    rank = len(r.shape(i))
    x = r.real(i, layout.identity(rank))
    if r.tensor(i).dtype != "float32" and not r.is_on_grid(i):
        x = r.cast(x, "float32")
    x = r.emit("Unsqueeze", [x, r.int64([rank])])
    reached = r.cast(r.emit("GreaterOrEqual", [x, r.initializer(bounds, "bounds")]), "int32")
    r.give_raw(out, r.emit("ReduceSum", [reached, r.int64([rank])], keepdims=0), layout.identity(rank))


def _read_fake_quant(r: Reader, op: Operation) -> None:
    """Rounding to a grid of ``numBits``; the range is nudged so that zero lies on the grid, as TensorFlow does."""
    o = r.options(op, "FakeQuantOptions")
    perm = r.perm(op.inputs[0])
    if o.narrowRange:
        raise UnsupportedError("FAKE_QUANT with a narrow range cannot be read; LiteRT does not run it either")
    low, high = 0.0, float(2**o.numBits - 1)
    if not 2 <= o.numBits <= 16 or not o.min < o.max:
        raise ValueError(f"range {o.min} to {o.max} in {o.numBits} bits")
    scale = np.float32((np.float32(o.max) - np.float32(o.min)) / np.float32(high - low))
    zero = np.clip(np.floor(np.float32(low - np.float32(o.min) / scale) + 0.5), low, high)
    bottom, top = np.float32((low - zero) * scale), np.float32((high - zero) * scale)
    x = r.emit(
        "Sub", [r.clip(r.real(op.inputs[0], perm), float(bottom), float(top)), r.number(float(bottom))]
    )
    step = r.emit("Floor", [r.emit("Add", [r.emit("Mul", [x, r.number(float(1 / scale))]), r.number(0.5)])])
    name = r.emit("Add", [r.emit("Mul", [step, r.number(float(scale))]), r.number(float(bottom))])
    r.give(op.outputs[0], name, perm)


def _read_relu_0_to_1(r: Reader, op: Operation) -> None:
    perm = r.perm(op.inputs[0])
    r.give(op.outputs[0], r.clip(r.real(op.inputs[0], perm), 0.0, 1.0), perm)


def _read_bitcast(r: Reader, op: Operation) -> None:
    i, out = op.inputs[0], op.outputs[0]
    if r.tensor(i).dtype != r.tensor(out).dtype and not r.is_constant(i):
        raise UnsupportedError("BITCAST of computed numbers to another type has no ONNX counterpart")
    if r.is_constant(i):
        r.give_constant(out, r.tensor(i).constant().reshape(-1).view(r.tensor(out).dtype))
    else:
        r.give_raw(out, r.raw(i), r.perm(i))


RULES = [
    Rule(("NOT_EQUAL",), (), _read_not_equal),
    Rule(("FLOOR_MOD",), (), _read_floor_mod),
    Rule(("FLOOR_DIV",), (), _read_floor_div),
    Rule(("ADD_N",), (), _read_add_n),
    Rule(("ZEROS_LIKE",), (), _read_zeros_like),
    Rule(("GELU",), (), _read_gelu),
    Rule(("ATAN2",), (), _read_atan2),
    Rule(("BITWISE_XOR",), (), _read_xor),
    Rule(("RIGHT_SHIFT",), (), _read_right_shift),
    Rule(("BUCKETIZE",), (), _read_bucketize),
    Rule(("FAKE_QUANT",), (), _read_fake_quant),
    Rule(("RELU_0_TO_1",), (), _read_relu_0_to_1),
    Rule(("BITCAST",), (), _read_bitcast),
    *(
        Rule((f"STABLEHLO_{kind}",), (), partial(_read_plain, kind=onnx))
        for kind, onnx in (("ADD", "Add"), ("MULTIPLY", "Mul"), ("MAXIMUM", "Max"), ("MINIMUM", "Min"))
    ),
]
