from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from dlas.compress.training import Schedule, fine_tune, train
from dlas.core.errors import DataError, DlasError, OptionError
from dlas.data.dataset import Dataset
from dlas.graph.model import Model
from dlas.graph.preprocessing import Preprocessing

F = np.float32


def bars(rows: int = 96) -> Dataset:
    """Images with a bright half; the label says whether it is the upper one."""
    random = np.random.default_rng(0)
    images = random.integers(0, 80, (rows, 4, 4, 1), np.uint8)
    labels = np.arange(rows) % 2
    images[labels == 0, :2] += 120
    images[labels == 1, 2:] += 120
    return Dataset("bars", images, labels.astype(np.int64), ("upper", "lower"))


def network(softmax: bool = False) -> Model:
    random = np.random.default_rng(1)
    weights = {
        "conv.weight": random.normal(0, 0.5, (4, 1, 3, 3)).astype(F),
        "conv.bias": np.zeros(4, F),
        "linear.weight": random.normal(0, 0.1, (2, 64)).astype(F),
        "linear.bias": np.zeros(2, F),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "linear.weight", "linear.bias"], ["g"], transB=1),
        helper.make_node("Softmax" if softmax else "Identity", ["g"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 1, 4, 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 2])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    proto = onnx.shape_inference.infer_shapes(proto)
    return Model.from_proto(proto, "bars", preprocessing=Preprocessing(4, 4, colour="L", scale=1 / 255))


def right(model: Model) -> float:
    from dlas.data.preprocess import prepare
    from dlas.graph.reference import predict

    data = bars()
    return float(np.mean(predict(model, prepare(data, model)).argmax(1) == data.labels))


@pytest.mark.parametrize("softmax", [False, True])
def test_fine_tuning_learns_and_says_what_it_did(softmax: bool) -> None:
    model = network(softmax)
    before = model.hash
    told: list[float] = []
    tuned = fine_tune(
        model, bars(), epochs=8, lr=0.1, batch_size=16, threads=1, progress=lambda part, _: told.append(part)
    )
    assert right(model) < 0.9
    assert right(tuned) == 1.0
    assert Model(model.ir, preprocessing=model.preprocessing).hash == before
    step = tuned.history[-1]
    assert step.action == "fine-tune"
    assert step.options["epochs"] == 8
    assert step.options["seed"] == 0
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_same_seed_same_weights() -> None:
    a, b, c = (
        fine_tune(network(), bars(), epochs=2, batch_size=16, threads=1, seed=s, augment="flip-shift")
        for s in (3, 3, 4)
    )
    assert a.hash == b.hash
    assert a.hash != c.hash


def test_masked_weights_stay_zero() -> None:
    mask = np.ones((4, 1, 3, 3), bool)
    mask[:, :, 1] = False
    tuned = fine_tune(network(), bars(), epochs=1, batch_size=16, threads=1, masks={"conv.weight": mask})
    weight = tuned.initializers["conv.weight"]
    assert not weight[~mask].any()
    assert weight[mask].all()
    with pytest.raises(DlasError, match="does not have"):
        fine_tune(network(), bars(), epochs=1, masks={"nothing": mask})
    with pytest.raises(DlasError, match=r"\[2\]"):
        fine_tune(network(), bars(), epochs=1, masks={"conv.weight": np.ones(2)})


def test_own_loss() -> None:
    seen = []

    def loss(outputs: torch.Tensor, labels: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        seen.append((outputs.shape, labels.shape, inputs.shape))
        return outputs.square().mean()

    fine_tune(network(), bars(), epochs=1, batch_size=96, threads=1, loss=loss)
    assert seen == [((96, 2), (96,), (96, 1, 4, 4))]


def test_divergence_is_an_error_of_ours() -> None:
    with pytest.raises(DlasError, match=r"diverged in epoch 1: .*smaller learning rate"):
        fine_tune(network(), bars(), epochs=1, loss=lambda y, *_: y.sum() * float("inf"))


def test_no_epochs_change_nothing() -> None:
    model = network()
    assert fine_tune(model, bars(), epochs=0) is model


def test_unfit_data() -> None:
    data = bars()
    with pytest.raises(DataError, match="no labels"):
        fine_tune(network(), Dataset("bare", data.samples), epochs=1)
    with pytest.raises(DataError, match="a label is 7"):
        fine_tune(network(), Dataset("seven", data.samples, np.full(96, 7)), epochs=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"momentum": 1.0},
        {"augment": "cut"},
        {"batch_size": 0},
    ],
)
def test_wrong_schedules(wrong: dict) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        Schedule(**{"epochs": 1, "lr": 0.1, **wrong})


def test_threads_and_random_state_are_given_back() -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    before = torch.get_num_threads()
    net = nn.Linear(4, 2)
    torch.manual_seed(5)
    train(net, np.ones((8, 4), F), np.zeros(8, np.int64), Schedule(1, 0.1, threads=1))
    assert torch.get_num_threads() == before
    torch.testing.assert_close(torch.rand(3), want)
    assert not net.training
