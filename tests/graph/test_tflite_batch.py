"""A batch axis that a tflite file leaves open: rows together give what they give one by one, or the axis is closed."""

from __future__ import annotations

import numpy as np
import pytest
import test_tflite_ops as ops
import test_tflite_recurrent as recurrent
from tflite_maker import File, run_onnx, sqnr

from dlas.graph.formats.tflite import from_bytes

I32 = np.int32
SAFE = {
    "softmax": ops.unary("SOFTMAX", "Softmax", (1, 4, 5, 3), beta=1.0),
    "gelu": ops.unary("GELU", "Gelu", (1, 4, 5, 3)),
    "l2": ops.unary("L2_NORMALIZATION", "L2Norm", (1, 4, 5, 3)),
    "lrn": ops.unary("LOCAL_RESPONSE_NORMALIZATION", "LocalResponseNormalization", (1, 4, 5, 3), radius=1, alpha=1.0,
                     beta=0.5, bias=1.0),
    "zeros": ops.unary("ZEROS_LIKE", "ZerosLike", (1, 4)),
    "bucketize": ops.unary("BUCKETIZE", "Bucketize", (1, 7), out="int32", boundaries=np.array([0, 1], np.float32)),
    "mirror": ops.moved("MIRROR_PAD", (1, 4, 3), [np.array([[0, 0], [3, 1], [1, 2]], I32)], (1, 8, 6), "MirrorPad",
                        mode=1),
    "tile": ops.moved("TILE", (1, 3, 4), [ops.i32(1, 2, 3)], (1, 6, 12), "Tile"),
    "diag": ops.moved("MATRIX_DIAG", (1, 4), [], (1, 4, 4), "MatrixDiag"),
    "to batch and back": None,
    "sum": ops.reduced("SUM", (1, 2), shape=(1, 4, 5)),
    "mean": ops.reduced("MEAN", (1, 2), shape=(1, 4, 5, 3)),
    "strided": ops.strided((1, 6, 4), (0, 5, 1), (1, 0, 2), (1, -2, 1), (1, 3), beginMask=1, endMask=1,
                           shrinkAxisMask=4),
    "reverse": ops.moved("REVERSE_V2", (1, 3, 4), [ops.i32(1)], (1, 3, 4), "ReverseV2"),
    "nearest": ops.resize("ResizeNearestNeighbor", (13, 11), False, True),
    "bilinear": ops.resize("ResizeBilinear", (13, 11), False, True),
    "bilinear corners": ops.resize("ResizeBilinear", (13, 11), True, False),
    "spectrum": ops.spectrum("COMPLEX_ABS", (1, 1, 64), (1, 64)),
    "lstm": recurrent.sequence(batch=1),
    "lstm projected": recurrent.sequence(batch=1, projection=True, outputs=3),
    "cumsum": ops.moved("CUMSUM", (1, 5), [np.array(1, I32)], (1, 5), "Cumsum"),
    "cumsum of rows": ops.moved("CUMSUM", (1, 5), [np.array(0, I32)], (1, 5), "Cumsum"),
    "pad rows": ops.moved("REVERSE_V2", (1, 5), [ops.i32(0)], (1, 5), "ReverseV2"),
    "top k": ops.top_k((1, 9), 3),
    "matmul": ops.matmul((1, 3, 4), (1, 4, 5), (1, 3, 5)),
    "fill": lambda f: f.add("MUL", [f.input((1, 3)), filled(f)], [f.output((1, 3))], f.options("Mul")),
}  # fmt: skip
CLOSED = {"cumsum of rows", "pad rows", "bilinear corners", "fill"}


def filled(f: File) -> int:
    made = f.tensor((1, 3))
    f.add("FILL", [f.ints(1, 3), f.constant(np.float32(2))], [made])
    return made


def to_batch_and_back(f: File) -> None:
    pads = np.array([[1, 1], [0, 3]], I32)
    many = f.tensor((6, 3, 3, 2))
    f.add("SPACE_TO_BATCH_ND", [f.input((1, 4, 6, 2)), f.ints(2, 3), f.constant(pads)], [many])
    f.add("BATCH_TO_SPACE_ND", [many, f.ints(2, 3), f.constant(pads)], [f.output((1, 4, 6, 2))])


SAFE["to batch and back"] = to_batch_and_back


@pytest.mark.parametrize("name", SAFE)
def test_rows_together_are_rows_alone(name: str) -> None:
    f = File(9)
    SAFE[name](f)
    for i in (*f.inputs, *f.outputs):
        f.tensors[i].shapeSignature = np.array([-1, *f.tensors[i].shape[1:]], np.int32)
    model = from_bytes(f.bytes(), "net")
    assert model.inputs[0].is_dynamic == (name not in CLOSED)
    if name in CLOSED:
        return
    rng = np.random.default_rng(2)
    feeds = [rng.standard_normal((3, *f.tensors[i].shape[1:])).astype(np.float32) for i in f.inputs]
    together = run_onnx(model, feeds)
    for n in range(3):
        alone = run_onnx(model, [x[n : n + 1] for x in feeds])
        for a, b in zip(alone, together, strict=True):
            assert b.shape[0] == 3
            assert sqnr(a, b[n : n + 1]) > 120
