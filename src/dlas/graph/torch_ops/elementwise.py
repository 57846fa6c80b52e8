"""Operators that work element by element."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from dlas.graph.torch_ops.table import Call, Node, op, torch_dtype

_SIMPLE: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Add": torch.add,
    "And": torch.logical_and,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseNot": torch.bitwise_not,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tan": torch.tan,
    "Where": torch.where,
    "Xor": torch.logical_xor,
}


@op(*_SIMPLE)
def _simple(node: Node) -> Call:
    return _SIMPLE[node.kind]


@op("Identity")
def _identity(node: Node) -> Call:
    return lambda x: x


@op("Div")
def _div(node: Node) -> Call:
    declared = node.dtype(0)

    def call(a: Tensor, b: Tensor) -> Tensor:
        whole = declared.is_integer() if declared is not None else not a.is_floating_point()
        return torch.div(a, b, rounding_mode="trunc" if whole else None)

    return call


@op("Mod")
def _mod(node: Node) -> Call:
    return torch.fmod if node.attr("fmod", 0) else torch.remainder


@op("Pow")
def _pow(node: Node) -> Call:
    return lambda a, b: torch.pow(a, b).to(a.dtype)


@op("BitShift")
def _bit_shift(node: Node) -> Call:
    left = node.attr("direction") == "LEFT"

    def call(x: Tensor, by: Tensor) -> Tensor:
        return torch.bitwise_left_shift(x, by) if left else torch.bitwise_right_shift(x, by)

    return call


@op("IsInf")
def _is_inf(node: Node) -> Call:
    up, down = node.attr("detect_positive", 1), node.attr("detect_negative", 1)

    def call(x: Tensor) -> Tensor:
        return torch.isinf(x) & (((x > 0) & bool(up)) | ((x < 0) & bool(down)))

    return call


@op("Min", "Max", "Sum", "Mean")
def _variadic(node: Node) -> Call:
    pair = {"Min": torch.minimum, "Max": torch.maximum}.get(node.kind, torch.add)
    count = len(node.ir.inputs) if node.kind == "Mean" else 1
    return lambda *args: reduce(pair, args) / count if count > 1 else reduce(pair, args)


@op("Clip")
def _clip(node: Node) -> Call:
    low, high = node.number(1, "min", None), node.number(2, "max", None)

    def call(*args: Any) -> Tensor:
        x, least, most = args[0], low(args), high(args)
        if isinstance(least, Tensor) or isinstance(most, Tensor):  # torch takes two tensors or two numbers
            x = x if least is None else torch.maximum(x, torch.as_tensor(least, dtype=x.dtype))
            return x if most is None else torch.minimum(x, torch.as_tensor(most, dtype=x.dtype))
        return x if least is None and most is None else torch.clamp(x, least, most)

    return call


@op("Cast")
def _cast(node: Node) -> Call:
    dtype = torch_dtype(node, node.attr("to"))
    return lambda x: x.to(dtype)


@op("CastLike")
def _cast_like(node: Node) -> Call:
    declared = node.dtype(1)
    if declared is None:
        return lambda x, other: x.to(other.dtype)
    dtype = torch_dtype(node, declared)
    return lambda x, _=None: x.to(dtype)


@op("BitCast")
def _bit_cast(node: Node) -> Call:
    dtype = torch_dtype(node, node.attr("to"))
    return lambda x: x.contiguous().view(dtype)
