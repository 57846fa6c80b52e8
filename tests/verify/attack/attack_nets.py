"""Networks whose weakness can be worked out by hand, and victims made of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dlas.data.dataset import Dataset
from dlas.graph.model import Model
from dlas.graph.reference import Reference, predict
from dlas.verify.attack.attack import Job
from dlas.verify.attack.pixels import pixels_of
from dlas.verify.attack.twin import twin_of
from dlas.verify.attack.victim import Victim

SIDE = 6


def network(
    weight: np.ndarray,
    bias: np.ndarray,
    before: Callable[[str], list[onnx.NodeProto]] = lambda name: [
        helper.make_node("Identity", ["x"], [name])
    ],
    extra: dict[str, np.ndarray] | None = None,
    softmax: bool = False,
) -> Model:
    """``Flatten(before(x)) @ weight + bias`` of ``(N, C, SIDE, SIDE)``; ``before`` makes the name it is given."""
    channels = len(weight) // SIDE**2
    nodes = [
        *before("seen"),
        helper.make_node("Flatten", ["seen"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=1))
    stored = {"w": weight.astype(np.float32), "b": bias.astype(np.float32), **(extra or {})}
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, SIDE, SIDE])],
        [
            helper.make_tensor_value_info(
                "scores" if softmax else "logits", TensorProto.FLOAT, ["N", weight.shape[1]]
            )
        ],
        [numpy_helper.from_array(a, n) for n, a in stored.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return Model.from_proto(proto, "linear")


def linear(channels: int = 1, classes: int = 2, seed: int = 0, **given: object) -> tuple[Model, np.ndarray]:
    """A linear network that answers 0.5 everywhere with a tie, and its weight ``(features, classes)``."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(channels * SIDE**2, classes)).astype(np.float32)
    return network(weight, -0.5 * weight.sum(0), **given), weight  # type: ignore[arg-type]


def samples_of(model: Model, count: int, seed: int = 1) -> Dataset:
    """Samples away from 0 and 1, with the labels that the network gives them."""
    rng = np.random.default_rng(seed)
    shape = [int(d) for d in model.inputs[0].shape[1:]]
    x = rng.uniform(0.35, 0.65, (count, *shape)).astype(np.float32)
    labels = predict(model, x).argmax(1).astype(np.int64)
    return Dataset("made up", x, labels, tuple("ab"))


def victim_of(model: Model, data: Dataset, eps: float = 0.1) -> tuple[Victim, Job]:
    """A victim on the reference engine, and the job of attacking it on all samples."""
    pixels, samples = pixels_of(model, data)
    engine = Reference(model)
    given, answer = model.inputs[0].name, model.outputs[0].name
    victim = Victim("linear", pixels, lambda x: engine.run({given: x})[answer], twin_of(model, pixels))
    assert data.labels is not None
    return victim, Job(samples, data.labels, eps, data.rows)


def margin(model: Model, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Score of the label less the other one's, for two classes."""
    scores = predict(model, x).astype(np.float64)
    at = np.arange(len(x))
    return scores[at, labels] - scores[at, 1 - labels]


def hardest(job: Job, weight: np.ndarray) -> np.ndarray:
    """The most that eps can take off the margin of a linear network of two classes: eps * L1 norm."""
    return job.eps * np.abs(weight[:, 0].astype(np.float64) - weight[:, 1]).sum()
