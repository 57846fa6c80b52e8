"""AVERAGE_POOL_2D, MAX_POOL_2D and MEAN over an image; the pooling operators of ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite.layout import NCHW_TO_NHWC, NHWC_TO_NCHW
from dlas.graph.formats.tflite.ops.convolution import (
    Window,
    finish_image,
    image,
    padded,
    padding_code,
    window,
)
from dlas.graph.formats.tflite.padding import explicit_pads
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation
from dlas.graph.formats.tflite.writer import Writer


def _read_pool(r: Reader, op: Operation) -> None:
    o = r.options(op, "Pool2DOptions")
    window = pool_window(r, o, r.shape(op.inputs[0])[1:3])
    kind = "MaxPool" if op.kind == "MAX_POOL_2D" else "AveragePool"
    name = r.emit(kind, [r.real(op.inputs[0], NHWC_TO_NCHW)], attributes=window)
    r.give(op.outputs[0], r.activate(name, o.fusedActivationFunction), NHWC_TO_NCHW)


def pool_window(r: Reader, o: Any, size: Sequence[int]) -> dict[str, list[int]]:
    """ONNX attributes of a window over an image of ``size``, from a ``Pool2DOptions`` table."""
    kernel, strides = [o.filterHeight, o.filterWidth], [o.strideH, o.strideW]
    pads = explicit_pads(r.padding(o.padding), size, kernel, strides, (1, 1))
    return {"kernel_shape": kernel, "strides": strides, "pads": pads}


def _write_pool(w: Writer, node: ir.Node) -> None:
    if len(node.outputs) > 1 and list(node.outputs[1].uses()):
        raise UnsupportedError(f"{node.op_type} {node.name!r}: the indices output cannot be written")
    largest = node.op_type == "MaxPool"
    value = w.input(node, 0)
    # The kernels demand equal quantisation of input and output; a different one follows as a QUANTIZE.
    site = w.site(node, [value], exact=largest)
    wanted, held = site.quant, w.quant(value)
    x = image(w, site, value)
    size = w.file.cells[x].shape[1:3]
    kernel = tuple(w.attribute(node, "kernel_shape"))
    win = _with_ceil(w, node, window(w, node, kernel, w.shape(value)[2:]), size)
    if max(win.dilations) > 1:
        raise UnsupportedError(f"{node.op_type} {node.name!r} is dilated; tflite pooling is not")
    padding, correction = win.padding(size), None
    counted = not largest and w.attribute(node, "count_include_pad", 0)
    if not padding or (counted and padding == "SAME"):
        if not largest and not counted:
            if site.quant is not None:
                site = w.as_float(site)
                x, wanted = w.to_real(x), None
            correction = _counts(win, size)
        x, padding = padded(w, x, win, low=largest), "VALID"
    options = w.file.options(
        "Pool2DOptions", padding=padding_code(w, padding), strideH=win.strides[0], strideW=win.strides[1],
        filterHeight=win.kernel[0], filterWidth=win.kernel[1], fusedActivationFunction=0,
    )  # fmt: skip
    n, c, *out = w.shape(site.result)
    shape = (n, *([1] * (2 - len(out))), *out, c)
    kind = "MAX_POOL_2D" if largest else "AVERAGE_POOL_2D"
    made = w.add(kind, [x], shape, like=x, options=options)
    if correction is not None:
        made = w.add("MUL", [made, w.numbers(correction)], shape, options=w.file.options("MulOptions"))
    if wanted is not None and not wanted.same(held):
        made = w.requantize(made, wanted, site.dtype)
    finish_image(w, site, made)


def _with_ceil(w: Writer, node: ir.Node, win: Window, size: tuple[int, ...]) -> Window:
    """The window with the extra pads at the end that rounding up asks for."""
    if not w.attribute(node, "ceil_mode", 0):
        return win
    after = []
    for n, k, s, b, a in zip(size, win.kernel, win.strides, win.before, win.after, strict=True):
        steps = -(-(n + b + a - k) // s)
        if steps * s >= n + b:  # a window that would start in the padding is left out
            steps -= 1
        after.append(max(steps * s + k - n - b, 0))
    return Window(win.kernel, win.strides, win.dilations, win.before, (after[0], after[1]))


def _counts(win: Window, size: tuple[int, ...]) -> np.ndarray:
    """(1, H, W, 1): window elements over those inside the image, for averages that leave the pads out."""
    axes = []
    for n, k, s, b, a in zip(size, win.kernel, win.strides, win.before, win.after, strict=True):
        starts = np.arange(0, n + b + a - k + 1, s) - b
        axes.append(np.minimum(starts + k, n) - np.maximum(starts, 0))
    inside = axes[0][:, None] * axes[1][None, :]
    return (win.kernel[0] * win.kernel[1] / inside)[None, :, :, None].astype(np.float32)


def _write_global(w: Writer, node: ir.Node) -> None:
    value = w.input(node, 0)
    largest = node.op_type == "GlobalMaxPool"
    site = w.site(node, [value], exact=largest)
    x = w.argument(site, value, NCHW_TO_NHWC) if len(w.shape(value)) == 4 else image(w, site, value)
    n, c = w.shape(value)[:2]
    quant = w.file.cells[x].quant if largest else site.quant
    made = w.add(
        "REDUCE_MAX" if largest else "MEAN", [x, w.ints([1, 2])], (n, 1, 1, c), dtype=site.dtype, quant=quant,
        options=w.file.options("ReducerOptions", keepDims=True),
    )  # fmt: skip
    finish_image(w, site, w.on_grid(site, made))


RULES = [
    Rule(("AVERAGE_POOL_2D", "MAX_POOL_2D"), ("AveragePool", "MaxPool"), _read_pool, _write_pool),
    Rule((), ("GlobalAveragePool", "GlobalMaxPool"), None, _write_global),
]
