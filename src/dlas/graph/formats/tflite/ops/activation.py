"""Bends of the number line with a bound or a slope: the RELUs, LEAKY_RELU, PRELU; Clip, HardSigmoid and Gelu."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from dlas.graph.formats.tflite.ops.elementwise import aligned, read_unary
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation, Quant
from dlas.graph.formats.tflite.writer import Writer


def _read_clip(r: Reader, op: Operation, low: float, high: float) -> None:
    perm = r.perm(op.inputs[0])
    bounds = [r.initializer(np.array(b, np.float32), "bound") for b in (low, high)]
    r.give(op.outputs[0], r.emit("Clip", [r.real(op.inputs[0], perm), *bounds]), perm)


def _read_leaky(r: Reader, op: Operation) -> None:
    perm = r.perm(op.inputs[0])
    alpha = float(r.options(op, "LeakyReluOptions").alpha)
    r.give(op.outputs[0], r.emit("LeakyRelu", [r.real(op.inputs[0], perm)], alpha=alpha), perm)


def _read_prelu(r: Reader, op: Operation) -> None:
    rank = len(r.shape(op.outputs[0]))
    perm = r.perm(op.inputs[0])
    r.give(
        op.outputs[0],
        r.emit("PRelu", [r.real(op.inputs[0], perm), aligned(r, op.inputs[1], rank, perm)]),
        perm,
    )


def _write_relu(w: Writer, node: ir.Node) -> None:
    value = w.input(node, 0)
    kind = {"RELU": "RELU", "RELU6": "RELU6", "RELU_N1_TO_1": "RELU_N1_TO_1"}.get(w.activation(node))
    site = w.site(node, [value], exact=kind is not None)
    x = w.argument(site, value)
    shape = w.file.cells[x].shape
    if kind is not None:
        made = w.add(kind, [x], shape, dtype=site.dtype, quant=site.quant)
    else:
        made = x
        grid = w.file.cells[x].quant if site.quant is not None else None
        for op, bound in (("MAXIMUM", w.bound(node, "min", 1)), ("MINIMUM", w.bound(node, "max", 2))):
            if bound is not None:
                table = w.file.options("MaximumMinimumOptions")
                made = w.add(op, [made, _bound(w, bound, grid, site.dtype)], shape, like=x, options=table)
        made = w.on_grid(site, made)
    w.done(site, made, w.perm(value))


def _bound(w: Writer, number: float, grid: Quant | None, dtype: str) -> int:
    """A limit as a constant: the kernels compare stored integers, so it must be on the grid of what it limits."""
    array = np.array(number)
    return w.file.constant(array.astype(dtype) if grid is None else grid.store(array, dtype), grid)


def _write_leaky(w: Writer, node: ir.Node) -> None:
    value = w.input(node, 0)
    site = w.site(node, [value])
    x = w.argument(site, value)
    table = w.file.options("LeakyReluOptions", alpha=float(w.attribute(node, "alpha", 0.01)))
    made = w.add("LEAKY_RELU", [x], w.file.cells[x].shape, dtype=site.dtype, quant=site.quant, options=table)
    w.done(site, made, w.perm(value))


def _write_hard_sigmoid(w: Writer, node: ir.Node) -> None:
    value = w.input(node, 0)
    site = w.site(node, [])
    x = w.real(value)
    shape = w.file.cells[x].shape
    steps = [
        ("MUL", w.attribute(node, "alpha", 0.2), "MulOptions"),
        ("ADD", w.attribute(node, "beta", 0.5), "AddOptions"),
        ("MAXIMUM", 0.0, "MaximumMinimumOptions"),
        ("MINIMUM", 1.0, "MaximumMinimumOptions"),
    ]
    for kind, number, table in steps:
        x = w.add(kind, [x, w.numbers(np.array(number))], shape, options=w.file.options(table))
    w.done(site, x, w.perm(value))


def _write_gelu(w: Writer, node: ir.Node) -> None:
    value = w.input(node, 0)
    site = w.site(node, [value])
    x = w.argument(site, value)
    table = w.file.options("GeluOptions", approximate=w.attribute(node, "approximate", "none") == "tanh")
    made = w.add("GELU", [x], w.file.cells[x].shape, dtype=site.dtype, quant=site.quant, options=table)
    w.done(site, made, w.perm(value))


def _write_prelu(w: Writer, node: ir.Node) -> None:
    value, slope = w.input(node, 0), w.input(node, 1)
    site = w.site(node, [value])
    perm = w.perm(value)
    rank = len(w.shape(value))
    alpha = w.need(slope)
    alpha = alpha.reshape((1,) * (rank - alpha.ndim) + alpha.shape).transpose(perm)
    if len(alpha) == 1:
        alpha = alpha[0]  # the kernel's alpha has no batch axis
    x = w.argument(site, value)
    slopes = w.numbers(alpha) if site.quant is None else _integer_slopes(w, slope, alpha, site.dtype)
    made = w.add("PRELU", [x, slopes], w.file.cells[x].shape, dtype=site.dtype, quant=site.quant)
    w.done(site, made, perm)


def _integer_slopes(w: Writer, value: ir.Value, alpha: np.ndarray, dtype: str) -> int:
    """Slopes on the grid that the network states, or on a symmetric one of their own."""
    found = w.constant(value)
    if found is not None and found.quant is not None and found.quant.axis is None:
        quant = found.quant
        if found.array.dtype.name == dtype:
            return w.file.constant(quant.store(alpha, dtype), quant, value.name or "")
    peak = float(np.abs(alpha).max(initial=0.0)) or 1.0
    quant = Quant.of(peak / 127, 128 if dtype == "uint8" else 0)
    w.note(f"the slopes {value.name!r} of a PRelu are rounded to 8 bits")
    return w.file.constant(quant.store(alpha, dtype), quant, value.name or "")


RULES = [
    Rule(("RELU",), ("Relu", "Clip"), partial(read_unary, kind="Relu"), _write_relu),
    Rule(("RELU6",), (), partial(_read_clip, low=0.0, high=6.0)),
    Rule(("RELU_N1_TO_1",), (), partial(_read_clip, low=-1.0, high=1.0)),
    Rule(("LEAKY_RELU",), ("LeakyRelu",), _read_leaky, _write_leaky),
    Rule(("PRELU",), ("PRelu",), _read_prelu, _write_prelu),
    Rule((), ("HardSigmoid",), None, _write_hard_sigmoid),
    Rule((), ("Gelu",), None, _write_gelu),
]
