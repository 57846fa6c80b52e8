"""Conversions of the embedded network with known faults, and rows for them, as files."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from dlas import api
from dlas.graph.model import Model
from dlas.verify.localize import edits
from dlas.verify.localize.network import named


@functools.cache
def source() -> Model:
    """The embedded network, which is right."""
    return api.load("digits-cnn")


def pads(graph: ir.Model) -> None:
    """Pads on one side only, as SAME does at even strides."""
    edits.set_attribute(graph, "conv3", ir.AttrInt64s("pads", [0, 0, 2, 2]), "pads")


def weights(graph: ir.Model) -> None:
    """The weights of one layer are too large."""
    value = edits.node_of(graph, "conv4").inputs[1]
    assert value is not None
    assert value.const_value is not None
    edits.set_input(graph, "conv4", 1, value.const_value.numpy() * np.float32(1.5))


def softmax(graph: ir.Model) -> None:
    """Probabilities where the source gives logits: no label changes."""
    edits.insert_after(graph, "linear", "Softmax", {"axis": -1})


def conversion(*faults: Callable[[ir.Model], None]) -> Model:
    """The network with these faults."""
    graph = source().editable()
    named(graph)
    for fault in faults:
        fault(graph)
    return Model(graph, "target", source().preprocessing)


def write(path: Path, model: Model) -> Path:
    """The network as a file."""
    path.write_bytes(model.to_bytes())
    return path


def write_rows(path: Path, count: int = 40) -> Path:
    """Digits as a data set of rows that the network takes as they are."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images[:count, None] / 16).astype(np.float32)
    np.savez(path, x=images, y=found.target[:count].astype(np.int64))
    return path


def answers(path: Path, rows: Path) -> np.ndarray:
    """What ONNX Runtime gives for the rows."""
    import onnxruntime as ort

    session = ort.InferenceSession(onnx.load(path).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.load(rows)["x"]})[0]


def write_all(folder: Path) -> None:
    """The source, a sound conversion, faulty ones, and rows."""
    write(folder / "source.onnx", source())
    for name, faults in {
        "same": (),
        "pads": (pads,),
        "softmax": (softmax,),
        "two": (weights, softmax),
    }.items():
        write(folder / f"{name}.onnx", conversion(*faults))
    write_rows(folder / "rows.npz")


def called_here(function: str, *given: Any, **_: Any) -> Any:
    """Stands for a worker: calls ``package.module:function`` in this process."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*given)
