"""A Pad of zeros around an image goes into the convolutions that read it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.compress.quantize.int8 import Int8
from dlas.data.dataset import Dataset
from dlas.graph import passes
from dlas.graph.model import Model
from dlas.graph.padding import fold_padding
from dlas.graph.reference import predict

RNG = np.random.default_rng(5)
X = RNG.standard_normal((8, 2, 7, 6)).astype(np.float32)


def network(amounts: list[int], readers: int = 1, fill: float | None = 0.0, **changes: object) -> Model:
    """Pad, then ``readers`` convolutions, added up where there are two."""
    extra = {k: v for k, v in changes.items() if k in ("auto_pad", "pads")}
    nodes = [
        helper.make_node(
            "Pad",
            ["x", "amounts", "" if fill is None else "fill", *(["axes"] if "axes" in changes else [])],
            ["padded"],
            name="pad",
            mode=changes.get("mode", "constant"),
        )
    ]
    weights = [numpy_helper.from_array(np.array(amounts, np.int64), "amounts")]
    if fill is not None:
        weights.append(numpy_helper.from_array(np.array(fill, np.float32), "fill"))
    if "axes" in changes:
        weights.append(numpy_helper.from_array(np.array(changes["axes"], np.int64), "axes"))
    for i in range(readers):
        channels = 2 + sum(amounts[j] for j in (1, 5)) if len(amounts) == 8 else 2
        weight = RNG.standard_normal((3, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(
            helper.make_node("Conv", ["padded", f"w{i}"], [f"y{i}"], name=f"conv{i}", strides=[2, 2], **extra)
        )
    if changes.get("pooled"):
        nodes.append(
            helper.make_node("MaxPool", ["padded"], ["y1"], kernel_shape=[3, 3], strides=[2, 2], name="pool")
        )
    outputs = [o.output[0] for o in nodes[1:]]
    graph = helper.make_graph(
        nodes,
        "padded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 7, 6])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto))


def folded(model: Model) -> Model:
    graph = model.editable()
    fold_padding(graph)
    passes.infer_shapes(graph)
    return Model(graph)


def operators(model: Model) -> Counter[str]:
    return Counter(n.op_type for n in model.ir.graph)


@pytest.mark.parametrize(
    "model",
    [
        network([0, 0, 0, 0, 0, 0, 1, 1]),
        network([0, 0, 2, 1, 0, 0, 0, 3], fill=None),
        network([0, 0, 0, 0, 0, 0, 1, 1], readers=2, pads=[1, 0, 0, 2]),
        network([0, 0, 1, 1, 0, 0, 1, 1], auto_pad="VALID"),
        network([1, 0, 2, 1], axes=[-1, 2]),
    ],
    ids=["stride two", "uneven, no value", "two readers with pads", "valid", "axes"],
)
def test_result_is_the_same_without_the_pad(model: Model) -> None:
    small = folded(model)
    assert operators(small)["Pad"] == 0
    assert operators(small)["Conv"] == operators(model)["Conv"]
    assert predict(small, X).shape == predict(model, X).shape
    np.testing.assert_allclose(predict(small, X), predict(model, X), atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        network([0, 0, 1, 1, 0, 0, 1, 1], fill=0.5),
        network([0, 1, 1, 1, 0, 0, 1, 1]),
        network([0, 0, -1, 1, 0, 0, 1, 1]),
        network([0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"),
        network([0, 0, 1, 1, 0, 0, 1, 1], auto_pad="SAME_UPPER"),
        network([0, 0, 1, 1, 0, 0, 1, 1], pooled=True),
    ],
    ids=["value", "channels", "crop", "reflect", "same", "pool"],
)
def test_other_pads_stay(model: Model) -> None:
    kept = folded(model)
    assert operators(kept) == operators(model)
    np.testing.assert_allclose(predict(kept, X), predict(model, X), atol=1e-6)


def test_int8_has_no_pad_left() -> None:
    model = network([0, 0, 0, 0, 0, 0, 1, 1])
    integer = Int8().apply(model, Dataset("rows", X, task="none"))
    assert operators(integer)["Pad"] == 0
    error = np.abs(predict(integer, X) - predict(model, X)).max()
    assert error < 0.03 * np.abs(predict(model, X)).max()
