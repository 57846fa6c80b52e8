"""Networks out of PyTorch, through ONNX, and back: answers and gradients are those of the module they came from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from dlas.graph.formats.torch import from_module
from dlas.graph.model import Model
from dlas.graph.reference import Reference
from dlas.graph.torch_module import to_torch, weights_back


class Recurrent(nn.Module):
    """Steps of every kind, and an embedding."""

    shape, whole = (2, 7), 9

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 5)
        self.lstm = nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(8, 3, batch_first=True)
        self.rnn = nn.RNN(3, 3, batch_first=True, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(self.embed(x))
        y, last = self.gru(y)
        return self.rnn(y)[0].sum(1) + last[0]


class Attention(nn.Module):
    """A transformer layer under a causal mask, between linear layers whose weights are transposed in the graph."""

    shape = (2, 6, 8)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True)
        self.first, self.last = nn.Linear(8, 8), nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.triu(torch.full((6, 6), -torch.inf), 1)
        return self.layer(self.first(x), mask) @ self.last.t().reshape(8, 3)


class Vision(nn.Module):
    """Convolutions up and down, resampling and pools."""

    shape = (2, 3, 13, 14)

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1, padding_mode="reflect")
        self.depth = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1)
        self.slope = nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.depth(F.hardswish(self.down(x))))
        y = F.max_pool2d(x, 3, 2, ceil_mode=True) + 0.0
        x = F.avg_pool2d(self.up(x), 3, 2, 1, count_include_pad=False)
        x = F.interpolate(x, size=(9, 10), mode="bilinear", align_corners=True)
        x = F.interpolate(x, scale_factor=1.5, mode="bicubic")
        x = F.pixel_unshuffle(F.pixel_shuffle(F.pad(x, (1, 0, -1, 0)), 2), 2)
        return x.mean((2, 3)) + F.adaptive_avg_pool2d(y, 1).flatten(1)[:, :4]


class Norms(nn.Module):
    """Normalisations and activations."""

    shape = (2, 6, 5, 5)

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.Sequential(
            nn.GroupNorm(3, 6), nn.Mish(), nn.InstanceNorm2d(6, affine=True), nn.SiLU(),
            nn.LayerNorm((5, 5)), nn.Hardsigmoid(), nn.LocalResponseNorm(3), nn.Softplus(), nn.CELU(0.7),
        )  # fmt: skip
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms(x) * self.scale
        y = F.normalize(F.glu(y, 1), dim=1) + F.gelu(y[:, :3]) + F.softsign(y[:, 3:])
        return y.var(1) + y.norm(dim=1) + y.logsumexp(1) + F.hardtanh(y).amax(1)


class Places(nn.Module):
    """Elements looked up, moved and written."""

    shape = (3, 6)

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        best, where = x.topk(3, dim=1)
        x = x @ self.table.t()
        x = torch.cat([x.flip(1), x.roll(1, 1), x.cumsum(1), torch.where(x > 0, x, 0.1 * x)], 1)
        x = x.scatter(1, where, best) + F.one_hot(where[:, 0], 16).float()
        x = torch.einsum("bi,bj->bij", x, x.gather(1, where))
        return x.tril().masked_fill(x > 3, 0.5).transpose(1, 2).unbind(1)[0][:, ::3]


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in (Recurrent, Attention, Norms, Places)]


@pytest.mark.parametrize("kind", [Vision, *SLOW])
def test_answers_and_gradients_are_those_of_the_module(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = kind().eval()
    shape, whole = net.shape, getattr(net, "whole", 0)
    random = np.random.default_rng(0)
    x = random.integers(0, whole, shape) if whole else random.standard_normal(shape).astype(np.float32)
    model = from_module(net, x, "net")
    module = to_torch(model)
    want, got = net(torch.from_numpy(x)), module(torch.from_numpy(x))
    assert decibels(want.detach().numpy(), got.detach().numpy()) >= 100
    want.square().sum().backward()
    got.square().sum().backward()
    originals = [p.grad for p in net.parameters()]
    parameters = [p for p in module.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert parameters
    norm = torch.sqrt(sum(g.square().sum() for g in originals))
    assert torch.sqrt(sum(p.grad.square().sum() for p in parameters)).item() == pytest.approx(
        norm.item(), rel=1e-3
    )
    with torch.no_grad():
        for parameter in parameters:
            parameter -= 1e-3 * parameter.grad
        after = module(torch.from_numpy(x)).numpy()
    trained = Model(weights_back(model, module))
    assert set(trained.initializers) == set(model.initializers)
    with Reference(trained, level="disable") as reference:
        (answer,) = reference.run({model.inputs[0].name: x}).values()
    assert decibels(answer, after) >= 100
    assert decibels(want.detach().numpy(), after) < 90


def decibels(want: np.ndarray, got: np.ndarray) -> float:
    """Signal to error."""
    return 20 * np.log10(np.linalg.norm(want) / max(np.linalg.norm(want - got), 1e-30))
