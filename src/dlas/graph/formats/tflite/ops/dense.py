"""FULLY_CONNECTED, BATCH_MATMUL and SOFTMAX; Gemm, MatMul and Softmax."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.ops.convolution import (
    activation_code,
    bias_tensor,
    computed_weights,
    hybrid_weights,
    integer_weights,
)
from dlas.graph.formats.tflite.places import Constant
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation, Quant
from dlas.graph.formats.tflite.writer import Site, Writer


def _read_dense(r: Reader, op: Operation) -> None:
    o = r.options(op, "FullyConnectedOptions")
    if o.weightsFormat:
        raise UnsupportedError("FULLY_CONNECTED with shuffled weights cannot be read")
    x, w, b = (*op.inputs, -1)[:3]
    out = op.outputs[0]
    depth = r.shape(w)[1]
    shape = r.shape(x)
    rows = math.prod(shape) // depth
    if rows * depth != math.prod(shape):
        raise ValueError(f"{list(shape)} elements do not fill rows of {depth}")
    name = r.value(x, layout.identity(len(shape)))
    if len(shape) != 2 or shape[1] != depth:
        name = r.on_grid(x, r.emit("Reshape", [name, r.int64([0 if shape[0] == rows else rows, depth])]))
        if shape[0] != rows:
            r.batch_free = False
    name = r.emit("Gemm", [name, r.weights(w, (0, 1)), *r.bias(b, x, w)], transB=1)
    name = r.activate(name, o.fusedActivationFunction)
    if len(r.shape(out)) != 2:
        name = r.emit(
            "Reshape", [name, r.int64([0 if r.shape(out)[0] == rows else r.shape(out)[0], *r.shape(out)[1:]])]
        )
    r.give(out, name, layout.identity(len(r.shape(out))))


def _read_matmul(r: Reader, op: Operation) -> None:
    o = r.options(op, "BatchMatMulOptions")
    names = []
    for i, turned in zip(op.inputs, (o.adjX, o.adjY), strict=True):
        rank = len(r.shape(i))
        r.note_hybrid(i)
        name = r.real(i, layout.identity(rank))
        if turned:
            name = r.emit("Transpose", [name], perm=[*range(rank - 2), rank - 1, rank - 2])
        names.append(name)
    r.give(op.outputs[0], r.emit("MatMul", names), layout.identity(len(r.shape(op.outputs[0]))))


def _read_softmax(r: Reader, op: Operation) -> None:
    rank = len(r.shape(op.inputs[0]))
    perm = r.perm(op.inputs[0])
    name = r.real(op.inputs[0], perm)
    if op.kind == "SOFTMAX":
        beta = float(r.options(op, "SoftmaxOptions").beta)
        if beta != 1.0:
            name = r.emit("Mul", [name, r.initializer(np.array(beta, np.float32), "beta")])
    kind = "Softmax" if op.kind == "SOFTMAX" else "LogSoftmax"
    r.give(op.outputs[0], r.emit(kind, [name], axis=perm.index(rank - 1)), perm)


def _write_gemm(w: Writer, node: ir.Node) -> None:
    value, weight = w.input(node, 0), w.constant(w.input(node, 1))
    alpha, beta = float(w.attribute(node, "alpha", 1.0)), float(w.attribute(node, "beta", 1.0))
    if weight is None:
        raise computed_weights(node)
    bias = w.optional(node, 2)
    plain = alpha == 1.0 and (beta == 1.0 or bias is None) and not w.attribute(node, "transA", 0)
    if not plain or (bias is not None and _spread(w.shape(bias))):
        raise UnsupportedError(
            f"Gemm {node.name!r}: alpha and beta of 1, no transA, one bias per column are written"
        )
    turned = bool(w.attribute(node, "transB", 0))
    _dense(w, node, w.site(node, [value], fuse=True), weight, (0, 1) if turned else (1, 0))


def _spread(shape: tuple[int, ...]) -> bool:
    return len(shape) > 2 or (len(shape) == 2 and shape[0] != 1)


def _dense(w: Writer, node: ir.Node, site: Site, weight: Constant, perm: layout.Perm) -> None:
    value = w.input(node, 0)
    if site.quant is not None and not integer_weights(w, weight, site.dtype, perm[0]):
        site = w.as_float(site)
    if (
        site.quant is not None
        and weight.quant is not None
        and weight.quant.axis is not None
        and site.dtype == "uint8"
    ):
        site = w.as_float(site)
    rank = len(w.shape(value))
    x = w.argument(site, value, layout.identity(rank))
    units = weight.array.shape[perm[0]]
    bias = bias_tensor(w, node, site, units, weight, x)
    integer = site.quant is not None or hybrid_weights(w, site, value, weight, perm[0])
    weights = w.weights(weight, perm, w.name(node, 1), integer)
    options = w.file.options(
        "FullyConnectedOptions",
        keepNumDims=rank > 2,
        fusedActivationFunction=activation_code(w, site.activation),
    )
    shape = w.shape(site.result)
    made = w.add(
        "FULLY_CONNECTED", [x, weights, bias], shape, dtype=site.dtype, quant=site.quant, options=options
    )
    w.done(site, made, layout.identity(len(shape)))


def _write_matmul(w: Writer, node: ir.Node) -> None:
    left, right = w.input(node, 0), w.input(node, 1)
    weight = w.constant(right)
    if weight is not None and weight.array.ndim == 2 and len(w.shape(left)) >= 2:
        _dense(w, node, w.site(node, [left], fuse=True), weight, (1, 0))
        return
    if min(len(w.shape(left)), len(w.shape(right))) < 2:
        raise UnsupportedError(f"MatMul {node.name!r} of a vector cannot be written")
    site = w.site(node, [left, right])
    inputs = [w.argument(site, v, layout.identity(len(w.shape(v)))) for v in (left, right)]
    shape = w.shape(site.result)
    made = w.add("BATCH_MATMUL", inputs, shape, dtype=site.dtype, quant=site.quant,
                 options=w.file.options("BatchMatMulOptions"))  # fmt: skip
    w.done(site, made, layout.identity(len(shape)))


def _write_softmax(w: Writer, node: ir.Node) -> None:
    value = w.input(node, 0)
    rank = len(w.shape(value))
    axis = layout.normal_axis(w.attribute(node, "axis", -1), rank)
    perm = w.perm(value)
    if perm[-1] != axis:
        perm = (*(a for a in range(rank) if a != axis), axis)
    site = w.site(node, [value])
    logarithm = node.op_type == "LogSoftmax"
    x = w.argument(site, value, perm)
    options = w.file.options("LogSoftmaxOptions") if logarithm else w.file.options("SoftmaxOptions", beta=1.0)
    made = w.fixed_scale(
        "LOG_SOFTMAX" if logarithm else "SOFTMAX",
        [x],
        site,
        log_softmax_quant if logarithm else softmax_quant,
        options,
    )
    w.done(site, made, perm)


def softmax_quant(dtype: str) -> Quant:
    """The only output quantisation that the kernels know for results in 0..1."""
    return Quant.of(1 / 256, -128 if dtype == "int8" else 0)


def log_softmax_quant(dtype: str) -> Quant:
    """The only output quantisation of LOG_SOFTMAX, for results in -16..0."""
    return Quant.of(16 / 256, 127 if dtype == "int8" else 255)


RULES = [
    Rule(("FULLY_CONNECTED",), ("Gemm",), _read_dense, _write_gemm),
    Rule(("BATCH_MATMUL",), ("MatMul",), _read_matmul, _write_matmul),
    Rule(("SOFTMAX", "LOG_SOFTMAX"), ("Softmax", "LogSoftmax"), _read_softmax, _write_softmax),
]
