from __future__ import annotations

import hashlib
import io
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from dlas.compress import checkpoint as checkpoints
from dlas.compress.checkpoint import checkpoints_in, next_checkpoint
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


class StopError(Exception):
    """The run is cut off here."""


def stopping(after: int, heard: list[str]):
    """A progress that stops the run with its ``after``-th word."""

    def progress(_: float, text: str) -> None:
        heard.append(text)
        if len(heard) == after:
            raise StopError

    return progress


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLAS_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(checkpoints, "_SHARE", 0)


class Noisy(nn.Module):
    """Statistics of batches and dropped outputs: state beside the weights, and torch's own random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(64, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def state_of(module: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


def test_a_run_stopped_again_and_again_ends_with_the_bits_of_one_that_was_not(
    every_step: None, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).random((40, 1, 4, 4), F)
    y = np.arange(40) % 2
    schedule = Schedule(3, 0.1, batch_size=16, augment="flip-shift", threads=1)
    whole = Noisy()
    losses = train(whole, x, y, schedule)

    heard: list[str] = []
    for _ in range(20):
        net = Noisy()
        masks = {net.layers[0].weight: np.ones((4, 1, 3, 3))}
        try:
            again = train(
                net, x, y, schedule, masks=masks, checkpoint=tmp_path / "c", progress=stopping(3, words := [])
            )
        except StopError:
            heard += words
            continue
        heard += words
        break
    assert state_of(net) == state_of(whole)
    assert again == losses
    # The word that stops a run comes before its step is saved, so each gets one step further.
    assert [t for t in heard if t.startswith("resumed")] == [f"resumed at step {k} of 9" for k in range(2, 9)]


def test_a_finished_training_is_not_done_again(every_step: None, tmp_path: Path) -> None:
    first = fine_tune(network(), bars(), epochs=2, batch_size=32, threads=1, checkpoint=tmp_path / "c")
    heard: list[str] = []
    second = fine_tune(
        network(), bars(), epochs=2, batch_size=32, threads=1, checkpoint=tmp_path / "c",
        progress=lambda _, text: heard.append(text),
    )  # fmt: skip
    assert heard == ["resumed at step 6 of 6"]
    assert second.to_bytes() == first.to_bytes()
    plain = fine_tune(network(), bars(), epochs=2, batch_size=32, threads=1)
    assert plain.to_bytes() == first.to_bytes()


@pytest.mark.parametrize("change", [{"lr": 0.02}, {"seed": 1}, {"epochs": 3}])
def test_a_checkpoint_of_other_options_is_not_used(
    every_step: None, tmp_path: Path, change: dict, caplog: pytest.LogCaptureFixture
) -> None:
    fine_tune(network(), bars(), epochs=2, threads=1, checkpoint=tmp_path / "c")
    options = {"epochs": 2, "threads": 1, **change}
    heard: list[str] = []
    tuned = fine_tune(
        network(), bars(), checkpoint=tmp_path / "c", progress=lambda _, text: heard.append(text), **options
    )
    assert "belongs to another training" in caplog.text
    assert not any("resumed" in text for text in heard)
    assert tuned.hash == fine_tune(network(), bars(), **options).hash


def test_a_checkpoint_of_other_rows_or_code_is_not_used(
    every_step: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fine_tune(network(), bars(), epochs=1, threads=1, checkpoint=tmp_path / "c")
    fine_tune(network(), bars(95), epochs=1, threads=1, checkpoint=tmp_path / "c")
    assert caplog.text.count("belongs to another training") == 1
    monkeypatch.setattr("dlas.compress.training.made_with", lambda: {"code": "other"})
    fine_tune(network(), bars(95), epochs=1, threads=1, checkpoint=tmp_path / "c")
    assert caplog.text.count("belongs to another training") == 2


def test_a_damaged_checkpoint_is_noticed_wherever_it_is_hit(
    every_step: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c"
    want = fine_tune(network(), bars(), epochs=1, threads=1, checkpoint=path).hash
    sound = path.read_bytes()
    places = [0, 20, sound.index(b"}") + 2, *range(300, len(sound), len(sound) // 10), len(sound) - 1]
    for place in places:
        damaged = bytearray(sound)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        caplog.clear()
        assert fine_tune(network(), bars(), epochs=1, threads=1, checkpoint=path).hash == want
        assert "starting anew" in caplog.text, place
    for damaged in (b"", b"\n", sound[:-1], sound + b"x", b"[]\n", b"{" * 5000):
        path.write_bytes(damaged)
        caplog.clear()
        assert fine_tune(network(), bars(), epochs=1, threads=1, checkpoint=path).hash == want
        assert "is damaged" in caplog.text


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_a_checkpoint_with_code_in_it_does_not_run(
    every_step: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c"
    want = fine_tune(network(), bars(), epochs=1, threads=1, checkpoint=path).hash
    header = json.loads(path.read_bytes().partition(b"\n")[0])
    stored = io.BytesIO()
    torch.save({"tensors": Hostile()}, stored)
    for content in (stored.getvalue(), pickle.dumps(Hostile(), 2)):
        mended = {**header, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        path.write_bytes(json.dumps(mended).encode() + b"\n" + content)
        assert fine_tune(network(), bars(), epochs=1, threads=1, checkpoint=path).hash == want
        assert "is damaged" in caplog.text
        assert not (tmp_path / "ran").exists()


def test_training_goes_on_where_no_checkpoint_can_be_written(
    every_step: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    tuned = fine_tune(
        network(), bars(), epochs=2, batch_size=32, threads=1, checkpoint=tmp_path / "file" / "c"
    )
    assert tuned.hash == fine_tune(network(), bars(), epochs=2, batch_size=32, threads=1).hash
    assert caplog.text.count("goes on without checkpoints") == 1


def test_checkpoints_of_a_scope_have_one_file_each_and_the_same_every_time(tmp_path: Path) -> None:
    assert next_checkpoint() is None
    for _ in range(2):
        with checkpoints_in(tmp_path / "kept"):
            names = [next_checkpoint(), next_checkpoint()]
        assert names == [tmp_path / "kept" / f"training-00{n}.ckpt" for n in (1, 2)]
    assert next_checkpoint() is None
    with checkpoints_in(tmp_path / "kept"):
        fine_tune(network(), bars(), epochs=1, threads=1)  # too short for a checkpoint
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("seconds", ["never", "-1", "nan", "inf"])
def test_wrong_interval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: str) -> None:
    monkeypatch.setenv("DLAS_CHECKPOINT_SECONDS", seconds)
    with pytest.raises(OptionError, match="DLAS_CHECKPOINT_SECONDS"):
        fine_tune(network(), bars(), epochs=1, checkpoint=tmp_path / "c")


def test_frozen_weights_stay_to_the_bit_and_learn_again_afterwards() -> None:
    from dlas.data.preprocess import prepare
    from dlas.graph.torch_module import to_torch

    model, data = network(), bars()
    module = to_torch(model)
    kept = module.weights()["conv.weight"]
    before = kept.detach().clone()
    schedule = Schedule(2, 0.1, batch_size=16, threads=1)
    train(module, prepare(data, model), data.labels, schedule, frozen=[kept])
    assert torch.equal(kept, before)
    assert not np.array_equal(module.weights()["linear.weight"].detach(), model.initializers["linear.weight"])
    assert kept.requires_grad


def test_each_step_is_announced_and_a_loss_may_differentiate_by_the_inputs() -> None:
    from dlas.data.preprocess import prepare
    from dlas.graph.torch_module import to_torch

    model, data = network(), bars()
    told: list[float] = []
    norms: list[float] = []

    def loss(outputs, labels, inputs):
        (gradient,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        norms.append(float(gradient.detach().norm()))
        return torch.nn.functional.cross_entropy(outputs, labels) + gradient.square().mean()

    schedule = Schedule(2, 0.1, batch_size=32, threads=1, precision="float32")
    arrays = prepare(data, model), data.labels
    train(to_torch(model), *arrays, schedule, loss=loss, each_step=told.append, input_gradients=True)
    assert told == pytest.approx([i / 6 for i in range(6)])
    assert min(norms) > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_of_products_leaves_float32_weights(precision: str) -> None:
    from dlas.data.preprocess import prepare
    from dlas.graph.torch_module import to_torch

    model, data = network(), bars()
    module = to_torch(model)
    seen = set()
    module.on_value("c", lambda c: (seen.add(str(c.dtype)), c)[1])
    schedule = Schedule(6, 0.1, batch_size=16, threads=1, precision=precision)
    train(module, prepare(data, model), data.labels, schedule)
    assert seen == {f"torch.{precision}"}
    assert {w.dtype for w in module.parameters()} == {torch.float32}
    with torch.no_grad():
        answers = module(torch.from_numpy(prepare(data, model))).argmax(1).numpy()
    assert (answers == data.labels).all()


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(OptionError, match="bfloat16"):
        Schedule(1, 0.1, precision="int8")


def test_without_decay_the_learning_rate_stays() -> None:
    from dlas.data.preprocess import prepare
    from dlas.graph.torch_module import to_torch

    model, data = network(), bars()
    moved: dict[str, list[float]] = {}
    for decay in ("cosine", "none"):
        module = to_torch(model)
        bias = module.weights()["linear.bias"]
        places: list[float] = []
        schedule = Schedule(1, 0.01, batch_size=16, momentum=0, weight_decay=0, threads=1, decay=decay)
        gap = lambda outputs, *_: outputs[:, 0].mean() - outputs[:, 1].mean()  # noqa: E731
        follow = lambda _, bias=bias, places=places: places.append(float(bias.detach()[0]))  # noqa: E731
        train(module, prepare(data, model), data.labels, schedule, loss=gap, each_step=follow)
        moved[decay] = [a - b for a, b in itertools.pairwise(places)]
    first, *rest = moved["none"]
    assert rest == pytest.approx([first] * len(rest), rel=0.2)
    assert moved["cosine"][-1] < 0.5 * moved["cosine"][0]
    with pytest.raises(OptionError, match="cosine"):
        Schedule(1, 0.1, decay="linear")


def test_adamw_takes_steps_of_the_learning_rate_whatever_the_size_of_the_gradient() -> None:
    """The first step of AdamW is lr * sign(gradient), plus the share of the weight that decays."""

    def moved(scale: float) -> np.ndarray:
        module = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.ones_(module.weight)
        x, y = np.float32([[scale, 2 * scale]]), np.zeros(1, np.int64)
        schedule = Schedule(
            1, 0.01, batch_size=1, weight_decay=0.5, optimizer="adamw", clip_norm=1e9, precision="float32"
        )
        train(module, x, y, schedule)
        return module.weight.detach().numpy()

    expected = 1 - 0.01 * 0.5 + 0.01 * np.float32([[1, 1], [-1, -1]])
    np.testing.assert_allclose(moved(1.0), expected, atol=1e-5)
    np.testing.assert_allclose(moved(0.1), expected, atol=1e-5)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(OptionError, match="optimizer"):
        Schedule(1, 0.1, optimizer="lion")
