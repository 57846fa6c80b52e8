"""Arithmetic and activations."""

from __future__ import annotations

import math
import operator
from typing import Any

import onnx_ir as ir
import torch
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_trace.table import Call, Traced, function, need


def _binary(kind: str, *targets: Any) -> None:
    def build(call: Call, input: Any, other: Any) -> ir.Value:
        operands = []
        for operand in (input, other):
            if isinstance(operand, Traced):
                need(operand.dtype == call.result[0].dtype, f"{kind} of different dtypes")
                operands.append(operand)
            else:
                operands.append(call.number(operand))
        return call.emit(kind, *operands)

    function(*targets)(build)


_binary("Add", operator.add, operator.iadd, torch.add, "add", "add_")
_binary("Sub", operator.sub, operator.isub, torch.sub, "sub", "sub_")
_binary("Mul", operator.mul, operator.imul, torch.mul, "mul", "mul_")
_binary("Div", operator.truediv, operator.itruediv, torch.div, "div", "div_")
_binary("Pow", operator.pow, torch.pow, "pow")
_binary("Max", torch.maximum, "maximum")
_binary("Min", torch.minimum, "minimum")


def _unary(kind: str, *targets: Any) -> None:
    def build(call: Call, input: Traced, inplace: bool = False) -> ir.Value:
        del inplace
        need(input.dtype == call.result[0].dtype, f"{kind} of {input.dtype}")
        return call.emit(kind, input)

    function(*targets)(build)


_unary("Relu", F.relu, torch.relu, torch.relu_, "relu", "relu_")
_unary("Sigmoid", torch.sigmoid, F.sigmoid, "sigmoid")
_unary("Tanh", torch.tanh, F.tanh, "tanh")
_unary("HardSwish", F.hardswish)
_unary("Mish", F.mish)
_unary("Softsign", F.softsign)
_unary("Neg", operator.neg, torch.neg, "neg")
_unary("Abs", torch.abs, "abs")
_unary("Exp", torch.exp, "exp")
_unary("Log", torch.log, "log")
_unary("Sqrt", torch.sqrt, "sqrt")


@function(F.relu6)
def _relu6(call: Call, input: Traced, inplace: bool = False) -> ir.Value:
    return _hardtanh(call, input, 0.0, 6.0, inplace)


@function(F.hardtanh)
def _hardtanh(
    call: Call, input: Traced, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> ir.Value:
    del inplace
    return _clamp(call, input, min_val, max_val)


@function(torch.clamp, torch.clip, "clamp", "clip")
def _clamp(call: Call, input: Traced, min: float | None = None, max: float | None = None) -> ir.Value:
    need(input.dtype == call.result[0].dtype, "a limit of another dtype")
    limits = [None if limit is None else call.number(limit) for limit in (min, max)]
    return call.emit("Clip", input, *(limits if max is not None else limits[:1]))


@function(F.silu)
def _silu(call: Call, input: Traced, inplace: bool = False) -> ir.Value:
    del inplace
    return call.emit("Mul", input, call.emit("Sigmoid", input))


@function(F.hardsigmoid)
def _hardsigmoid(call: Call, input: Traced, inplace: bool = False) -> ir.Value:
    del inplace
    return call.emit("HardSigmoid", input, alpha=1 / 6, beta=0.5)


@function(F.leaky_relu)
def _leaky_relu(call: Call, input: Traced, negative_slope: float = 0.01, inplace: bool = False) -> ir.Value:
    del inplace
    return call.emit("LeakyRelu", input, alpha=float(negative_slope))


@function(F.softplus)
def _softplus(call: Call, input: Traced, beta: float = 1.0, threshold: float = 20.0) -> ir.Value:
    # Beyond the threshold torch takes the input itself, which float32 hardly tells from the logarithm.
    need(beta == 1 and threshold >= 20, "another softplus")
    return call.emit("Softplus", input)


@function(F.elu)
def _elu(call: Call, input: Traced, alpha: float = 1.0, inplace: bool = False) -> ir.Value:
    del inplace
    return call.emit("Elu", input, alpha=float(alpha))


@function(torch.prelu)
def _prelu(call: Call, input: Traced, weight: Traced) -> ir.Value:
    # One slope per channel would have to be given another shape, and then it is no longer the module's tensor.
    need(tuple(weight.runs[0].shape) == (1,) or input.rank == 2, "one slope per channel")
    return call.emit("PRelu", input, weight)


@function(F.gelu)
def _gelu(call: Call, input: Traced, approximate: str = "none") -> ir.Value:
    need(approximate == "none", f"the {approximate} approximation of gelu")
    error = call.emit("Erf", call.emit("Div", input, call.number(math.sqrt(2))))
    half = call.emit("Mul", call.number(0.5), call.emit("Add", error, call.number(1)))
    return call.emit("Mul", input, half)


@function(F.softmax, torch.softmax, "softmax")
def _softmax(
    call: Call, input: Traced, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> ir.Value:
    return _over_axis("Softmax", call, input, dim, dtype)


@function(F.log_softmax, torch.log_softmax, "log_softmax")
def _log_softmax(
    call: Call, input: Traced, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> ir.Value:
    return _over_axis("LogSoftmax", call, input, dim, dtype)


def _over_axis(kind: str, call: Call, input: Traced, dim: int | None, dtype: Any) -> ir.Value:
    need(dim is not None and dtype is None, f"{kind} without an axis or of another dtype")
    return call.emit(kind, input, axis=dim)
