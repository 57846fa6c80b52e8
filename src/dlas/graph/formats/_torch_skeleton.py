"""Exported graphs of registered architectures, kept without their weights.

PyTorch takes seconds to export a network, and for one architecture with one set of options it always gives the same
graph, because it traces shapes, not values. So the graph is cached by content, and the weights of a checkpoint are put
into it by name. That nothing of the weights is left in it (as a folded constant, or because a rule fired on a weight
that happened to be 1) is not believed but tried once: the graph is tidied again with other weights. A traced graph is
never tidied, and nothing in it is computed from weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

import dlas
from dlas.core.cache import Cache, key_of
from dlas.core.errors import DlasError
from dlas.graph.model import OPSET, step_versions
from dlas.graph.torch_export import Exported, Exporter, export, export_raw, finished, tidied

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("dlas")

Weights = Mapping[str, np.ndarray]
_GRAPH, _FACTS = "graph.onnx", "facts.json"
_LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxscript", "numpy")
_OURS = "dlas.models."
_DECIDE = (
    "models/**/*.py",
    "graph/torch_export.py",
    "graph/torch_trace/*.py",
    "graph/torch_ops/table.py",
    "graph/passes.py",
    "graph/rewriting.py",
    "graph/formats/_torch_skeleton.py",
)


def remembered(architecture: str) -> Exporter:
    """An exporter that asks PyTorch once per architecture; to others than those of dlas itself, the plain one.

    A cache that cannot be read or written costs time, never the import.

    Args:
        architecture: Registered name with its options, as ``spelled()`` gives it.
    """
    from dlas.graph.formats.torch import architectures

    name = architecture.partition(":")[0]
    # What code of others depends on is not known here.
    if name not in architectures.names() or not architectures.get(name).__module__.startswith(_OURS):
        return export

    def exporter(module: nn.Module, examples: tuple[torch.Tensor, ...], fixed_batch: bool) -> Exported:
        weights = _weights(module)
        if weights is None:
            return export(module, examples, fixed_batch)
        shapes = [[str(e.dtype), *e.shape] for e in examples]
        key = key_of(
            "torch skeleton", architecture, shapes, fixed_batch, OPSET, step_versions(*_LIBRARIES), _code()
        )
        kept = _read(key)
        if kept is not None:
            return _filled(kept, weights) or export(module, examples, fixed_batch)
        raw = export_raw(module, examples, fixed_batch)
        exported = finished(raw)
        _write(key, _stripped(raw, exported, weights))
        return exported

    return exporter


def _weights(module: nn.Module) -> Weights | None:
    """Copies of all tensors of the module; None where one has a dtype that NumPy lacks."""
    try:
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}
    except TypeError:
        return None


def _stripped(raw: Exported, exported: Exported, weights: Weights) -> dict[str, bytes]:
    """Files of the cache entry: graph and facts, or facts alone where the graph depends on the weights."""
    graph, names = _without(exported.graph, weights)
    facts = {"weights": names, "dynamic": raw.dynamic, "traced": raw.traced, "reason": raw.reason}
    if not raw.traced and not _independent(raw.graph, weights, (graph, names)):
        return {_FACTS: b"{}"}
    return {_GRAPH: graph, _FACTS: json.dumps(facts).encode()}


def _independent(raw: ir.Model, weights: Weights, bare: tuple[bytes, list[str]]) -> bool:
    """Whether the graph is the same one, tidied with other weights."""
    rng = np.random.default_rng(0)
    others = {name: _other(array, rng) for name, array in weights.items()}
    changed = raw.clone()
    for name, value in changed.graph.initializers.items():
        if name in others:
            value.const_value = ir.Tensor(others[name], name=name)
    return _without(tidied(changed), others) == bare


def _without(graph: ir.Model, weights: Weights) -> tuple[bytes, list[str]]:
    """The graph without the bytes of the initializers that are tensors of the module, and their names."""
    proto = ir.to_proto(graph)
    names = []
    for tensor in proto.graph.initializer:
        value = graph.graph.initializers[tensor.name].const_value
        if value is not None and _same(value.numpy(), weights.get(tensor.name)):
            names.append(tensor.name)
            bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            tensor.CopyFrom(bare)
    return proto.SerializeToString(deterministic=True), names


def _same(array: np.ndarray, weight: np.ndarray | None) -> bool:
    return weight is not None and array.dtype == weight.dtype and np.array_equal(array, weight)


def _other(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if array.dtype.kind == "f":
        return rng.normal(size=array.shape).astype(array.dtype)
    return ~array if array.dtype.kind == "b" else array + array.dtype.type(1)


def _filled(files: Mapping[str, bytes], weights: Weights) -> Exported | None:
    """The graph with the weights put in; None where the entry says that this cannot be done."""
    facts = json.loads(files[_FACTS])
    if not facts:
        return None
    graph = ir.from_proto(onnx.ModelProto.FromString(files[_GRAPH]))
    for name in facts["weights"]:
        graph.graph.initializers[name].const_value = ir.Tensor(weights[name], name=name)
    return Exported(graph, facts["dynamic"], facts["traced"], facts["reason"])


class _AbsentError(Exception):
    """The cache has no entry for a key."""


def _absent(_: Path) -> None:
    raise _AbsentError


def _read(key: str) -> dict[str, bytes] | None:
    """The files of an entry; None where there is none, or one that says nothing."""
    try:
        kept = Cache()
        if not kept.has(key):
            return None
        # Somebody may remove it here: nothing is then made in its place.
        folder = kept.folder(key, _absent)
        files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name in (_GRAPH, _FACTS)}
        return files if _FACTS in files else None
    except _AbsentError:
        return None
    except (DlasError, OSError) as error:
        log.debug("the cache cannot be read: %s", error)
        return None


def _write(key: str, files: Mapping[str, bytes]) -> None:
    def fill(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(content)

    try:
        Cache().folder(key, fill)
    except (DlasError, OSError) as error:
        log.debug("the cache cannot be written: %s", error)


@cache
def _code() -> str:
    """Hash of the source that decides what is exported."""
    root = Path(dlas.__file__).parent
    digest = hashlib.sha256()
    for place in sorted(p for pattern in _DECIDE for p in root.glob(pattern)):
        content = place.read_bytes()
        digest.update(f"{place.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
