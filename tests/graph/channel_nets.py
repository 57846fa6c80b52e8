"""Small networks for the tests of channel groups, and how they are exported and run."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from dlas.graph.passes import fold_constants, infer_shapes, simplify


def conv_bn(inner: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out)
    )


class Block(nn.Module):
    def __init__(self, inner: int, out: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.first, self.second = conv_bn(inner, out, 3, stride), conv_bn(out, out)
        self.extra, self.stride = (out - inner) // 2, stride
        self.projection = conv_bn(inner, out, 1, stride) if shortcut == "B" and stride > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(F.relu(self.first(x)))
        if self.projection is not None:
            x = self.projection(x)
        elif self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(y + x)


class ResNet(nn.Module):
    """ResNet-20 in small: three stages of ``blocks`` blocks; shortcut A (slice and pad) or B (projection)."""

    def __init__(self, shortcut: str, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        layers = [conv_bn(3, width), nn.ReLU()]
        inner = width
        for stage in range(3):
            out = width * 2**stage
            for block in range(blocks):
                layers.append(Block(inner, out, 2 if stage and not block else 1, shortcut))
                inner = out
        self.body, self.head = nn.Sequential(*layers), nn.Linear(inner, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Vgg(nn.Module):
    """Plain stack with a flatten of 4 x 4 positions before two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(3, 8), nn.ReLU(), nn.MaxPool2d(2), conv_bn(8, 12), nn.ReLU(), nn.AvgPool2d(2)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(12 * 16, 20), nn.ReLU(), nn.Linear(20, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class InvertedResidual(nn.Module):
    def __init__(self, inner: int, out: int, stride: int) -> None:
        super().__init__()
        wide = inner * 3
        self.layers = nn.Sequential(
            conv_bn(inner, wide, 1), nn.ReLU6(), conv_bn(wide, wide, 3, stride, wide), nn.ReLU6(),
            conv_bn(wide, out, 1),
        )  # fmt: skip
        self.residual = stride == 1 and inner == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(3, 8, 3, 2), nn.ReLU6(), InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2),
            InvertedResidual(12, 12, 1), conv_bn(12, 24, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class DenseNet(nn.Module):
    def __init__(self, growth: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        widths = [8 + growth * i for i in range(3)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, growth, 3, padding=1)) for n in widths
        )
        total = widths[-1] + growth
        self.transition = nn.Sequential(
            nn.BatchNorm2d(total), nn.ReLU(), nn.Conv2d(total, 10, 1), nn.AvgPool2d(2)
        )
        self.head = nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(self.transition(x).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """A squeeze-and-excite block: sigmoid gates of shape (N, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = conv_bn(3, 12), conv_bn(12, 16)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.relu(self.last(x * gate)).mean((2, 3)))


class Attention(nn.Module):
    """A two-head attention block over 4 x 4 patches; heads are removed whole."""

    def __init__(self, normalised: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16) if normalised else nn.Identity()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.patch(x).flatten(2).transpose(1, 2))
        q, k, v = (layer(x).reshape(-1, 16, 2, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v
        return self.head((x + self.out(mixed.transpose(1, 2).reshape(-1, 16, 16))).mean(1))


class Mixed(nn.Module):
    """Grouped and transposed convolution, channel slice, split, shuffle, resize, depth-to-space, PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 12, 2, 2)
        self.slope, self.low = nn.PReLU(12), nn.Conv2d(5, 6, 1)
        self.shuffle, self.after = nn.Conv2d(13, 16, 1), nn.Conv2d(4, 6, 1)
        self.gate, self.head = nn.Conv2d(6, 8, 1), nn.Linear(4 + 6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.slope(self.up(F.relu(self.grouped(F.relu(self.stem(x))))))
        low = F.interpolate(F.relu(self.low(x[:, 2:7])), scale_factor=2.0)
        x = torch.cat([F.interpolate(x[:, 5:], scale_factor=2.0), low], 1)
        x = self.after(F.pixel_shuffle(F.relu(self.shuffle(x)), 2))
        a, b = self.gate(F.relu(x)).chunk(2, 1)
        return self.head(torch.cat([(a * torch.sigmoid(b)).mean((2, 3)), x.amax((2, 3))], 1))


NETS = {
    "option-a": lambda: ResNet("A"),
    "projection": lambda: ResNet("B"),
    "vgg": Vgg,
    "mobilenet-v2": MobileNetV2,
    "densenet": DenseNet,
    "squeeze-excite": SqueezeExcite,
    "attention": Attention,
    "mixed": Mixed,
}


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give normalisation layers statistics and parameters as a trained network has, and fix every weight."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.3, 0.3),
                (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2.0),
            ):  # fmt: skip
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)
    return net.eval()


def build(name: str) -> nn.Module:
    torch.manual_seed(3)
    return randomise(NETS[name]())


def export(net: nn.Module, shape: tuple[int, ...] = (3, 16, 16), optimize: bool = True) -> ir.Model:
    """The network as an ONNX graph with a dynamic batch; batch norms stay unless ``optimize``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net, (torch.zeros(2, *shape),), dynamo=True, opset_version=18, verbose=False, optimize=optimize,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    assert program is not None
    file = io.BytesIO()
    program.save(file)
    graph = ir.from_proto(onnx.load_from_string(file.getvalue()))
    if optimize:
        simplify(graph)
    else:
        fold_constants(graph)
        infer_shapes(graph)
    return graph


def run(graph: ir.Model, *inputs: np.ndarray) -> np.ndarray:
    """First output of the graph after a round trip through bytes, checked by ONNX."""
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]
    return np.asarray(session.run(None, dict(zip(names, inputs, strict=True)))[0])


def images(count: int = 4, shape: tuple[int, ...] = (3, 16, 16), seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def weights(graph: ir.Model) -> dict[str, np.ndarray]:
    return {
        n: v.const_value.numpy() for n, v in graph.graph.initializers.items() if v.const_value is not None
    }
