"""Reading of convolutions over depth, height and width: CONV_3D and CONV_3D_TRANSPOSE."""

from __future__ import annotations

from dlas.graph.formats.tflite.layout import Perm, same_padding
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation

NDHWC_TO_NCDHW: Perm = (0, 4, 1, 2, 3)
# Kernels in tflite: (D, H, W, I, O), transposed (D, H, W, O, I); in ONNX (O, I, D, H, W), transposed (I, O, D, H, W).
_KERNEL: Perm = (4, 3, 0, 1, 2)


def _read_conv(r: Reader, op: Operation) -> None:
    o = r.options(op, "Conv3DOptions")
    x, w, b = (*op.inputs, -1)[:3]
    size, kernel = r.shape(x)[1:4], r.shape(w)[:3]
    strides = [o.strideD, o.strideH, o.strideW]
    dilations = [o.dilationDFactor, o.dilationHFactor, o.dilationWFactor]
    if min(*strides, *dilations) < 1:
        raise ValueError(f"strides {strides}, dilations {dilations}")
    pads = [0] * 6
    if r.padding(o.padding) == "SAME":
        pairs = [same_padding(*axis) for axis in zip(size, kernel, strides, dilations, strict=True)]
        pads = [before for before, _ in pairs] + [after for _, after in pairs]
    name = r.emit(
        "Conv",
        [r.real(x, NDHWC_TO_NCDHW), r.weights(w, _KERNEL), *r.bias(b, x, w)],
        kernel_shape=list(kernel),
        strides=strides,
        dilations=dilations,
        group=r.shape(x)[4] // r.shape(w)[3],
        pads=pads,
    )
    r.give(op.outputs[0], r.activate(name, o.fusedActivationFunction), NDHWC_TO_NCDHW)


def _read_transposed(r: Reader, op: Operation) -> None:
    o = r.options(op, "Conv3DOptions")
    w, x, b = (*op.inputs[1:], -1)[:3]
    kernel, strides = r.shape(w)[:3], [o.strideD, o.strideH, o.strideW]
    dilations = [o.dilationDFactor, o.dilationHFactor, o.dilationWFactor]
    if min(*strides, *dilations) < 1:
        raise ValueError(f"strides {strides}, dilations {dilations}")
    begins, ends, extra = [], [], []
    sizes = zip(r.shape(x)[1:4], kernel, strides, dilations, r.shape(op.outputs[0])[1:4], strict=True)
    for n, k, s, d, target in sizes:
        total = (n - 1) * s + (k - 1) * d + 1 - target
        begin = max(total, 0) // 2 if r.padding(o.padding) == "SAME" else 0
        begins.append(begin)
        ends.append(max(total - begin, 0))
        extra.append(max(begin - total, 0))
    name = r.emit(
        "ConvTranspose",
        [r.real(x, NDHWC_TO_NCDHW), r.weights(w, _KERNEL), *r.bias(b, x, w)],
        kernel_shape=list(kernel),
        strides=strides,
        dilations=dilations,
        pads=[*begins, *ends],
        output_padding=extra,
    )
    r.give(op.outputs[0], r.activate(name, o.fusedActivationFunction), NDHWC_TO_NCDHW)


RULES = [
    Rule(("CONV_3D",), (), _read_conv),
    Rule(("CONV_3D_TRANSPOSE",), (), _read_transposed),
]
