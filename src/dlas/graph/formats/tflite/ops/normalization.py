"""Reading of operators that scale a number by its neighbours: L2_NORMALIZATION, L2_POOL_2D and LRN."""

from __future__ import annotations

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite.layout import NHWC_TO_NCHW
from dlas.graph.formats.tflite.ops.pooling import pool_window
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation

_LEAST_NORM = 1e-6  # LiteRT's kernels divide by at least this


def _read_l2_normalization(r: Reader, op: Operation) -> None:
    i, out = op.inputs[0], op.outputs[0]
    perm = r.perm(i)
    axis = perm.index(len(perm) - 1)
    x = r.real(i, perm)
    norm = r.emit("ReduceL2", [x, r.int64([axis])], keepdims=1)
    name = r.emit("Div", [x, r.emit("Max", [norm, r.number(_LEAST_NORM)])])
    r.give(out, r.activate(name, r.options(op, "L2NormOptions").fusedActivationFunction), perm)


def _read_l2_pool(r: Reader, op: Operation) -> None:
    o = r.options(op, "Pool2DOptions")
    x = r.real(op.inputs[0], NHWC_TO_NCHW)
    window = pool_window(r, o, r.shape(op.inputs[0])[1:3])
    mean = r.emit("AveragePool", [r.emit("Mul", [x, x])], attributes=window)
    r.give(op.outputs[0], r.activate(r.emit("Sqrt", [mean]), o.fusedActivationFunction), NHWC_TO_NCHW)


def _read_lrn(r: Reader, op: Operation) -> None:
    o = r.options(op, "LocalResponseNormalizationOptions")
    size = 2 * o.radius + 1
    if o.radius < 0:
        raise ValueError(f"radius {o.radius}")
    if o.alpha <= 0 or o.beta <= 0:  # runtimes refuse what ONNX leaves open
        raise UnsupportedError(
            f"{op.kind} with alpha {o.alpha:g} and beta {o.beta:g}: positive numbers are read"
        )
    # ONNX divides alpha by the size of the neighbourhood, tflite does not.
    name = r.emit(
        "LRN", [r.real(op.inputs[0], NHWC_TO_NCHW)], alpha=o.alpha * size, beta=o.beta, bias=o.bias, size=size
    )
    r.give(op.outputs[0], name, NHWC_TO_NCHW)


RULES = [
    Rule(("L2_NORMALIZATION",), (), _read_l2_normalization),
    Rule(("L2_POOL_2D",), (), _read_l2_pool),
    Rule(("LOCAL_RESPONSE_NORMALIZATION",), (), _read_lrn),
]
