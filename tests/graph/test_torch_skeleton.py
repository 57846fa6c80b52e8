"""Graphs of registered architectures are exported once, and are the same as if they were exported every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dlas.core.cache import Cache
from dlas.core.registry import Registry
from dlas.graph import torch_export
from dlas.graph.format import load_model
from dlas.graph.formats import _torch_skeleton
from dlas.graph.formats._torch_skeleton import remembered
from dlas.graph.torch_export import Exported, export, from_module
from dlas.models.architecture import architecture_for

NETWORK = "digits-cnn:width=4"
EXAMPLE = torch.zeros(2, 1, 8, 8)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Modules that PyTorch's exporter was asked for."""
    asked: list[nn.Module] = []
    original = torch_export.export_raw

    def counted(module: nn.Module, *rest: object) -> Exported:
        asked.append(module)
        return original(module, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(torch_export, "export_raw", counted)
    monkeypatch.setattr(_torch_skeleton, "export_raw", counted)
    return asked


def checkpoint(path: Path, seed: int) -> nn.Module:
    """A checkpoint with weights nobody else has."""
    torch.manual_seed(seed)
    module = architecture_for(NETWORK).build()
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.1)
    torch.save(module.state_dict(), path)
    return module


def entry_of(cache: Path) -> Path:
    """The one entry's graph."""
    (found,) = cache.rglob("graph.onnx")
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    root = tmp_path / "cache"
    monkeypatch.setenv("DLAS_CACHE", str(root))
    return root


def test_remembered_graph_is_the_exported_one(tmp_path: Path, cache: Path, exports: list[nn.Module]) -> None:
    for seed in (1, 2):
        path = tmp_path / "net.pt"
        module = checkpoint(path, seed)
        found = load_model(path, architecture=NETWORK)
        assert len(exports) == seed
        direct = from_module(
            module,
            EXAMPLE,
            "net",
            architecture_for(NETWORK).preprocessing,
            source=found.source,
            options={"architecture": NETWORK},
        )
        assert len(exports) == seed + 1
        assert found.to_bytes() == direct.to_bytes()
        assert found.torch_module is not None
    assert len(list(cache.rglob("graph.onnx"))) == 1


def test_deep_network_is_remembered_too(cache: Path, exports: list[nn.Module]) -> None:
    module = architecture_for("cifar-resnet:depth=20").build()
    exporter, example = remembered("cifar-resnet:depth=20"), torch.zeros(2, 3, 32, 32)
    first, second = (from_module(module, example, exporter=exporter).to_bytes() for _ in range(2))
    assert first == second == from_module(module, example).to_bytes()
    assert len(exports) == 2


def test_the_entry_holds_no_weights(tmp_path: Path, cache: Path) -> None:
    module = checkpoint(tmp_path / "net.pt", 3)
    load_model(tmp_path / "net.pt", architecture=NETWORK)
    stored = entry_of(cache).read_bytes()
    for name, tensor in module.state_dict().items():
        if tensor.dim():
            assert tensor.numpy().tobytes() not in stored, name


def test_weights_are_copies(tmp_path: Path, cache: Path) -> None:
    checkpoint(tmp_path / "net.pt", 4)
    load_model(tmp_path / "net.pt", architecture=NETWORK)
    model = load_model(tmp_path / "net.pt", architecture=NETWORK)
    before = model.to_bytes()
    with torch.no_grad():
        for parameter in model.torch_module.parameters():
            parameter.add_(1.0)
    assert model.to_bytes() == before


class Folded(nn.Module):
    """A product of two weights, which becomes one constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))
        self.scale = nn.Parameter(torch.rand(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` times both weights."""
        return x * (self.weight * self.scale)


def test_graph_with_folded_weights_is_exported_every_time(cache: Path, exports: list[nn.Module]) -> None:
    for count in (1, 2, 3):
        module = Folded()
        model = from_module(module, torch.zeros(2, 3), exporter=remembered(NETWORK))
        assert len(exports) == count
        product = (module.weight * module.scale).detach().numpy()
        assert any(np.allclose(a, product) for a in model.initializers.values())
    assert not list(cache.rglob("graph.onnx"))


def test_dtype_that_numpy_lacks_is_not_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nn.Module] = []
    answer = export(Folded(), (torch.zeros(2, 3),), False)
    monkeypatch.setattr(_torch_skeleton, "export", lambda module, *_: asked.append(module) or answer)
    module = nn.Linear(2, 2).to(torch.bfloat16)
    assert remembered(NETWORK)(module, (torch.zeros(2, 2),), False) is answer
    assert asked == [module]


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DLAS_CACHE", str(tmp_path / "file" / "cache"))
    checkpoint(tmp_path / "net.pt", 5)
    assert load_model(tmp_path / "net.pt", architecture=NETWORK).source["architecture"] == NETWORK


def test_damaged_entry_is_made_again(tmp_path: Path, cache: Path, exports: list[nn.Module]) -> None:
    checkpoint(tmp_path / "net.pt", 6)
    before = load_model(tmp_path / "net.pt", architecture=NETWORK).to_bytes()
    stored = entry_of(cache)
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 0x20
    stored.write_bytes(content)
    assert load_model(tmp_path / "net.pt", architecture=NETWORK).to_bytes() == before
    assert load_model(tmp_path / "net.pt", architecture=NETWORK).to_bytes() == before
    assert len(exports) == 2


def test_wrong_entry_costs_time_only(
    tmp_path: Path, cache: Path, exports: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path / "net.pt", 7)
    before = load_model(tmp_path / "net.pt", architecture=NETWORK).to_bytes()
    original = _torch_skeleton._weights

    def confused(module: nn.Module) -> object:
        weights = original(module)
        return {name: array + array.dtype.type(1) for name, array in (weights or {}).items()}

    monkeypatch.setattr(_torch_skeleton, "_weights", confused)
    assert load_model(tmp_path / "net.pt", architecture=NETWORK).to_bytes() == before
    assert len(exports) == 2


def test_key_holds_options_shape_and_code(
    cache: Path, exports: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = architecture_for(NETWORK).build()
    for architecture, code in ((NETWORK, "a"), (NETWORK, "b"), ("digits-cnn", "b"), (NETWORK, "a")):
        monkeypatch.setattr(_torch_skeleton, "_code", lambda code=code: code)
        remembered(architecture)(module, (EXAMPLE,), False)
    assert len(exports) == 3
    remembered(NETWORK)(module, (torch.zeros(2, 1, 8, 8),), True)
    assert len(exports) == 4
    assert all(Cache().has(p.parent.name) for p in cache.rglob("graph.onnx"))


def test_code_of_others_is_exported_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from dlas.graph.formats import torch as reader

    assert remembered("package.module:function") is export
    assert remembered(NETWORK) is not export
    foreign: Registry[type] = Registry("architecture", "dlas.models.architectures")
    foreign.register("mine")(type("Mine", (), {"__module__": "somebody.else"}))
    monkeypatch.setattr(reader, "architectures", foreign)
    assert remembered("mine:width=2") is export


def test_an_entry_that_vanishes_while_it_is_read_is_not_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    key, has = "ab" * 32, Cache.has
    _torch_skeleton._write(key, {"facts.json": b"{}"})
    assert _torch_skeleton._read(key) == {"facts.json": b"{}"}

    def has_and_remove(cache: Cache, asked: str) -> bool:
        there = has(cache, asked)
        Cache().clear()
        return there

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "has", has_and_remove)
        assert _torch_skeleton._read(key) is None
    assert not Cache().has(key)
    _torch_skeleton._write(key, {})
    assert _torch_skeleton._read(key) is None
