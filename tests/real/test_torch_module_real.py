"""Every network of the corpus as a PyTorch module: the same answers, one step of training, and its weights back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dlas.graph.format import load_model
from dlas.graph.model import Model
from dlas.graph.reference import Reference
from dlas.graph.torch_module import to_torch, weights_back

FLOAT = [
    "cifar-resnet/resnet20.th",
    pytest.param("cifar-resnet/resnet32.th", marks=pytest.mark.slow),
    pytest.param("cifar-resnet/resnet56.th", marks=pytest.mark.slow),
    "detect/fastestdet_coco.onnx",
    "detect/ultraface_rfb320.onnx",
    "imagenet/mobilenet_v1_0.25_128_float.tflite",
    "imagenet/squeezenet1.0_deepcompressed.onnx",
    "mlperf-tiny/ad01_autoencoder.h5",
    "mlperf-tiny/ad01_autoencoder_float.tflite",
    "mlperf-tiny/ic_resnet8.h5",
    "mlperf-tiny/ic_resnet8_float.tflite",
    "mlperf-tiny/kws_dscnn_float.tflite",
    "mlperf-tiny/vww_mobilenetv1_96_float.tflite",
]
QUANTISED = [
    "gan/dcgan_disc.tflite",
    "gan/dcgan_gen.tflite",
    "imagenet/mobilenet_v1_0.25_128_int8.tflite",
    "imagenet/mobilenet_v1_0.25_128_uint8.tflite",
    pytest.param("imagenet/mobilenetv2_1.0_224_int8.tflite", marks=pytest.mark.slow),
    "mlperf-tiny/ad01_autoencoder_int8.tflite",
    "mlperf-tiny/ic_resnet8_int8.tflite",
    "mlperf-tiny/kws_dscnn_int8.tflite",
    "mlperf-tiny/streaming_wakeword_int8.tflite",
    pytest.param("pot/apot_mobilenetv2_4bit_imagenet.tflite", marks=pytest.mark.slow),
    "pot/apot_resnet20_4bit_cifar10.tflite",
]
OTHER = ["imagenet/squeezenet1.0_deepcompressed.net"]  # the file its ONNX form was decoded from


def loaded(folder: Path, file: str) -> Model:
    if file.endswith(".tflite"):
        pytest.importorskip("ai_edge_litert")
    if file.endswith(".h5"):
        pytest.importorskip("tensorflow", reason="reading Keras files needs TensorFlow (dlas[keras])")
    return load_model(folder / "models" / file)


def samples(model: Model) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    made = []
    for spec in model.inputs:
        shape, kind = spec.bound(1), np.dtype(spec.dtype)
        if kind.kind == "f":
            made.append(random.random(shape).astype(kind))
        else:
            limits = np.iinfo(kind)
            made.append(random.integers(limits.min, limits.max, shape, endpoint=True).astype(kind))
    return made


def by_reference(model: Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
    with Reference(model, level="disable") as reference:
        feed = {spec.name: array for spec, array in zip(model.inputs, inputs, strict=True)}
        return list(reference.run(feed).values())


def by_module(module: torch.nn.Module, inputs: list[np.ndarray]) -> list[torch.Tensor]:
    answer = module(*map(torch.from_numpy, inputs))
    return list(answer) if isinstance(answer, tuple) else [answer]


def decibels(wanted: list[np.ndarray], got: list[torch.Tensor]) -> float:
    """Signal to error of the worst output."""
    worst = np.inf
    for want, tensor in zip(wanted, got, strict=True):
        error = np.linalg.norm(want.astype(float) - tensor.detach().numpy())
        worst = min(worst, 20 * np.log10(np.linalg.norm(want.astype(float)) / max(error, 1e-300)))
    return worst


def test_every_file_of_the_corpus_is_listed(data_folder: Path) -> None:
    folder = data_folder / "models"
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    listed = [f if isinstance(f, str) else f.values[0] for f in (*FLOAT, *QUANTISED, *OTHER)]
    assert files == set(listed)


@pytest.mark.parametrize("file", FLOAT)
def test_a_step_of_training_goes_back_into_the_graph(data_folder: Path, file: str) -> None:
    model = loaded(data_folder, file)
    inputs, module = samples(model), to_torch(model)
    answers = by_module(module, inputs)
    assert decibels(by_reference(model, inputs), answers) >= 100
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    loss = sum(((a - 0.3) ** 2).mean() for a in answers)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    same = [name for name, p in module.named_parameters() if torch.equal(p, before[name])]
    assert len(same) <= 0.1 * len(before), same  # some layers are dead on noise
    trained = Model(weights_back(model, module))
    assert trained.hash != model.hash
    assert set(trained.initializers) == set(model.initializers)
    with torch.no_grad():
        after = by_module(module, inputs)
    assert decibels(by_reference(trained, inputs), after) >= 100
    assert decibels([a.detach().numpy() for a in answers], after) < 100


@pytest.mark.parametrize("file", QUANTISED)
def test_quantised_networks_answer_alike(data_folder: Path, file: str) -> None:
    model = loaded(data_folder, file)
    graph = model.editable()
    values = [n.outputs[0] for n in graph.graph if n.op_type == "QuantizeLinear"]
    graph.graph.outputs.extend(v for v in values if v not in graph.graph.outputs)
    opened, inputs = Model(graph), samples(model)
    module = to_torch(opened)
    with torch.no_grad():
        pairs = list(zip(by_reference(opened, inputs), by_module(module, inputs), strict=True))
    # Sums of floats that differ in the last bit may round to the next step; from there on both go their own way.
    steps = [np.abs(want.astype(int) - got.numpy().astype(int)) for want, got in pairs[len(model.outputs) :]]
    first = next((s for s in steps if s.any()), np.zeros(1))
    assert first.max() <= 1
    assert first.sum() <= max(1, 1e-4 * first.size)
    answers = pairs[: len(model.outputs)]
    assert decibels([want for want, _ in answers], [got for _, got in answers]) >= 20


@pytest.mark.parametrize("file", QUANTISED)
def test_quantised_weights_are_fixed_and_go_back_as_they_were(data_folder: Path, file: str) -> None:
    model = loaded(data_folder, file)
    module = to_torch(model)
    assert not list(module.parameters())
    assert Model(weights_back(model, module)).hash == model.hash
