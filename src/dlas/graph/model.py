"""Model: a network with its signature, its preprocessing and its history.

The graph is ONNX held by onnx-ir. A Model is never changed in place: a step works on :meth:`Model.editable` and
returns :meth:`Model.with_step`, which is the same network with one more line of history. History, preprocessing and
source are stored in the ONNX metadata, so a saved model can say how it was made.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from dlas.core.errors import ModelError, OptionError, ShapeError
from dlas.graph.preprocessing import Preprocessing

OPSET = 18  # what importers and methods write; every back end of the package reads it
NEWEST_IR = 13  # version of the file format: ONNX Runtime 1.31 reads no newer one, and nothing here needs it
_META = "dlas."


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of an input or output.

    Attributes:
        name: Tensor name.
        shape: Sizes; a string is a dynamic dimension by that name.
        dtype: NumPy name of the dtype (``float32``, ``int8``).
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    @property
    def is_dynamic(self) -> bool:
        """Whether any dimension is not a number."""
        return any(isinstance(d, str) for d in self.shape)

    def bound(self, batch: int) -> tuple[int, ...]:
        """Shape with the leading dimension set to ``batch``; raises ShapeError if another one is dynamic."""
        if any(isinstance(d, str) for d in self.shape[1:]):
            raise ShapeError(
                f"{self.name}: shape {list(self.shape)} has dynamic dimensions beyond the batch",
                "bind them first, for example with `--shape NAME=1,3,32,32`",
            )
        return tuple(batch if i == 0 and isinstance(d, str) else int(d) for i, d in enumerate(self.shape))


@dataclass(frozen=True)
class Step:
    """One line of history: what was done, with every option and seed, and by which versions."""

    action: str
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "action": self.action,
            "options": dict(self.options),
            "versions": dict(self.versions),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Step:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: It is of another form.
        """
        action, notes = fields.get("action"), fields.get("notes", [])
        options, versions = fields.get("options", {}), fields.get("versions", {})
        if not isinstance(action, str) or not isinstance(options, dict) or not isinstance(versions, dict):
            raise ValueError("a step of the history has no action, or options that are no table")
        if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
            raise ValueError(f"the notes on {action[:40]!r} are not a list of texts")
        return cls(action, options, {str(k): str(v) for k, v in versions.items()}, tuple(notes))


@dataclass(frozen=True, eq=False)
class Model:
    """A network.

    Attributes:
        ir: The graph. Treat it as frozen; take :meth:`editable` to work on it.
        name: Short name for tables and files.
        preprocessing: What a sample must go through first; None when unknown.
        source: Where it came from: ``format``, ``path`` (file name only), ``sha256``, ``framework``.
        history: Steps done to it since import, oldest first.
        torch_module: The ``torch.nn.Module`` it was exported from, while the weights of both still agree.
    """

    ir: ir.Model = field(repr=False)
    name: str = "model"
    preprocessing: Preprocessing | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    history: tuple[Step, ...] = ()
    torch_module: Any = field(default=None, repr=False)

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto, name: str = "model", **fields: Any) -> Model:
        """Wrap an ONNX protobuf, reading back what an earlier dlas stored in its metadata."""
        graph = ir.from_proto(proto)
        stored = {
            key[len(_META) :]: graph.metadata_props.pop(key)
            for key in list(graph.metadata_props)
            if key.startswith(_META)
        }
        try:
            if "preprocessing" in stored:
                fields.setdefault(
                    "preprocessing", Preprocessing.from_dict(json.loads(stored["preprocessing"]))
                )
            if "source" in stored:
                read = json.loads(stored["source"])
                fields["source"] = {
                    **{str(k): str(v) for k, v in read.items()},
                    **fields.get("source", {}),
                }
            if "history" in stored:
                past = tuple(Step.from_dict(s) for s in json.loads(stored["history"]))
                fields["history"] = (*past, *fields.get("history", ()))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OptionError) as error:
            raise ModelError(
                f"the dlas.* metadata of this ONNX file cannot be read: {error}",
                "save the model again, or remove those metadata entries",
            ) from error
        # What a file calls itself becomes part of file names.
        return cls(graph, _file_name(stored["name"]) if "name" in stored else name, **fields)

    def to_proto(self) -> onnx.ModelProto:
        """The network as an ONNX protobuf, with history, preprocessing and source in its metadata."""
        proto = ir.to_proto(self.ir)
        stored = {"name": self.name, "source": json.dumps(dict(self.source), sort_keys=True)}
        if self.preprocessing is not None:
            stored["preprocessing"] = self.preprocessing.to_json()
        if self.history:
            stored["history"] = json.dumps([s.to_dict() for s in self.history], sort_keys=True)
        onnx.helper.set_model_props(
            proto,
            {**{p.key: p.value for p in proto.metadata_props}, **{_META + k: v for k, v in stored.items()}},
        )
        return proto

    def to_bytes(self) -> bytes:
        """The ONNX file as bytes (deterministic)."""
        return self.to_proto().SerializeToString(deterministic=True)

    def editable(self) -> ir.Model:
        """A copy of the graph that may be changed; weights are shared until replaced."""
        return self.ir.clone()

    def with_step(self, graph: ir.Model, step: Step, **changes: Any) -> Model:
        """This model with another graph and one more line of history; the torch module is dropped unless given."""
        changes.setdefault("torch_module", None)
        return replace(self, ir=graph, history=(*self.history, step), **changes)

    def renamed(self, name: str) -> Model:
        """The same network under another name (characters unfit for file names become ``-``)."""
        return replace(self, name=_file_name(name))

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that a caller must feed, in order."""
        return tuple(_spec(v) for v in self.ir.graph.inputs if v.name not in self.ir.graph.initializers)

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs, in order."""
        return tuple(_spec(v) for v in self.ir.graph.outputs)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of graph, weights and preprocessing; history and name do not count."""
        proto = ir.to_proto(self.ir)
        del proto.metadata_props[:]
        proto.doc_string = ""
        digest = hashlib.sha256(proto.SerializeToString(deterministic=True))
        if self.preprocessing is not None:
            digest.update(self.preprocessing.to_json().encode())
        return digest.hexdigest()

    @cached_property
    def initializers(self) -> dict[str, np.ndarray]:
        """Weights and other constants stored in the graph, by name."""
        return {
            name: value.const_value.numpy()
            for name, value in self.ir.graph.initializers.items()
            if value.const_value is not None
        }

    def check_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Raise ShapeError unless ``inputs`` has the names, shapes and dtypes the network declares."""
        names = [s.name for s in self.inputs]
        if set(inputs) != set(names):
            raise ShapeError(f"inputs {sorted(inputs)} were given, the network has {names}")
        for spec in self.inputs:
            array = inputs[spec.name]
            fits = len(array.shape) == len(spec.shape) and all(
                isinstance(d, str) or d == got for d, got in zip(spec.shape, array.shape, strict=True)
            )
            if not fits or array.dtype.name != spec.dtype:
                raise ShapeError(
                    f"input {spec.name!r} is {array.dtype.name}{list(array.shape)}, "
                    f"the network expects {spec.dtype}{list(spec.shape)}"
                )


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+=-]+", "-", text).strip("-")[:100] or "model"


def _spec(value: ir.Value) -> TensorSpec:
    if value.shape is None or value.dtype is None:
        raise ModelError(f"tensor {value.name!r} has no shape or dtype", "run shape inference on the file")
    shape: list[int | str] = []
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, int):
            shape.append(dim)
        else:
            shape.append(str(dim.value) if dim.value is not None else f"dim{axis}")
    return TensorSpec(str(value.name), tuple(shape), value.dtype.numpy().name)


def step_versions(*distributions: str) -> dict[str, str]:
    """Versions of dlas and of the named distributions, for :class:`Step`."""
    import dlas
    from dlas.core.lazy import distribution_version

    return {"dlas": dlas.__version__, **{d: distribution_version(d) for d in distributions}}
