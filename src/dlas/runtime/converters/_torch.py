"""PyTorch's exporters; called in a worker."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.core.lazy import distribution_version
from dlas.graph.format import load_model

if TYPE_CHECKING:
    import torch
    from torch import nn


def dynamo(source: str, target: str, architecture: str, opset: int) -> dict[str, str]:
    """Write ``target`` with the exporter based on torch.export; batch 1."""
    _export(source, target, architecture, dynamo=True, opset_version=opset, external_data=False)
    return _versions("torch", "onnx", "onnxscript", "onnx-ir")


def legacy(source: str, target: str, architecture: str, opset: int) -> dict[str, str]:
    """Write ``target`` with the exporter based on TorchScript; batch 1."""
    _export(source, target, architecture, dynamo=False, opset_version=opset)
    return _versions("torch", "onnx")


def program(source: str, target: str, architecture: str) -> None:
    """Hand a network over: as an exported program (``.pt2``), or traced, with its shapes in a file beside it."""
    import torch

    module, examples = _module(source, architecture)
    if target.endswith(".pt2"):
        torch.export.save(torch.export.export(module, examples), target)
        return
    traced: Any = torch.jit.trace(module, examples)
    traced.save(target)
    shapes = [list(e.shape) for e in examples]
    Path(target).with_suffix(".json").write_text(json.dumps(shapes))


def _export(source: str, target: str, architecture: str, **options: Any) -> None:
    import torch

    module, examples = _module(source, architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, examples, target, **options)


def _module(source: str, architecture: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    import torch

    model = load_model(Path(source), **({"architecture": architecture} if architecture else {}))
    module = model.torch_module
    if module is None:
        raise UnsupportedError(f"{Path(source).name}: no torch module came with it")
    with contextlib.suppress(NotImplementedError):  # an exported program has no modes
        module.eval()
    arrays = [np.zeros(spec.bound(1), spec.dtype) for spec in model.inputs]
    return module, tuple(torch.from_numpy(a) for a in arrays)


def _versions(*distributions: str) -> dict[str, str]:
    return {name: distribution_version(name) for name in distributions}
