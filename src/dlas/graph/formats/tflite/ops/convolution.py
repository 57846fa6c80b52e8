"""CONV_2D, DEPTHWISE_CONV_2D and TRANSPOSE_CONV; Conv and ConvTranspose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.formats.tflite.layout import NCHW_TO_NHWC, NHWC_TO_NCHW
from dlas.graph.formats.tflite.padding import explicit_pads, same_padding, transposed_pads
from dlas.graph.formats.tflite.places import Constant
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation, Quant
from dlas.graph.formats.tflite.writer import Site, Writer

# Weights in tflite: (O, H, W, I), depthwise (1, H, W, O), transposed (O, H, W, I);
# in ONNX: (O, I, H, W), transposed (I, O, H, W).
_CONV, _DEPTHWISE, _TRANSPOSED = (0, 3, 1, 2), (3, 0, 1, 2), (3, 0, 1, 2)
HYBRID = "int8 weights with float activations are kept: LiteRT rounds the activations to int8 at run time"
_TO_CONV, _TO_DEPTHWISE, _TO_TRANSPOSED = (0, 2, 3, 1), (1, 2, 3, 0), (1, 2, 3, 0)


def _read_conv(r: Reader, op: Operation) -> None:
    depthwise = op.kind == "DEPTHWISE_CONV_2D"
    o = r.options(op, "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions")
    x, w, b = (*op.inputs, -1)[:3]
    (_, height, width, channels), kernel = r.shape(x), r.shape(w)
    strides, dilations = [o.strideH, o.strideW], [o.dilationHFactor, o.dilationWFactor]
    pads = explicit_pads(r.padding(o.padding), (height, width), kernel[1:3], strides, dilations)
    group = channels if depthwise else channels // kernel[3]
    name = r.emit(
        "Conv",
        [r.real(x, NHWC_TO_NCHW), r.weights(w, _DEPTHWISE if depthwise else _CONV), *r.bias(b, x, w)],
        kernel_shape=list(kernel[1:3]),
        strides=strides,
        dilations=dilations,
        group=group,
        pads=pads,
    )
    r.give(op.outputs[0], r.activate(name, o.fusedActivationFunction), NHWC_TO_NCHW)


def _read_transposed(r: Reader, op: Operation) -> None:
    o = r.options(op, "TransposeConvOptions")
    w, x, b = (*op.inputs[1:], -1)[:3]
    size, kernel, target = r.shape(x)[1:3], r.shape(w)[1:3], r.shape(op.outputs[0])[1:3]
    strides = [o.strideH, o.strideW]
    pads, extra = transposed_pads(r.padding(o.padding), size, kernel, strides, (1, 1), target)
    name = r.emit(
        "ConvTranspose",
        [r.real(x, NHWC_TO_NCHW), r.weights(w, _TRANSPOSED), *r.bias(b, x, w)],
        kernel_shape=list(kernel),
        strides=strides,
        pads=pads,
        output_padding=extra,
    )
    r.give(op.outputs[0], r.activate(name, o.fusedActivationFunction), NHWC_TO_NCHW)


@dataclass(frozen=True)
class Window:
    """How a kernel moves over two axes.

    Attributes:
        kernel: Height and width.
        strides: Same order.
        dilations: Same order.
        before: Pads at the top and left.
        after: Pads at the bottom and right.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]

    def padding(self, size: tuple[int, ...]) -> str:
        """``SAME`` or ``VALID`` when that is what the pads amount to, else an empty string."""
        if not any((*self.before, *self.after)):
            return "VALID"
        axes = zip(size, self.kernel, self.strides, self.dilations, strict=True)
        same = [same_padding(*axis) for axis in axes]
        return "SAME" if same == list(zip(self.before, self.after, strict=True)) else ""


def window(w: Writer, node: ir.Node, kernel: tuple[int, ...], size: tuple[int, ...]) -> Window:
    """Read the window attributes of a Conv or a pooling over an input of ``size``; one axis becomes height 1."""
    flat = len(kernel) == 1
    strides = w.attribute(node, "strides", [1] * len(kernel))
    dilations = w.attribute(node, "dilations", [1] * len(kernel))
    pads = w.attribute(node, "pads", [0] * 2 * len(kernel))
    auto = w.attribute(node, "auto_pad", "NOTSET")
    before, after = pads[: len(kernel)], pads[len(kernel) :]
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pairs = [same_padding(*axis) for axis in zip(size, kernel, strides, dilations, strict=True)]
        if auto == "SAME_LOWER":
            pairs = [(after, before) for before, after in pairs]
        before, after = [p[0] for p in pairs], [p[1] for p in pairs]
    if min(*before, *after) < 0:
        raise UnsupportedError(f"{node.op_type} {node.name!r} has negative pads {pads}")
    lists = [list(kernel), strides, dilations, before, after]
    if flat:
        lists = [[first, *values] for first, values in zip((1, 1, 1, 0, 0), lists, strict=True)]
    k, s, d, b, a = (tuple(int(v) for v in values) for values in lists)
    return Window(k, s, d, b, a)  # type: ignore[arg-type]


def image(w: Writer, site: Site, value: ir.Value) -> int:
    """The NHWC tensor of a data input; (N, C, L) becomes (N, 1, L, C)."""
    if len(w.shape(value)) == 4:
        return w.argument(site, value, NCHW_TO_NHWC)
    if len(w.shape(value)) != 3:
        raise UnsupportedError(
            f"{value.name!r} of shape {list(w.shape(value))}: one or two spatial axes are written"
        )
    n, c, length = w.shape(value)
    return w.reshape(w.argument(site, value, (0, 2, 1)), (n, 1, length, c))


def finish_image(w: Writer, site: Site, tensor: int) -> None:
    """Record an NHWC result; the inverse of :func:`image` for one spatial axis."""
    if len(w.shape(site.result)) == 4:
        w.done(site, tensor, NCHW_TO_NHWC)
    else:
        n, _, length, c = w.file.cells[tensor].shape
        w.done(site, w.reshape(tensor, (n, length, c)), (0, 2, 1))


def padded(w: Writer, tensor: int, win: Window, low: bool = False) -> int:
    """The NHWC ``tensor`` with the window's pads around it: zeros, or with ``low`` the smallest number."""
    cell = w.file.cells[tensor]
    amounts = [[0, 0], *([b, a] for b, a in zip(win.before, win.after, strict=True)), [0, 0]]
    shape = [d + sum(p) for d, p in zip(cell.shape, amounts, strict=True)]
    pads = w.ints(np.array(amounts))
    if not low:
        return w.add("PAD", [tensor, pads], shape, like=tensor, options=w.file.options("PadOptions"))
    lowest = np.iinfo(cell.dtype).min if cell.quant is not None else np.finfo(np.float32).min
    fill = w.file.constant(np.array([lowest], cell.dtype), cell.quant)
    return w.add("PADV2", [tensor, pads, fill], shape, like=tensor, options=w.file.options("PadV2Options"))


def _with_zeros(
    w: Writer, tensor: int, win: Window, size: tuple[int, ...]
) -> tuple[int, Window, tuple[int, ...]]:
    """Tensor, window and size, with the zeros of a PAD before them in the window where that makes it ``SAME``."""
    if tensor not in w.zero_padded:
        return tensor, win, size
    source, pairs = w.zero_padded[tensor]
    shape = w.file.cells[source].shape
    if len(pairs) != 4 or any(pairs[0]) or any(pairs[3]):
        return tensor, win, size
    before = (win.before[0] + pairs[1][0], win.before[1] + pairs[2][0])
    after = (win.after[0] + pairs[1][1], win.after[1] + pairs[2][1])
    whole = Window(win.kernel, win.strides, win.dilations, before, after)
    return (source, whole, shape[1:3]) if whole.padding(shape[1:3]) == "SAME" else (tensor, win, size)


def integer_weights(w: Writer, weight: Constant | None, dtype: str, channel_axis: int) -> bool:
    """Whether a weight fits the integer kernels for activations of ``dtype``."""
    if weight is None or weight.quant is None or weight.array.dtype.name != dtype:
        return False
    if dtype == "uint8":
        return weight.quant.axis is None
    return not weight.quant.zero_point.any() and weight.quant.axis in (None, channel_axis)


def hybrid_weights(w: Writer, site: Site, value: ir.Value, weight: Constant, channel_axis: int) -> bool:
    """Whether int8 weights may go into a float operator as they are: LiteRT's dynamic-range kernels.

    Not where the data come from integers: rounding those a second time, on a grid of the moment, would lose what they
    say.
    """
    held = weight.quant
    if site.quant is not None or w.quant(value) is not None or held is None:
        return False
    fits = weight.array.dtype == np.int8 and not held.zero_point.any() and held.axis in (None, channel_axis)
    if fits:
        w.note(HYBRID)
    return fits


def _per_channel(weight: Constant, axis: int) -> Constant:
    """A weight with one scale repeated for every channel: the depthwise hybrid kernel reads as many."""
    if weight.quant is None or weight.quant.axis is not None:
        return weight
    count = weight.array.shape[axis]
    quant = Quant(np.repeat(weight.quant.scale, count), np.zeros(count, np.int64), axis)
    return Constant(weight.array, quant)


def bias_tensor(w: Writer, node: ir.Node, site: Site, channels: int, weight: Constant, x: int) -> int:
    """The bias: float32, or int32 in units of input scale times weight scale; zeros when there is none."""
    value = w.optional(node, 2)
    real = np.zeros(channels, np.float32) if value is None else w.need(value).reshape(-1)
    if real.size != channels:
        real = np.broadcast_to(real, (channels,))
    if site.quant is None:
        constant = None if value is None else w.constant(value)
        if constant is not None and constant.quant is None and constant.array.dtype == np.float16:
            return w.to_real(w.file.constant(constant.array, None, node.name or ""))
        return w.numbers(real)
    data = w.file.cells[x].quant
    if data is None or weight.quant is None:
        raise ModelError(f"{node.op_type} {node.name!r}: integer bias without scales")
    scale = data.scale * weight.quant.scale
    limits = np.iinfo(np.int32)
    levels = np.clip(np.rint(real.astype(np.float64) / scale.astype(np.float64)), limits.min, limits.max)
    quant = Quant(scale, np.zeros(len(scale), np.int64), 0 if len(scale) > 1 else None)
    return w.file.constant(levels.astype(np.int32), quant)


def computed_weights(node: ir.Node) -> UnsupportedError:
    """The error for weights that are not constants."""
    return UnsupportedError(
        f"{node.op_type} {node.name!r} has weights that the network computes; tflite needs constants"
    )


def _write_conv(w: Writer, node: ir.Node) -> None:
    value, weight = w.input(node, 0), w.constant(w.input(node, 1))
    if weight is None:
        raise computed_weights(node)
    if weight.array.ndim == 3:
        axis = weight.quant.axis if weight.quant else None
        quant = weight.quant and Quant(weight.quant.scale, weight.quant.zero_point, axis)
        weight = Constant(weight.array[:, :, None, :], quant)
    kernel, group = weight.array.shape, int(w.attribute(node, "group", 1))
    channels = w.shape(value)[1]
    depthwise = group > 1 and group == channels
    site = w.site(node, [value], fuse=True)
    if site.quant is not None and not integer_weights(w, weight, site.dtype, 0):
        site = w.as_float(site)
    x = image(w, site, value)
    spatial = w.file.cells[x].shape[1:3]
    win = window(w, node, kernel[2:] if len(w.shape(value)) == 4 else kernel[3:], w.shape(value)[2:])
    x, win, spatial = _with_zeros(w, x, win, spatial)
    padding = win.padding(spatial)
    if not padding:
        x = padded(w, x, win)
        padding = "VALID"
    bias = bias_tensor(w, node, site, kernel[0], weight, x)
    hybrid = hybrid_weights(w, site, value, weight, 0)
    if hybrid and depthwise:
        weight = _per_channel(weight, 0)
    order = _TO_DEPTHWISE if depthwise else _TO_CONV
    weights = w.weights(weight, order, w.name(node, 1), hybrid or site.quant is not None)
    kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    fields = {"depthMultiplier": kernel[0] // channels} if depthwise else {}
    options = w.file.options(
        "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions",
        padding=padding_code(w, padding), strideH=win.strides[0], strideW=win.strides[1],
        dilationHFactor=win.dilations[0], dilationWFactor=win.dilations[1],
        fusedActivationFunction=activation_code(w, site.activation), **fields,
    )  # fmt: skip
    shape = _nhwc(w.shape(site.result))
    out = w.add(kind, [x, weights, bias], shape, dtype=site.dtype, quant=site.quant, options=options)
    finish_image(w, site, out)


def _nhwc(shape: tuple[int, ...]) -> tuple[int, ...]:
    n, c, *size = shape
    return (n, *([1] * (2 - len(size))), *size, c)


def activation_code(w: Writer, name: str) -> int:
    """The schema's number of a fused activation."""
    return w.code("ActivationFunctionType", name)


def padding_code(w: Writer, name: str) -> int:
    """The schema's number of a padding."""
    return w.code("Padding", name)


def _write_transposed(w: Writer, node: ir.Node) -> None:
    value, weight = w.input(node, 0), w.constant(w.input(node, 1))
    if weight is None:
        raise computed_weights(node)
    if (
        weight.array.ndim != 4
        or w.attribute(node, "group", 1) != 1
        or max(w.attribute(node, "dilations", [1])) > 1
    ):
        raise UnsupportedError(f"ConvTranspose {node.name!r}: one group, two axes, no dilation are written")
    site = w.site(node, [value], fuse=True)
    if site.quant is not None and not integer_weights(w, weight, site.dtype, 1):
        site = w.as_float(site)
    x = w.argument(site, value, NCHW_TO_NHWC)
    kernel, strides = weight.array.shape[2:], w.attribute(node, "strides", [1, 1])
    size, out = w.shape(value)[2:], w.shape(site.result)
    begins = _transposed_begins(w, node, size, kernel, strides, out[2:])
    natural = [(n - 1) * s + k for n, s, k in zip(size, strides, kernel, strict=True)]
    same = [
        (max(n - o, 0) // 2, o == i * s) for n, o, i, s in zip(natural, out[2:], size, strides, strict=True)
    ]
    as_same = all(exact and begin == b for (begin, exact), b in zip(same, begins, strict=True))
    written = out[2:] if as_same else tuple(natural)
    if any(o + b > n for o, b, n in zip(out[2:], begins, written, strict=True)) and not as_same:
        raise UnsupportedError(f"ConvTranspose {node.name!r} pads its output beyond what it computes")
    bias = bias_tensor(w, node, site, weight.array.shape[1], weight, x)
    weights = w.weights(weight, _TO_TRANSPOSED, w.name(node, 1), site.quant is not None)
    shape = (out[0], *written, out[1])
    options = w.file.options(
        "TransposeConvOptions", padding=padding_code(w, "SAME" if as_same else "VALID"),
        strideH=strides[0], strideW=strides[1], fusedActivationFunction=activation_code(w, site.activation),
    )  # fmt: skip
    made = w.add("TRANSPOSE_CONV", [w.ints(shape), weights, x, bias], shape, dtype=site.dtype, quant=site.quant,
                 options=options)  # fmt: skip
    if tuple(written) != tuple(out[2:]):
        final = _nhwc(out)
        made = w.add("SLICE", [made, w.ints([0, *begins, 0]), w.ints(final)], final, like=made,
                     options=w.file.options("SliceOptions"))  # fmt: skip
    w.done(site, made, NCHW_TO_NHWC)


def _transposed_begins(w: Writer, node: ir.Node, size: Any, kernel: Any, strides: Any, out: Any) -> list[int]:
    auto = w.attribute(node, "auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID") and w.attribute(node, "output_shape") is None:
        return [int(p) for p in w.attribute(node, "pads", [0, 0, 0, 0])[:2]]
    totals = [max((n - 1) * s + k - o, 0) for n, s, k, o in zip(size, strides, kernel, out, strict=True)]
    return [total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals]


RULES = [
    Rule(("CONV_2D", "DEPTHWISE_CONV_2D"), ("Conv",), _read_conv, _write_conv),
    Rule(("TRANSPOSE_CONV",), ("ConvTranspose",), _read_transposed, _write_transposed),
]
