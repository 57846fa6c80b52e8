"""Small sound files of every kind that dlas reads, for mutation.

Formats that can be written give their own files of the tiny networks of ``dlas.testing.models``; the rest are made
here. Real files of up to ``REAL_BYTES`` are added where their folder is known.
"""

from __future__ import annotations

import io
import json
import sqlite3
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlas.graph.format import formats
from dlas.graph.model import Step
from dlas.testing import models

REAL_BYTES = 400_000
_SIDE = 12


@dataclass(frozen=True)
class Seed:
    """A sound file.

    Attributes:
        target: What reads it: the registered name of a format, or ``npz``, ``parquet``, ``image``, ``stack`` or
            ``study``.
        suffix: Ending of the file, with the dot.
        name: What it is, in a word.
        data: Its content.
    """

    target: str
    suffix: str
    name: str
    data: bytes


def make(folder: Path, real: Path | None = None) -> list[Seed]:
    """All seeds, in a fixed order.

    Args:
        folder: Empty folder to write into.
        real: Folder with real model files, searched for small ones.
    """
    found: list[Seed] = []
    for name, member in formats.members():
        extra = _EXTRA.get(name)
        if member.can_write and not member.missing():
            found += _written(name, member, folder)
        if extra is not None:
            found += [Seed(name, suffix, word, data) for suffix, word, data in extra(folder)]
        found += _real(name, member.suffixes, real)
    for target, suffix, word, maker in _OTHERS:
        found.append(Seed(target, suffix, word, maker(folder)))
    return found


def _written(name: str, member: Any, folder: Path) -> list[Seed]:
    suffix = member.suffixes[0]
    found = []
    for form in (models.residual, models.residual_quantized, models.residual_half, models.residual_nhwc):
        model = form()
        model = model.with_step(model.editable(), Step("try", {"seed": 3}, {"dlas": "0"}, ("a note",)))
        path = member().save(model, folder / f"{form.__name__}{suffix}").path
        if path.is_file():
            found.append(Seed(name, suffix, form.__name__, path.read_bytes()))
    return found


def _real(name: str, suffixes: tuple[str, ...], real: Path | None) -> list[Seed]:
    if real is None:
        return []
    files = sorted(p for p in real.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    return [
        Seed(name, p.suffix.lower(), p.stem, p.read_bytes()) for p in files if p.stat().st_size <= REAL_BYTES
    ]


def _onnx(folder: Path) -> list[tuple[str, str, bytes]]:
    """Functions, old opsets, constants as nodes, shape arithmetic, QOperator form."""
    rng = np.random.default_rng(0)
    return [
        (".onnx", "shaping", _shaping()),
        (".onnx", "opset9", _old_opset(rng)),
        (".onnx", "qoperator", _quantised(rng)),
        (".onnx", "functions", _functions()),
    ]


def _onnx_bytes(nodes: list[Any], weights: dict[str, Any], opset: int, **fields: Any) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), *fields.pop("domains", ())]
    return helper.make_model(made, opset_imports=opsets, ir_version=8, **fields).SerializeToString()


def _shaping() -> bytes:
    from onnx import numpy_helper
    from onnx.helper import make_node as node

    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Concat", ["n", "rest"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["r"]),
        node("Pad", ["r", "pads"], ["p"]),
        node("Slice", ["p", "starts", "ends", "axes"], ["c"]),
        node("ConstantOfShape", ["four"], ["k"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        node("Expand", ["k", "wide"], ["e"]),
        node("Add", ["c", "e"], ["a"]),
        node("Resize", ["a", "", "scales"], ["z"], mode="nearest"),
        node("Transpose", ["z"], ["t"], perm=[0, 2, 3, 1]),
        node("Tile", ["t", "twice"], ["l"]),
        node("ReduceMean", ["l", "axes"], ["y"]),
    ]
    ints = {
        "zero": [0], "rest": [4, 4, 4], "pads": [0, 0, 1, 1, 0, 0, 1, 1], "starts": [1], "ends": [5], "axes": [2],
        "four": [4], "wide": [4, 6], "twice": [1, 1, 2, 1],
    }  # fmt: skip
    constants = {n: np.array(v, np.int64) for n, v in ints.items()} | {
        "scales": np.array([1, 1, 2, 2], np.float32)
    }
    return _onnx_bytes(nodes, constants, 18)


def _old_opset(rng: np.random.Generator) -> bytes:
    from onnx.helper import make_node as node

    nodes = [
        node("Conv", ["x", "w", "b"], ["h"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Upsample", ["h", "up"], ["u"], mode="nearest"),
        node("Unsqueeze", ["u"], ["q"], axes=[1]),
        node("ReduceSum", ["q"], ["f"], axes=[1], keepdims=0),
        node("BatchNormalization", ["f", "b", "b", "b", "v"], ["y"]),
    ]
    weights = {
        "w": rng.standard_normal((4, 4, 3, 3)).astype(np.float32),
        "b": np.ones(4, np.float32),
        "v": np.ones(4, np.float32),
        "up": np.array([1, 1, 2, 2], np.float32),
    }
    return _onnx_bytes(nodes, weights, 9)


def _quantised(rng: np.random.Generator) -> bytes:
    from onnx.helper import make_node as node

    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("QLinearConv", ["xq", "s", "z", "wq", "s", "wz", "s", "z"], ["h"], kernel_shape=[1, 1]),
        node("DequantizeLinear", ["h", "s", "z"], ["y"]),
    ]
    weights = {
        "s": np.float32(0.1), "z": np.uint8(128), "wz": np.int8(0),
        "wq": rng.integers(-127, 127, (4, 4, 1, 1)).astype(np.int8),
    }  # fmt: skip
    return _onnx_bytes(nodes, weights, 13)


def _functions() -> bytes:
    from onnx.helper import make_function, make_opsetid
    from onnx.helper import make_node as node

    body = [node("Mul", ["a", "a"], ["m"]), node("Relu", ["m"], ["b"])]
    own = make_function("own", "Square", ["a"], ["b"], body, [make_opsetid("", 18)])
    nodes = [node("Square", ["x"], ["h"], domain="own"), node("Square", ["h"], ["y"], domain="own")]
    return _onnx_bytes(nodes, {}, 18, domains=[make_opsetid("own", 1)], functions=[own])


def _torch(folder: Path) -> list[tuple[str, str, bytes]]:
    import torch
    from torch import nn

    from dlas.models.architecture import architecture_for

    torch.manual_seed(0)
    state = {"state_dict": architecture_for("digits-cnn:width=2").build().state_dict(), "epoch": 3}
    zipped, old = io.BytesIO(), io.BytesIO()
    torch.save(state, zipped)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    ).eval()
    program = io.BytesIO()
    shapes = ({0: torch.export.Dim("b")},)
    torch.export.save(torch.export.export(net, (torch.randn(2, 1, 4, 4),), dynamic_shapes=shapes), program)
    return [
        (".pth", "checkpoint", zipped.getvalue()),
        (".th", "old-checkpoint", old.getvalue()),
        (".pt2", "program", program.getvalue()),
    ]


def _gguf(folder: Path) -> list[tuple[str, str, bytes]]:
    from dlas.core.lazy import optional_import

    gguf = optional_import("gguf", extra="dev", needed_for="making a GGUF file")
    path = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_name("tiny")
    writer.add_token_list(["<s>", "a", "b"])
    writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float32))
    writer.add_tensor("output.weight", np.ones((3, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [(".gguf", "tiny", path.read_bytes())]


def _safetensors(folder: Path) -> list[tuple[str, str, bytes]]:
    weights = {"conv.weight": np.ones((4, 3, 3, 3), np.float32), "conv.bias": np.zeros(4, np.float32)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in weights.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    data = b"".join(a.tobytes() for a in weights.values())
    return [(".safetensors", "two-tensors", len(text).to_bytes(8, "little") + text + data)]


def _keras(folder: Path) -> list[tuple[str, str, bytes]]:
    from dlas.core.lazy import optional_import

    h5py = optional_import("h5py", extra="keras", needed_for="making a Keras file")
    dense = {"name": "dense", "trainable": True, "dtype": "float32", "units": 3, "activation": "softmax"}
    start = {"batch_input_shape": [None, 4], "batch_shape": [None, 4], "dtype": "float32", "name": "input"}
    config = {
        "class_name": "Sequential",
        "config": {
            "name": "net",
            "layers": [
                {"class_name": "InputLayer", "config": start},
                {"class_name": "Dense", "config": dense},
            ],
        },
    }
    found = []
    for version in ("2.15.0", "3.15.1"):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file.attrs["keras_version"], file.attrs["backend"] = version, "tensorflow"
            file.attrs["model_config"] = json.dumps(config)
            layer = file.create_group("model_weights").create_group("dense")
            layer.attrs["weight_names"] = [b"dense/kernel:0", b"dense/bias:0"]
            layer.create_dataset("dense/kernel:0", data=np.ones((4, 3), np.float32))
            layer.create_dataset("dense/bias:0", data=np.zeros(3, np.float32))
        found.append((".h5", f"keras-{version[0]}", buffer.getvalue()))
    weights, packed = io.BytesIO(), io.BytesIO()
    with h5py.File(weights, "w") as file:
        values = file.create_group("layers").create_group("dense").create_group("vars")
        values.create_dataset("0", data=np.ones((4, 3), np.float32))
        values.create_dataset("1", data=np.zeros(3, np.float32))
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("config.json", json.dumps({**config, "module": "keras", "registered_name": None}))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("model.weights.h5", weights.getvalue())
    found.append((".keras", "archive", packed.getvalue()))
    return found


_EXTRA: dict[str, Callable[[Path], list[tuple[str, str, bytes]]]] = {
    "onnx": _onnx,
    "torch": _torch,
    "gguf": _gguf,
    "safetensors": _safetensors,
    "keras": _keras,
}


# what is no network


def _npz(folder: Path) -> bytes:
    return _archive(np.savez)


def _npz_packed(folder: Path) -> bytes:
    return _archive(np.savez_compressed)


def _archive(write: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (6, 4, 4, 3), np.uint8)
    write(buffer, x=x, y=np.arange(6) % 3, classes=np.array(["a", "b", "c"]))
    return buffer.getvalue()


def _image(kind: str, **options: Any) -> Callable[[Path], bytes]:
    def made(folder: Path) -> bytes:
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        return buffer.getvalue()

    return made


def _parquet(folder: Path) -> bytes:
    from dlas.core.lazy import optional_import

    arrow = optional_import("pyarrow", extra="all", needed_for="making a Parquet file")
    parquet = optional_import("pyarrow.parquet", extra="all", needed_for="making a Parquet file")
    png = _image("PNG")(folder)
    table = arrow.table(
        {"image": [{"bytes": png, "path": f"{i}.png"} for i in range(4)], "label": [0, 1, 0, 1]}
    )
    names = {"info": {"features": {"label": {"names": ["a", "b"]}}}}
    buffer = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), buffer)
    return buffer.getvalue()


def _stack(folder: Path) -> bytes:
    from dlas.explore import spec

    return Path(spec.__file__).with_name("embedded.toml").read_bytes()


def _study(folder: Path) -> bytes:
    """A study file of three rows, its log merged into it."""
    from dlas.core.figure import Figure, Outcome, Record, Source
    from dlas.explore.result import Point
    from dlas.explore.storage import SqliteStorage

    path = folder / "study.db"
    storage = SqliteStorage(path)
    known = {
        "keys": ["k0", "k1", "k2"], "objectives": ["min:latency_ms", "max:top1"], "changes": {},
        "facts": {"model": "net", "dataset": "digits", "rows": 3, "notes": ["a"]}, "environment": {"cpu": "x"},
        "command": "dlas run", "stack": "[model]",
    }  # fmt: skip
    storage.put_study("main", known)
    for n in range(3):
        figures = {
            "latency_ms": Figure(0.1 + n, "ms", Source.MEASURED, 0.09, 4.0, 30),
            "top1": Figure(0.9 - n / 10, "fraction", Source.MEASURED),
        }
        record = Record(Outcome.OK, figures=figures)
        storage.put_point("main", Point(f"k{n}", {"compress": "none", "threads": "1"}, record, n == 0, 1.0))
    storage.close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode = DELETE")
    database.close()
    return path.read_bytes()


_OTHERS: tuple[tuple[str, str, str, Callable[[Path], bytes]], ...] = (
    ("npz", ".npz", "stored", _npz),
    ("npz", ".npz", "packed", _npz_packed),
    ("parquet", ".parquet", "images", _parquet),
    *(
        ("image", f".{kind.lower()}", kind.lower(), _image(kind))
        for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
    ),
    ("stack", ".toml", "embedded", _stack),
    ("study", ".db", "three-rows", _study),
)
