"""Reading of convolutions over depth, height and width: CONV_3D and CONV_3D_TRANSPOSE."""

from __future__ import annotations

from dlas.graph.formats.tflite.layout import Perm
from dlas.graph.formats.tflite.padding import explicit_pads, transposed_pads
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
    pads = explicit_pads(r.padding(o.padding), size, kernel, strides, dilations)
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
    size, target = r.shape(x)[1:4], r.shape(op.outputs[0])[1:4]
    pads, extra = transposed_pads(r.padding(o.padding), size, kernel, strides, dilations, target)
    name = r.emit(
        "ConvTranspose",
        [r.real(x, NDHWC_TO_NCDHW), r.weights(w, _KERNEL), *r.bias(b, x, w)],
        kernel_shape=list(kernel),
        strides=strides,
        dilations=dilations,
        pads=pads,
        output_padding=extra,
    )
    r.give(op.outputs[0], r.activate(name, o.fusedActivationFunction), NDHWC_TO_NCDHW)


RULES = [
    Rule(("CONV_3D",), (), _read_conv),
    Rule(("CONV_3D_TRANSPOSE",), (), _read_transposed),
]
