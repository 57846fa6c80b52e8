"""Networks written down by torch.fx: the same answers and names as by PyTorch's exporter, or the exporter itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph import torch_export
from dlas.graph.model import Model
from dlas.graph.torch_export import Exported, export, from_module
from dlas.graph.torch_trace.table import BUILDERS
from dlas.graph.torch_trace.trace import NotTracedError, trace
from dlas.models.architecture import architecture_for

IMAGES = (2, 4, 6, 6)
ROWS = (2, 4)


class Of(nn.Module):
    """A function of the module and its inputs, with sub-modules."""

    def __init__(self, function: Callable[..., object], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.function(self, *inputs)


def of(function: Callable[..., object], **modules: nn.Module) -> nn.Module:
    return Of(function, **modules).eval()


def answers(graph: onnx.ModelProto, *inputs: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
    return [np.asarray(y) for y in session.run(None, feeds)]


def kinds(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node]


def traced(module: nn.Module, *shapes: tuple[int, ...], fixed: bool = False) -> onnx.ModelProto:
    """The traced graph, checked by ONNX, and compared with the module for three sizes of the batch."""
    module.eval()
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(norm.running_mean, -1, 1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    proto = Model(trace(module, tuple(torch.zeros(s) for s in shapes), fixed)).to_proto()
    onnx.checker.check_model(proto, full_check=True)
    for batch in (shapes[0][0],) if fixed else (1, 2, 5):
        torch.manual_seed(batch)
        inputs = [3 * torch.randn(batch, *s[1:]) for s in shapes]
        with torch.no_grad():
            expected = module(*[x.clone() for x in inputs])
        found = answers(proto, *inputs)
        for want, got in zip(expected if isinstance(expected, tuple) else (expected,), found, strict=True):
            assert got.shape == tuple(want.shape)
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)
    return proto


MODULES: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9), ["Conv"]),
    "conv2d, groups and dilation": (
        nn.Conv2d(4, 8, (3, 1), (2, 1), (2, 0), (2, 1), groups=2),
        IMAGES,
        ["Conv"],
    ),
    "conv2d, depthwise, no bias": (nn.Conv2d(4, 4, 3, groups=4, bias=False), IMAGES, ["Conv"]),
    "conv2d, same, odd total": (nn.Conv2d(4, 2, (4, 3), padding="same"), IMAGES, ["Conv"]),
    "conv2d, valid": (nn.Conv2d(4, 2, 3, padding="valid"), IMAGES, ["Conv"]),
    "conv3d": (nn.Conv3d(2, 3, 3, padding=1), (2, 2, 4, 5, 6), ["Conv"]),
    "transposed conv": (
        nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2),
        IMAGES,
        ["ConvTranspose"],
    ),
    "linear": (nn.Linear(4, 3), ROWS, ["Gemm"]),
    "linear, no bias": (nn.Linear(4, 3, bias=False), ROWS, ["Gemm"]),
    "layer norm": (nn.LayerNorm([6, 6]), IMAGES, ["LayerNormalization"]),
    "layer norm, plain": (nn.LayerNorm(6, elementwise_affine=False), IMAGES, ["LayerNormalization"]),
    "relu in place": (nn.Sequential(nn.Hardtanh(), nn.ReLU(inplace=True)), IMAGES, ["Clip", "Relu"]),
    "relu6": (nn.ReLU6(), IMAGES, ["Clip"]),
    "hardtanh": (nn.Hardtanh(-0.5, 0.7), IMAGES, ["Clip"]),
    "sigmoid": (nn.Sigmoid(), IMAGES, ["Sigmoid"]),
    "tanh": (nn.Tanh(), IMAGES, ["Tanh"]),
    "silu": (nn.SiLU(inplace=True), IMAGES, ["Sigmoid", "Mul"]),
    "hardswish": (nn.Hardswish(), IMAGES, ["HardSwish"]),
    "hardsigmoid": (nn.Hardsigmoid(), IMAGES, ["HardSigmoid"]),
    "leaky relu": (nn.LeakyReLU(0.2), IMAGES, ["LeakyRelu"]),
    "elu": (nn.ELU(0.7), IMAGES, ["Elu"]),
    "mish": (nn.Mish(), IMAGES, ["Mish"]),
    "softplus": (nn.Softplus(), IMAGES, ["Softplus"]),
    "softsign": (nn.Softsign(), IMAGES, ["Softsign"]),
    "gelu": (nn.GELU(), IMAGES, ["Div", "Erf", "Add", "Mul", "Mul"]),
    "prelu": (nn.PReLU(), IMAGES, ["PRelu"]),
    "softmax": (nn.Softmax(1), IMAGES, ["Softmax"]),
    "log softmax": (nn.LogSoftmax(-1), ROWS, ["LogSoftmax"]),
    "max pool": (nn.MaxPool2d(3, 2, 1), IMAGES, ["MaxPool"]),
    "max pool, dilated": (nn.MaxPool2d((2, 3), 1, dilation=2), IMAGES, ["MaxPool"]),
    "max pool, rounded up": (nn.MaxPool2d(3, 2, ceil_mode=True), IMAGES, ["MaxPool"]),
    "max pool 1d": (nn.MaxPool1d(2), (2, 4, 9), ["MaxPool"]),
    "average pool": (nn.AvgPool2d(3, 2, 1), IMAGES, ["AveragePool"]),
    "average pool, without padding": (
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        IMAGES,
        ["AveragePool"],
    ),
    "average pool 1d": (nn.AvgPool1d(2), (2, 4, 8), ["AveragePool"]),
    "global average": (nn.AdaptiveAvgPool2d(1), IMAGES, ["ReduceMean"]),
    "global average 1d": (nn.AdaptiveAvgPool1d(1), (2, 4, 8), ["ReduceMean"]),
    "adaptive average": (nn.AdaptiveAvgPool2d((3, None)), IMAGES, ["AveragePool"]),
    "global maximum": (nn.AdaptiveMaxPool2d(1), IMAGES, ["ReduceMax"]),
    "flatten": (nn.Flatten(), IMAGES, ["Reshape"]),
    "flatten at the end": (nn.Flatten(2, -1), IMAGES, ["Reshape"]),
    "nothing to flatten": (nn.Sequential(nn.ReLU(), nn.Flatten()), ROWS, ["Relu"]),
    "dropout and identity": (
        nn.Sequential(nn.Dropout(), nn.Identity(), nn.ReLU(), nn.Dropout2d()),
        IMAGES,
        ["Relu"],
    ),
    "nearest": (nn.Upsample(scale_factor=2), IMAGES, ["Resize"]),
    "bilinear": (nn.Upsample(scale_factor=(2, 3), mode="bilinear"), IMAGES, ["Resize"]),
    "bilinear, corners": (nn.UpsamplingBilinear2d(size=(12, 18)), IMAGES, ["Resize"]),
    "pixel shuffle": (nn.PixelShuffle(2), IMAGES, ["DepthToSpace"]),
    "zero padding": (nn.ZeroPad2d((1, 2, 0, 3)), IMAGES, ["Pad"]),
    "constant padding": (nn.ConstantPad2d((1, -1, 0, 0), 0.5), IMAGES, ["Pad"]),
    "unflatten": (nn.Unflatten(1, (2, 2)), IMAGES, ["Reshape"]),
}

FUNCTIONS: dict[str, tuple[Callable[..., object], list[str]]] = {
    "relu": (lambda m, x: F.relu(torch.relu(x) - 1).relu(), ["Relu", "Sub", "Relu", "Relu"]),
    "sums with numbers": (lambda m, x: 2 - (x * 3 + 1) / 2, ["Mul", "Add", "Div", "Sub"]),
    "methods": (lambda m, x: x.add(x).mul(0.5).sub(x).neg().abs(), ["Add", "Mul", "Sub", "Neg", "Abs"]),
    "torch's": (lambda m, x: torch.mul(torch.add(x, 1), x), ["Add", "Mul"]),
    "power": (lambda m, x: torch.exp(-(x**2)), ["Pow", "Neg", "Exp"]),
    "in place": (lambda m, x: torch.sigmoid(x).add_(x), ["Sigmoid", "Add"]),
    "limits": (lambda m, x: x.clamp(min=-1) + torch.clamp(x, max=0.5), ["Clip", "Clip", "Add"]),
    "extremes": (lambda m, x: torch.maximum(x, -x), ["Neg", "Max"]),
    "concatenation": (lambda m, x: torch.cat([x, x * 2], dim=1), ["Mul", "Concat"]),
    "concatenated batches": (lambda m, x: torch.cat([x, x]), ["Concat"]),
    "view by size": (lambda m, x: x.view(x.size(0), -1), ["Reshape"]),
    "view by shape": (lambda m, x: x.reshape(x.shape[0], x.shape[1] * x.shape[2], 6), ["Reshape"]),
    "view of all images": (lambda m, x: x.view(-1, 6, 6), ["Reshape"]),
    "batch times channels": (lambda m, x: x.reshape(x.size(0) * 4, 36), ["Reshape"]),
    "two open sizes": (
        lambda m, x: torch.cat([x, x]).view(-1, 2, 36).view(x.size(0), -1, 36),
        ["Concat", "Reshape", "Reshape"],
    ),
    "shuffled channels": (
        lambda m, x: x.view(x.size(0), 2, 2, 6, 6).transpose(1, 2).contiguous().view(x.shape),
        ["Reshape", "Transpose", "Reshape"],
    ),
    "permutation": (lambda m, x: x.permute(0, 2, 3, 1).permute((0, -1, 1, 2)), ["Transpose", "Transpose"]),
    "mean over axes": (lambda m, x: x.mean((2, 3)), ["ReduceMean"]),
    "mean of the batch": (lambda m, x: x - torch.mean(x, 0, keepdim=True), ["ReduceMean", "Sub"]),
    "reductions": (
        lambda m, x: x.sum(-1, keepdim=True) + x.amax(dim=3, keepdim=True) - torch.amin(x, 3, True),
        ["ReduceSum", "ReduceMax", "Add", "ReduceMin", "Sub"],
    ),
    "every second pixel": (lambda m, x: x[:, :, ::2, 1:-1:3], ["Slice", "Slice"]),
    "the last channel": (lambda m, x: x[:, -1], ["Gather"]),
    "behind an ellipsis": (lambda m, x: x[..., 0], ["Gather"]),
    "a new axis": (lambda m, x: x[:, None, 1:2, 3], ["Unsqueeze", "Slice", "Gather"]),
    "half by its size": (lambda m, x: x[:, : x.size(1) // 2], ["Slice"]),
    "halves": (lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1), ["Split", "Concat"]),
    "unequal parts": (lambda m, x: x.split([1, 3], dim=1)[1], ["Split"]),
    "axes of one": (lambda m, x: x.unsqueeze(1).squeeze(1).squeeze(2), ["Unsqueeze", "Squeeze"]),
    "product": (lambda m, x: x @ x.transpose(2, 3), ["Transpose", "MatMul"]),
    "padding": (lambda m, x: F.pad(x, (0, 1, 2, 0, 1, 1)), ["Pad"]),
    "functional": (
        lambda m, x: F.max_pool2d(F.avg_pool2d(F.relu6(x), 2), 2, stride=1),
        ["Clip", "AveragePool", "MaxPool"],
    ),
    "resizing": (lambda m, x: F.interpolate(x, scale_factor=2, mode="nearest"), ["Resize"]),
    "the input itself": (lambda m, x: x, ["Identity"]),
    "twice the same": (lambda m, x: (y := torch.relu(x), y), ["Relu", "Identity"]),
    "two outputs": (lambda m, x: (x.flatten(1), -x), ["Reshape", "Neg"]),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    module, shape, expected = MODULES[name]
    assert kinds(traced(module, shape)) == expected


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function, expected = FUNCTIONS[name]
    assert kinds(traced(of(function), IMAGES)) == expected


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(4), ROWS),
        (nn.BatchNorm1d(4), (2, 4, 7)),
        (nn.BatchNorm2d(4, eps=0.1, momentum=0.3), IMAGES),
        (nn.BatchNorm2d(4, affine=False), IMAGES),
        (nn.BatchNorm3d(4), (2, 4, 2, 3, 3)),
    ],
)
def test_batch_norm_stays_apart(norm: nn.Module, shape: tuple[int, ...]) -> None:
    proto = traced(nn.Sequential(nn.Identity(), norm), shape)
    (node,) = proto.graph.node
    assert (node.op_type, node.name.split(".")[0]) == ("BatchNormalization", "1")
    assert list(node.input)[3:] == ["1.running_mean", "1.running_var"]
    momentum = next(a.f for a in node.attribute if a.name == "momentum")
    assert momentum == pytest.approx(1 - norm.momentum)


class Inverted(nn.Module):
    """A block of MobileNetV2 (Sandler et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Sequential(nn.Conv2d(4, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True)),
            nn.Sequential(
                nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False),
                nn.BatchNorm2d(12),
                nn.ReLU6(inplace=True),
            ),
            nn.Conv2d(12, 4, 1, bias=False),
            nn.BatchNorm2d(4),
        )
        self.use = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.use else self.conv(x)


def test_names_are_those_of_the_module() -> None:
    module = nn.Sequential(Inverted(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    proto = traced(module, IMAGES)
    names = [node.name for node in proto.graph.node]
    assert names == [
        "0.conv.0.0",
        "0.conv.0.1",
        "0.conv.0.2.clip",
        "0.conv.1.0",
        "0.conv.1.1",
        "0.conv.1.2.clip",
        "0.conv.2",
        "0.conv.3",
        "0.add",
        "1.reducemean",
        "2.reshape",
        "3",
    ]
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    for name, tensor in module.state_dict().items():
        if tensor.dim():
            np.testing.assert_array_equal(stored.pop(name), tensor.numpy())
    assert all(":in" in name for name in stored)
    assert [o.name for o in proto.graph.output] == ["logits"]


@pytest.mark.parametrize("network", ["cifar-resnet:depth=20", "digits-cnn:width=4"])
def test_a_network_is_what_pytorch_exports(network: str) -> None:
    architecture = architecture_for(network)
    module, example = architecture.build(), torch.zeros(2, *architecture.input_shape)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_var, 0.5, 2)
    ours = from_module(module, example)
    theirs = from_module(module, example, exporter=torch_export.export_slowly)
    assert (ours.inputs, ours.outputs) == (theirs.inputs, theirs.outputs)

    def calls(model: Model) -> list[tuple[object, ...]]:
        constants = model.initializers
        named = set(module.state_dict())
        return [
            (
                node.name,
                node.op_type,
                tuple(
                    str(v.name) if v.name in named or v.name not in constants else constants[v.name].tolist()
                    for v in node.inputs[
                        : 2 if node.op_type == "Conv" else None
                    ]  # PyTorch adds a bias of zeros
                    if v is not None
                ),
                {k: a.value for k, a in node.attributes.items() if k in ("pads", "strides", "group", "perm")},
                tuple(map(str, node.outputs[0].shape or ())),
            )
            for node in model.ir.graph
        ]

    assert calls(ours) == calls(theirs)
    x = np.random.default_rng(0).normal(size=(3, *architecture.input_shape)).astype(np.float32)
    for got, want in zip(*(answers(m.to_proto(), torch.from_numpy(x)) for m in (ours, theirs)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_several_inputs_and_defaults() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor, mask: object = None) -> torch.Tensor:
            return x + y if mask is None else x

    proto = traced(Two(), IMAGES, IMAGES)
    assert [i.name for i in proto.graph.input] == ["input_0", "input_1"]
    assert kinds(proto) == ["Add"]


def test_dimensions_that_depend_on_the_batch() -> None:
    graph = trace(of(lambda m, x: x.reshape(-1, 36)), (torch.zeros(IMAGES),), False)
    assert [str(d) for d in graph.graph.inputs[0].shape or ()] == ["N", "4", "6", "6"]
    assert [str(d) for d in graph.graph.outputs[0].shape or ()] == ["4*N", "36"]


def test_a_fixed_batch() -> None:
    proto = traced(of(lambda m, x: x[0].reshape(4, -1)), (1, 4, 6, 6), fixed=True)
    assert [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [1, 4, 6, 6]


def test_shared_weights_are_stored_once() -> None:
    shared = nn.Linear(4, 4, bias=False)
    other = nn.Linear(4, 4, bias=False)
    other.weight = shared.weight
    proto = traced(nn.Sequential(shared, nn.ReLU(), other, shared), ROWS)
    assert [t.name for t in proto.graph.initializer] == ["0.weight"]
    assert [n.name for n in proto.graph.node] == ["0", "1.relu", "0_2", "0_3"]


class Scaled(nn.Module):
    """Uses a buffer, and a tensor that is neither buffer nor parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(4, 1, 1))
        self.plain = torch.rand(4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.plain * torch.tensor([2.0])


def test_buffers_and_constants() -> None:
    module = Scaled()
    before = set(vars(module))
    proto = traced(nn.Sequential(module), IMAGES)
    assert kinds(proto) == ["Sub", "Div", "Mul"]
    assert {"0.mean", "0.plain"} < {t.name for t in proto.graph.initializer}
    assert set(vars(module)) == before


class Keeping(nn.Module):
    """Leaves what it computed in an attribute."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = torch.relu(x)
        return self.seen


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda m, inputs, output: output + 1)
    return module


def patched() -> nn.Module:
    module = nn.ReLU()
    module.forward = lambda x: x + 1  # type: ignore[method-assign]
    return nn.Sequential(module)


def own_count(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Something only a look into the tensor tells."""
    return x if bool((x > 0).any()) else x + 1


LEFT: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "decides by content": (of(own_count), IMAGES),
    "decides by size": (of(lambda m, x: x if x.shape[0] > 3 else -x), IMAGES),
    "len": (of(lambda m, x: x * len(x)), IMAGES),
    "loop over rows": (of(lambda m, x: torch.stack([row + 1 for row in x])), IMAGES),
    "unknown function": (of(lambda m, x: torch.fft.rfft(x).real), IMAGES),
    "unknown method": (of(lambda m, x: x.cumsum(1)), IMAGES),
    "product of weights": (
        of(lambda m, x: x * (m.a.weight * m.b.weight), a=nn.Linear(6, 6), b=nn.Linear(6, 6)),
        IMAGES,
    ),
    "wide linear": (nn.Linear(6, 2), IMAGES),
    "reflected": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), IMAGES),
    "rounded windows": (nn.AdaptiveAvgPool2d(4), IMAGES),
    "average rounded up": (nn.AvgPool2d(4, 4, ceil_mode=True), IMAGES),
    "odd factor": (nn.Upsample(scale_factor=1.5), IMAGES),
    "half the batch": (of(lambda m, x: x[: x.size(0) // 2]), IMAGES),
    "first of the batch": (of(lambda m, x: x[0]), IMAGES),
    "times the batch": (of(lambda m, x: x * x.size(0)), IMAGES),
    "dictionary": (of(lambda m, x: {"a": x}), IMAGES),
    "always dropped": (of(lambda m, x: F.dropout(x)), IMAGES),
    "statistics of the batch": (nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)), IMAGES),
    "no batch": (nn.Conv2d(4, 4, 3), (4, 6, 6)),
    "another dtype": (of(lambda m, x: x.double() + 1), IMAGES),
    "used after it was changed": (of(lambda m, x: (y := x * 2, y.relu_(), y + 1)[2]), IMAGES),
    "used after a view of it was changed": (
        of(lambda m, x: (y := x * 2, y.view(-1, 36).relu_(), y + 1)[2]),
        IMAGES,
    ),
    "hook": (nn.Sequential(hooked(nn.BatchNorm2d(4))), IMAGES),
    "hook of the network": (hooked(nn.Sequential(nn.ReLU())), IMAGES),
    "patched": (patched(), IMAGES),
    "parametrized": (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), IMAGES),
    "tanh gelu": (nn.GELU("tanh"), IMAGES),
    "slopes": (nn.PReLU(4), IMAGES),
}


@pytest.mark.parametrize("name", LEFT)
def test_the_rest_is_left_to_pytorch(name: str) -> None:
    module, shape = LEFT[name]
    module.eval()
    if name == "hook":  # looked into, and then it decides by the number of dimensions
        assert module(torch.zeros(shape)).mean() == 1
    with pytest.raises(NotTracedError):
        trace(module, (torch.zeros(shape),), False)


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        from_module(nn.Linear(4, 3), torch.zeros(ROWS))
        with pytest.raises(NotTracedError):
            trace(of(lambda m, x: x * len(x)), (torch.zeros(ROWS),), False)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_training_is_not_traced() -> None:
    with pytest.raises(NotTracedError, match="training"):
        trace(nn.Sequential(nn.Dropout()).train(), (torch.zeros(ROWS),), False)


def test_weights_are_not_changed() -> None:
    module = of(lambda m, x: x + m.a.weight.relu_(), a=nn.Linear(6, 6))
    before = module.a.weight.detach().clone()  # type: ignore[union-attr,operator]
    with pytest.raises(NotTracedError):
        trace(module, (torch.zeros(IMAGES),), False)
    assert torch.equal(module.a.weight, before)  # type: ignore[arg-type]


def test_weights_of_the_graph_are_copies() -> None:
    module = nn.Linear(4, 3).eval()
    graph = trace(module, (torch.zeros(ROWS),), False)
    before = Model(graph).to_bytes()
    with torch.no_grad():
        module.weight.add_(1)
    assert Model(graph).to_bytes() == before


def test_nothing_is_left_in_the_module() -> None:
    module = nn.Sequential(Keeping()).eval()
    traced(module, IMAGES)
    module[0].seen = None  # type: ignore[assignment]
    trace(module, (torch.zeros(IMAGES),), False)
    assert module[0].seen is None


def test_examples_are_not_changed() -> None:
    example = torch.randn(IMAGES)
    before = example.clone()
    trace(nn.ReLU(inplace=True).eval(), (example,), True)
    from_module(nn.ReLU(inplace=True), example)
    assert torch.equal(example, before)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Modules that PyTorch's exporter itself was asked for."""
    asked: list[nn.Module] = []
    original = torch_export._by_pytorch

    def counted(module: nn.Module, *rest: object) -> Exported:
        asked.append(module)
        return original(module, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(torch_export, "_by_pytorch", counted)
    return asked


def test_what_cannot_be_traced_is_exported(slow: list[nn.Module]) -> None:
    module = of(lambda m, x: m.a(x).cumsum(1), a=nn.Linear(4, 3))
    model = from_module(module, torch.zeros(ROWS))
    assert slow == [module]
    x = torch.randn(ROWS)
    (got,) = answers(model.to_proto(), x)
    np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    (note,) = [n for n in model.history[-1].notes if "exporter" in n]
    assert note.startswith("written by PyTorch's exporter, as the network could not be traced: ")
    assert "cumsum" in note
    traced = from_module(nn.Linear(4, 3), torch.zeros(ROWS))
    assert len(slow) == 1
    assert not [n for n in traced.history[-1].notes if "exporter" in n]


def test_a_wrong_graph_is_noticed_and_replaced(
    slow: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILDERS, torch.tanh, BUILDERS[torch.sigmoid])
    model = from_module(nn.Tanh(), torch.zeros(ROWS))
    assert len(slow) == 1
    assert [n.op_type for n in model.ir.graph] == ["Tanh"]
    assert "differs from PyTorch by" in model.history[-1].notes[-1]


def test_the_reason_holds_no_address() -> None:
    error = NotTracedError("<function f at 0x7f00aB12> is not in the tables")
    assert torch_export._reason(error) == "<function f> is not in the tables"


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_small_answers_are_compared_too(
    size: float, slow: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILDERS, torch.neg, BUILDERS[torch.abs])
    from_module(of(lambda m, x: torch.neg(x * size)), torch.zeros(ROWS))
    assert len(slow) == 1


def test_a_network_that_answers_nan_is_refused() -> None:
    with pytest.raises(ModelError, match="NaN"):
        from_module(of(lambda m, x: torch.log(x)), torch.zeros(ROWS))


def test_messages_of_the_exporter_stay() -> None:
    with pytest.raises(ModelError, match="fails on an input of shape"):
        from_module(nn.Linear(5, 3), torch.zeros(ROWS))
    with pytest.raises(UnsupportedError, match="something else than tensors"):
        from_module(of(lambda m, x: {"a": x}), torch.zeros(ROWS))


def test_other_threads_are_left_alone() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    failures: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        x = torch.zeros(ROWS)
        while not stop.is_set():
            try:
                assert type(network(x)) is torch.Tensor
                assert type(network[0].weight) is nn.Parameter
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=work)
    thread.start()
    module = architecture_for("cifar-resnet:depth=20").build()
    expected = kinds(Model(trace(module, (torch.zeros(2, 3, 32, 32),), False)).to_proto())
    for _ in range(3):
        found = kinds(Model(trace(module, (torch.zeros(2, 3, 32, 32),), False)).to_proto())
        assert found == expected
    stop.set()
    thread.join()
    assert not failures


def test_export_says_how() -> None:
    assert export(nn.Linear(4, 3).eval(), (torch.zeros(ROWS),), False).traced


def test_the_exporter_is_not_loaded(tmp_path: Path) -> None:
    script = (
        "import json, sys, torch\n"
        "from dlas.graph.formats.torch import rebuilt, Torch\n"
        "from dlas.models.architecture import architecture_for\n"
        "state = architecture_for('digits-cnn').build().state_dict()\n"
        "model = rebuilt('x', state, {'format': 'torch', 'path': 'x'}, Torch.Options())\n"
        "print(json.dumps([m for m in ('onnxscript', 'torch.onnx._internal.exporter._core') if m in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "DLAS_CACHE": str(tmp_path)},
    )
    assert json.loads(done.stdout) == []
