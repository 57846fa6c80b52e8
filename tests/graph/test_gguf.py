"""GGUF: read as the gguf package writes it, and bounded whatever the file says."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlas.core.errors import ModelError, UnknownNameError, UnsupportedError
from dlas.graph.format import format_for, load_model
from dlas.graph.formats import gguf as reader
from dlas.graph.formats._ggml import TYPES

peer = pytest.importorskip("gguf", reason="the gguf package is the yardstick here")

PLAIN = ("F32", "F16", "F64", "I8", "I16", "I32", "I64")
ORDERS = ("<", ">")


def text(value: str | bytes, order: str = "<") -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack(order + "Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, raw: bytes, order: str = "<") -> bytes:
    return text(key, order) + struct.pack(order + "I", kind) + raw


def described(
    name: str | bytes, sizes: tuple[int, ...], kind: int = 0, offset: int = 0, order: str = "<"
) -> bytes:
    axes = struct.pack(order + f"I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    return text(name, order) + axes


def packed(
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    order: str = "<",
) -> bytes:
    head = b"GGUF" + struct.pack(order + "IQQ", version, *(counts or (len(tensors), len(pairs))))
    head += b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "net.gguf"
    path.write_bytes(content)
    return path


def write_all(path: Path, big: bool) -> dict[str, Any]:
    """A file with every kind of value and tensor that the gguf package can write; returns what went in."""
    rng = np.random.default_rng(0)
    endian = peer.GGUFEndian.BIG if big else peer.GGUFEndian.LITTLE
    writer = peer.GGUFWriter(path, "llama", endianess=endian)
    values: dict[str, Any] = {
        "uint8": 200, "int8": -100, "uint16": 65_000, "int16": -30_000, "uint32": 2**32 - 1, "int32": -(2**31),
        "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 0.1, "bool": True, "string": "naïve ▁",
    }  # fmt: skip
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    lists = {
        "x.tokens": ["<s>", "▁a", ""],
        "x.scores": [0.5, -2.0],
        "x.flags": [True, False],
        "x.ids": [1, -2, 3],
        "x.nested": [[1, 2], [3, 4]],
    }
    for key, value in lists.items():
        writer.add_array(key, value)
    tensors: dict[str, np.ndarray] = {}
    for name in PLAIN:
        dtype = np.dtype(TYPES[peer.GGMLQuantizationType[name]].numpy)
        tensors[name] = rng.integers(-100, 100, (3, 5, 2)).astype(dtype)
    tensors["vector"] = np.arange(7, dtype=np.float32)
    for name, array in tensors.items():
        writer.add_tensor(name, array.copy())  # the writer swaps the bytes of what it is given
    for kind in peer.GGMLQuantizationType:
        ours = TYPES[kind.value]
        if ours.numpy or kind.name == "Q8_1":  # the package still has the older, larger Q8_1
            continue
        row = 2 * ours.nbytes
        tensors[kind.name] = rng.integers(0, 256, (3, row), dtype=np.uint8)
        writer.add_tensor(kind.name, tensors[kind.name].copy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    keys = {f"x.{k}": v for k, v in values.items()} | lists | {"general.architecture": "llama"}
    return {"metadata": keys, "tensors": tensors}


@pytest.mark.parametrize("big", [False, True])
def test_what_the_package_writes_is_read_equal(tmp_path: Path, big: bool) -> None:
    path = tmp_path / "all.gguf"
    wanted = write_all(path, big)
    found = reader.read_contents(path)
    assert found.big_endian is big
    metadata = {k: v for k, v in found.weights.metadata.items() if not k.startswith("GGUF.")}
    assert metadata == wanted["metadata"]
    assert [t.name for t in found.weights.tensors] == list(wanted["tensors"])
    for tensor in found.weights.tensors:
        array, ours = wanted["tensors"][tensor.name], TYPES_BY_NAME[tensor.dtype]
        got = reader.read_tensor(path, tensor.name)
        if tensor.dtype == "BF16":
            bits = array.view("u2").astype(np.uint32) if not big else array.view(">u2").astype(np.uint32)
            np.testing.assert_array_equal(got.view(np.uint32), bits << 16)
        else:
            np.testing.assert_array_equal(got, array)
            assert got.dtype == array.dtype
        assert tensor.nbytes == array.nbytes
        assert tensor.bits_per_weight == 8 * ours.nbytes / ours.block
    assert found.weights.nbytes == sum(a.nbytes for a in wanted["tensors"].values())


TYPES_BY_NAME = {t.name: t for t in TYPES.values()}


def test_the_types_are_those_of_the_package() -> None:
    for kind in peer.GGMLQuantizationType:
        block, nbytes = peer.GGML_QUANT_SIZES[kind]
        ours = TYPES[kind.value]
        assert ours.name == kind.name
        if kind.name != "Q8_1":  # two halves since 2023, which the package has not followed
            assert (ours.block, ours.nbytes) == (block, nbytes)


def test_real_blocks_have_the_rows_of_the_package(tmp_path: Path) -> None:
    path, array = tmp_path / "q.gguf", np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    writer = peer.GGUFWriter(path, "llama")
    blocks = peer.quants.quantize(array, peer.GGMLQuantizationType.Q8_0)
    writer.add_tensor("w", blocks, raw_dtype=peer.GGMLQuantizationType.Q8_0)
    halves = peer.quants.quantize(array, peer.GGMLQuantizationType.BF16)
    writer.add_tensor("b", halves, raw_dtype=peer.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    contents = reader.read_contents(path)
    assert contents.weights.tensors[0].shape == (4, 64)
    raw = contents.tensor("w")
    assert raw.shape == (4, 2 * 34)
    restored = peer.quants.dequantize(raw, peer.GGMLQuantizationType.Q8_0)
    assert np.abs(restored - array).max() < 0.02
    np.testing.assert_array_equal(
        contents.tensor("b"), peer.quants.dequantize(halves, peer.GGMLQuantizationType.BF16)
    )


SCALARS = {
    0: ("B", st.integers(0, 255)),
    1: ("b", st.integers(-128, 127)),
    2: ("H", st.integers(0, 2**16 - 1)),
    3: ("h", st.integers(-(2**15), 2**15 - 1)),
    4: ("I", st.integers(0, 2**32 - 1)),
    5: ("i", st.integers(-(2**31), 2**31 - 1)),
    6: ("f", st.floats(width=32, allow_nan=False)),
    7: ("?", st.booleans()),
    10: ("Q", st.integers(0, 2**64 - 1)),
    11: ("q", st.integers(-(2**63), 2**63 - 1)),
    12: ("d", st.floats(allow_nan=False)),
}


@st.composite
def value(draw: st.DrawFn, order: str, depth: int = 0) -> tuple[int, bytes, Any]:
    kind = draw(st.sampled_from([*SCALARS, 8] + ([9, 9] if depth < 3 else [])))
    if kind == 8:
        found = draw(st.text(st.characters(codec="utf-8"), max_size=8))
        return 8, text(found, order), found
    if kind != 9:
        code, numbers = SCALARS[kind]
        found = draw(numbers)
        return kind, struct.pack(order + code, found), found
    inner, raw, first = draw(value(order, depth + 1))
    count = draw(st.integers(0, 4))
    return 9, struct.pack(order + "IQ", inner, count) + raw * count, [first] * count


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.data())
def test_any_sound_file_is_read(drawn: st.DataObject, tmp_path: Path) -> None:
    order, version = drawn.draw(st.sampled_from(ORDERS)), drawn.draw(st.sampled_from((2, 3)))
    names = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=12)
    keys = drawn.draw(st.lists(names.map(lambda n: f"k.{n}"), unique=True, max_size=4))
    metadata, pairs = {}, []
    for key in keys:
        kind, raw, found = drawn.draw(value(order))
        metadata[key] = found
        pairs.append(pair(key, kind, raw, order))
    alignment = 2 ** drawn.draw(st.integers(3, 8))
    pairs.append(pair("general.alignment", 4, struct.pack(order + "I", alignment), order))
    infos, arrays, data = [], {}, b""
    shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)
    for name in drawn.draw(st.lists(names, unique=True, max_size=4)):
        kind = drawn.draw(st.sampled_from([n for n, t in TYPES.items() if t.numpy]))
        shape, dtype = drawn.draw(shapes), np.dtype(TYPES[kind].numpy)
        arrays[name] = np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)
        infos.append(described(name, shape[::-1], kind, len(data), order))
        data += arrays[name].astype(dtype.newbyteorder(order)).tobytes()
        data += b"\0" * (-len(data) % alignment)
    head = b"GGUF" + struct.pack(order + "IQQ", version, len(infos), len(pairs)) + b"".join([*pairs, *infos])
    path = written(tmp_path, head + b"\0" * (-len(head) % alignment) + data)
    found = reader.read_contents(path)
    assert dict(found.weights.metadata) == {**metadata, "general.alignment": alignment}
    for name, array in arrays.items():
        got = found.tensor(name)
        np.testing.assert_array_equal(got, array)
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
    if order == "<":  # and the package agrees that this is a sound file
        theirs = {t.name: t for t in peer.GGUFReader(path).tensors}
        assert set(theirs) == set(arrays)


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 0, 1) + b"\0"


BYTE = struct.pack("<IQ", 0, 2**60)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "tensor count": (packed(counts=(2**60, 0)), "claims"),
    "key count": (packed(counts=(0, 2**60)), "claims"),
    "most keys": (packed(counts=(0, 10**8), data=b"\0" * 2**20), "claims"),
    "key length": (packed((struct.pack("<Q", 2**60),), counts=(0, 1), data=b"\0" * 64), "truncated"),
    "string length": (packed((pair("k", 8, struct.pack("<Q", 2**63)),)), "truncated"),
    "array length": (packed((pair("k", 9, BYTE),)), "claims"),
    "array length of strings": (packed((pair("k", 9, struct.pack("<IQ", 8, 2**61)),)), "claims"),
    "deep arrays": (packed((pair("k", 9, nested(1000)),)), "deep"),
    "value type": (packed((pair("k", 13, b"\0" * 8),)), "unknown value type 13"),
    "array of an unknown type": (packed((pair("k", 9, struct.pack("<IQ", 99, 3) + b"\0" * 9),)), "unknown"),
    "truth value": (packed((pair("k", 7, b"\x02"),)), "0 or 1"),
    "key twice": (packed((pair("k", 0, b"\0"), pair("k", 0, b"\0"))), "twice"),
    "key not UTF-8": (packed((pair(b"\xff\xfe", 0, b"\0"),)), "UTF-8"),
    "key with controls": (packed((pair("a\x1b[2Jb", 0, b"\0"),)), "control"),
    "alignment 0": (packed((pair("general.alignment", 4, b"\0" * 4),)), "power of two"),
    "alignment 24": (packed((pair("general.alignment", 4, struct.pack("<I", 24)),)), "power of two"),
    "alignment truth": (packed((pair("general.alignment", 7, b"\1"),)), "power of two"),
    "alignment text": (packed((pair("general.alignment", 8, text("32")),)), "power of two"),
    "tensor beyond the file": (packed((), (described("w", (2**40,)),)), "the file has"),
    "tensor product beyond 64 bit": (packed((), (described("w", (2**63,) * 8),)), "the file has"),
    "tensor of no size but huge": (packed((), (described("w", (0, 2**63, 2**63)),)), "the file has"),
    "offset beyond the file": (packed((), (described("w", (4,), offset=2**62),), b"\0" * 64), "ends at"),
    "offset unaligned": (packed((), (described("w", (4,), offset=4),), b"\0" * 64), "multiple of 32"),
    "overlap": (packed((), (described("v", (16,)), described("w", (4,), offset=32)), b"\0" * 64), "overlap"),
    "name twice": (packed((), (described("w", (4,)), described("w", (4,), 0, 32)), b"\0" * 64), "twice"),
    "name with controls": (packed((), (described("w\n\x07", (4,)),), b"\0" * 64), "control"),
    "name empty": (packed((), (described("", (4,)),), b"\0" * 64), "empty"),
    "axes": (packed((), (described("w", (1,) * 9),), b"\0" * 64), "9 axes"),
    "axes 2^32": (packed((), (text("w") + b"\xff" * 4,), counts=(1, 0), data=b"\0" * 64), "axes"),
    "type": (packed((), (described("w", (4,), 4),), b"\0" * 64), "storage type 4"),
    "row no whole blocks": (packed((), (described("w", (33, 32), 2),), b"\0" * 999), "blocks of 32"),
    "version 1": (packed(version=1), "version is 1"),
    "version 4": (packed(version=4), "version is 4"),
    "version 0": (packed(version=0), "version is 0"),
    "other magic": (b"GGML" + packed()[4:], "no GGUF"),
    "magic only": (b"GGUF", "truncated"),
    "nothing": (b"", "empty|truncated"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_one_quick_line(tmp_path: Path, what: str) -> None:
    content, match = HOSTILE[what]
    path = written(tmp_path, content)
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(ModelError, match=match) as caught:
        reader.Gguf.weights(path)
    assert time.perf_counter() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    with pytest.raises(ModelError):
        load_model(path)


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (struct.pack("<IQ", 0, reader.MAX_VALUES + 1) + b"\0" * (reader.MAX_VALUES + 1), "at most"),
        (struct.pack("<IQ", 9, 2**18) + struct.pack("<IQ", 0, 0) * 2**18, "more than dlas reads"),
    ],
)
def test_arrays_that_are_there_but_too_large_are_bounded(tmp_path: Path, raw: bytes, match: str) -> None:
    path = written(tmp_path, packed((pair("k", 9, raw),)))
    began = time.perf_counter()
    with pytest.raises(ModelError, match=match):
        reader.Gguf.weights(path)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("alone", [True, False])
def test_too_much_text_is_refused(tmp_path: Path, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_TEXT", 100)
    word = text("a" * 60)
    pairs = (
        (pair("k", 8, word), pair("l", 8, word))
        if alone
        else (pair("k", 9, struct.pack("<IQ", 8, 2) + word * 2),)
    )
    path = written(tmp_path, packed(pairs))
    with pytest.raises(ModelError, match="more than dlas reads"):
        reader.Gguf.weights(path)


def test_every_truncation_and_many_flips_are_a_line_or_a_list(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    write_all(path, False)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = lines = 0
    last = reader.read_contents(path).weights.tensors[-1]
    start, _ = reader.read_contents(path).places[last.name]
    for cut in [*range(0, 1500, 7), *rng.integers(0, start + last.nbytes, 50)]:
        path.write_bytes(content[:cut])
        with pytest.raises(ModelError):
            reader.read_contents(path)
    for _ in range(500):
        broken = bytearray(content)
        for place in rng.integers(0, 4000, rng.integers(1, 4)):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(bytes(broken))
        try:
            found = reader.read_contents(path)
            for tensor in found.weights.tensors:
                found.tensor(tensor.name)
        except ModelError as error:
            refused += "\n" not in str(error)
            lines += 1
    assert refused == lines > 50


def test_it_is_no_network(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    write_all(path, False)
    assert format_for(path) is reader.Gguf
    with pytest.raises(UnsupportedError, match=r"weights of the 'llama' family without a graph.*dlas info"):
        load_model(path)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, packed((), (described("w", (4,)),), b"\0" * 16))
    assert reader.read_tensor(path, "w").tolist() == [0, 0, 0, 0]
    with pytest.raises(UnknownNameError, match="did you mean 'w'"):
        reader.read_tensor(path, "w.")


def test_a_file_cut_after_listing_does_not_crash(tmp_path: Path) -> None:
    path = written(tmp_path, packed((), (described("w", (4096,)),), b"\0" * 4 * 4096))
    contents = reader.read_contents(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="changed"):
        contents.tensor("w")


def test_text_that_is_not_utf8_stays_readable(tmp_path: Path) -> None:
    path = written(tmp_path, packed((pair("k", 8, text(b"a\xff")),)))
    assert reader.Gguf.weights(path).metadata["k"] == "a\\xff"
