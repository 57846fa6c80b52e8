"""safetensors: read as it is written, bounded whatever it says, and a network where the architecture is known."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlas.core.errors import ModelError, UnknownNameError, UnsupportedError
from dlas.graph.format import format_for, load_model
from dlas.graph.formats import safetensors as reader
from dlas.graph.weights import WeightTensor

NUMPY = {name: code for name, (_, code) in reader.TYPES.items() if code}


def packed(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2,), begin: int = 0, end: int = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def file_of(arrays: dict[str, np.ndarray], **header: Any) -> bytes:
    codes = {np.dtype(code): name for name, code in NUMPY.items()}
    data = b""
    for name, array in arrays.items():
        header[name] = entry(codes[array.dtype], array.shape, len(data), len(data) + array.nbytes)
        data += array.tobytes()
    return packed(header, data)


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    return path


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.data())
def test_any_sound_file_is_read(drawn: st.DataObject, tmp_path: Path) -> None:
    names = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=12)
    arrays = {}
    for name in drawn.draw(st.lists(names.filter(lambda n: n != "__metadata__"), unique=True, max_size=5)):
        dtype, shape = drawn.draw(st.sampled_from([*NUMPY.values()])), drawn.draw(st.lists(st.integers(0, 4)))
        raw = np.random.default_rng(len(name)).integers(0, 2, int(np.prod(shape[:6])))
        arrays[name] = raw.reshape(shape[:6]).astype(dtype)
    texts = drawn.draw(st.dictionaries(names, names, max_size=3))
    found = reader.read_contents(written(tmp_path, file_of(arrays, __metadata__=texts)))
    assert found.weights.metadata == texts
    assert {t.name: (t.shape, t.nbytes) for t in found.weights.tensors} == {
        n: (a.shape, a.nbytes) for n, a in arrays.items()
    }
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.tensor(name), array)
        assert found.tensor(name).dtype == array.dtype


def test_types_numpy_does_not_have_are_listed(tmp_path: Path) -> None:
    import torch

    values = torch.randn(5, dtype=torch.bfloat16)
    header = {"half": entry("BF16", (5,), 0, 10), "q": entry("F4", (4, 2), 10, 14)}
    path = written(tmp_path, packed(header, values.view(torch.uint8).numpy().tobytes() + b"\x12" * 4))
    found = reader.read_contents(path)
    assert found.weights.tensors[1] == WeightTensor("q", (4, 2), "F4", 4)
    assert found.weights.tensors[1].bits_per_weight == 4
    np.testing.assert_array_equal(found.tensor("half"), values.float().numpy())
    with pytest.raises(UnsupportedError, match="'q' is F4"):
        found.tensor("q")
    with pytest.raises(UnknownNameError, match="did you mean 'half'"):
        found.tensor("halve")


HOSTILE: dict[str, tuple[bytes, str]] = {
    "header beyond the file": ((2**60).to_bytes(8, "little") + b"{}", "truncated|no safetensors"),
    "header too large": (packed(b"{" + b" " * reader.MAX_HEADER), "at most|no safetensors"),
    "no JSON": (packed(b"{]"), "not valid JSON"),
    "not UTF-8": (packed(b'{"\xff": 1}'), "not valid JSON"),
    "a list": (packed(b"[ ]"), "not a JSON object|no safetensors"),
    "deep": (packed(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "JSON"),
    "infinity": (packed(b'{"w":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,0]}}'), "whole number"),
    "long number": (packed(b'{"w":{"shape":[' + b"9" * 10_000 + b"]}}"), "JSON"),
    "fraction": (packed(b'{"w":{"dtype":"F32","shape":[1.5],"data_offsets":[0,6]}}'), "whole number"),
    "twice": (packed(b'{"w":1,"w":2}'), "twice"),
    "no entry": (packed({"w": 5}), "needs dtype"),
    "surplus key": (packed({"w": {**entry(), "code": "x"}}, b"\0" * 8), "nothing else"),
    "type": (packed({"w": entry("Q4_K")}, b"\0" * 8), "unknown type 'Q4_K'"),
    "type a list": (packed({"w": {**entry(), "dtype": []}}, b"\0" * 8), "unknown type"),
    "negative axis": (packed({"w": entry(shape=(-1, -2))}, b"\0" * 8), "the shape"),
    "huge axes": (packed({"w": entry(shape=(0, 2**62, 2**62), end=0)}), "the shape"),
    "many axes": (packed({"w": entry(shape=(1,) * 99, end=4)}, b"\0" * 4), "the shape"),
    "truth for a size": (packed({"w": {**entry(), "shape": [True]}}, b"\0" * 8), "the shape"),
    "range backwards": (packed({"w": entry(begin=8, end=0)}, b"\0" * 8), "byte range"),
    "range of three": (packed({"w": {**entry(), "data_offsets": [0, 4, 8]}}, b"\0" * 8), "byte range"),
    "range too short": (packed({"w": entry(end=4)}, b"\0" * 4), "ask for 8"),
    "beyond the file": (packed({"w": entry(shape=(2**40,), end=2**42)}, b"\0" * 8), "the file has 8"),
    "gap": (packed({"w": entry(begin=8, end=16)}, b"\0" * 16), "starts at 8"),
    "overlap": (packed({"w": entry(), "v": entry(begin=4, end=12)}, b"\0" * 12), "starts at 4"),
    "left over": (packed({"w": entry()}, b"\0" * 9), "the file has 9"),
    "control characters": (packed({"w\x1b[2J": entry()}, b"\0" * 8), "control"),
    "half a surrogate pair": (packed(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "control"),
    "texts": (packed({"__metadata__": {"a": 1}}), "table of texts"),
    "cut": (packed({"w": entry()}, b"\0" * 7), "the file has 7"),
    "five bytes": (b"\5\0\0\0\0", "truncated|no safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_one_quick_line(tmp_path: Path, what: str) -> None:
    content, match = HOSTILE[what]
    path = written(tmp_path, content)
    began = time.perf_counter()
    for read in (reader.Safetensors.weights, load_model):
        with pytest.raises(ModelError, match=match) as caught:
            read(path)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
    assert time.perf_counter() - began < 2


def test_a_known_architecture_is_a_network(tmp_path: Path) -> None:
    import torch

    from dlas.graph.reference import predict
    from dlas.models.architecture import architecture_for

    torch.manual_seed(0)
    architecture = architecture_for("digits-cnn")
    module = architecture.build()
    arrays = {f"module.{k}": v.numpy() for k, v in module.state_dict().items()}
    path = written(tmp_path, file_of(arrays, __metadata__={"format": "pt"}))
    assert format_for(path) is reader.Safetensors
    model = load_model(path)
    assert model.source["format"] == model.history[0].options["format"] == "safetensors"
    assert model.source["architecture"] == "digits-cnn"
    x = np.random.default_rng(0).standard_normal((2, *architecture.input_shape)).astype(np.float32)
    with torch.no_grad():
        wanted = module(torch.tensor(x)).numpy()
    np.testing.assert_allclose(predict(model, x), wanted, rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match="does not fit"):
        load_model(path, architecture="cifar-resnet:depth=32")


def test_an_unknown_one_says_what_else_can_be_done(tmp_path: Path) -> None:
    path = written(tmp_path, file_of({"w": np.zeros((2, 3), np.float32)}))
    with pytest.raises(ModelError, match=r"fit no known architecture.*dlas info"):
        load_model(path)
    path = written(tmp_path, file_of({"w": np.full(3, np.nan, np.float32)}))
    with pytest.raises(ModelError, match="'w' holds NaN"):
        load_model(path)
