from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dlas.core.errors import DataError
from dlas.data.loaders.digits import Digits
from dlas.data.loaders.image_folder import ImageFolder
from dlas.data.loaders.npz import Npz
from dlas.data.loaders.parquet import Parquet


def png(value=0, size=(4, 4)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_table(path, labels=(0, 1, 1), names=("cat", "dog"), images=None, **extra):
    images = images if images is not None else [{"bytes": png(i), "path": None} for i in range(3)]
    columns = {"image": pa.array(images, IMAGE), **extra}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    table = pa.table(columns)
    if names:
        features = {"label": {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def test_parquet_samples_labels_and_names(tmp_path):
    path = write_table(tmp_path / "pets-test.parquet")
    data = Parquet().load(path)
    assert list(data.samples) == [png(i) for i in range(3)]
    assert data.labels.tolist() == [0, 1, 1]
    assert data.labels.dtype == np.int64
    assert (data.classes, data.task, data.name) == (("cat", "dog"), "classify", "pets-test")
    facts = Parquet().describe(path)
    assert (facts.rows, facts.columns, facts.split) == (3, ("image", "label"), "test")
    assert facts.classes == ("cat", "dog")
    assert facts.size_bytes == path.stat().st_size


def test_parquet_without_labels(tmp_path):
    for labels in (None, (-1, -1, -1)):
        data = Parquet().load(write_table(tmp_path / "a.parquet", labels=labels, names=None))
        assert (data.labels, data.classes, data.task) == (None, (), "none")


def test_parquet_plain_bytes_and_list_labels(tmp_path):
    table = pa.table({"img": pa.array([b"x", b"y"], pa.large_binary()), "labels": pa.array([[1], [2, 3]])})
    pq.write_table(table, tmp_path / "a.parquet")
    data = Parquet().load(tmp_path / "a.parquet")
    assert (list(data.samples), data.labels) == ([b"x", b"y"], None)


@pytest.mark.parametrize("metadata", ["{", "[]", '{"info": 3}', '{"info": {"features": {"label": {}}}}'])
def test_parquet_with_odd_metadata_has_no_class_names(tmp_path, metadata):
    path = write_table(tmp_path / "a.parquet", names=None)
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": metadata}), path)
    assert Parquet().load(path).classes == ()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"labels": (0, None, 1)}, "1 rows have no label"),
        ({"labels": (0, 2, 1)}, r"label goes from 0 to 2, expected 0\.\.1"),
        ({"labels": (0, -1, 1)}, "label goes from -1 to 1"),
        ({"images": [{"bytes": png(), "path": None}, {"bytes": None, "path": "x.png"}, None]}, "row 1 has no image"),
        ({"images": [{"bytes": png(), "path": None}, None, None]}, "row 1 has no image"),
        ({"images": [{"bytes": b"", "path": None}] * 3}, "row 0 has no image"),
    ],
)  # fmt: skip
def test_parquet_with_bad_rows(tmp_path, fields, text):
    with pytest.raises(DataError, match=text):
        Parquet().load(write_table(tmp_path / "a.parquet", **fields))


def test_parquet_without_samples_names_its_columns(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1.0], "text": ["a"]}), path)
    with pytest.raises(DataError, match=r"its columns are x \(double\), text \(string\)"):
        Parquet().load(path)
    assert "no column of encoded samples" in Parquet().describe(path).problem


def test_parquet_empty_table(tmp_path):
    with pytest.raises(DataError, match="no samples"):
        Parquet().load(write_table(tmp_path / "a.parquet", labels=(), images=[]))


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"PAR1" + b[4:-20] + b"x" * 20]
)
def test_parquet_broken_file(tmp_path, damage):
    path = write_table(tmp_path / "a.parquet")
    path.write_bytes(damage(path.read_bytes()))
    for use in (Parquet().load, Parquet().describe):
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            use(path)


def test_parquet_flipped_bytes_never_give_another_error(tmp_path):
    path = write_table(tmp_path / "a.parquet")
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        bad = bytearray(sound)
        for at in rng.integers(0, len(bad), 3):
            bad[at] = rng.integers(256)
        path.write_bytes(bad)
        try:
            Parquet().load(path)
        except DataError:
            refused += 1
    assert refused > 20


def test_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("dlas.data.loaders._bounds.MAX_BYTES", 100)
    with pytest.raises(DataError, match="unpacks to"):
        Parquet().load(write_table(tmp_path / "a.parquet"))
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match="unpacks to"):
        Npz().load(tmp_path / "a.npz")


def test_folder_with_classes(tmp_path):
    for name, values in {"dog": (1, 2), "cat": (3,), ".hidden": (9,), "empty": ()}.items():
        (tmp_path / name).mkdir()
        for value in values:
            (tmp_path / name / f"{value}.PNG").write_bytes(png(value))
    (tmp_path / "notes.txt").write_text("x")
    assert ImageFolder.accepts(tmp_path)
    data = ImageFolder().load(tmp_path)
    assert (data.classes, data.labels.tolist()) == (("cat", "dog"), [0, 1, 1])
    assert list(data.samples) == [png(3), png(1), png(2)]
    assert ImageFolder().describe(tmp_path).rows == 3
    (tmp_path / "stray.png").write_bytes(png())
    with pytest.raises(DataError, match="1 images beside the class folders cat, dog"):
        ImageFolder().load(tmp_path)


def test_flat_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        ImageFolder().load(tmp_path)
    assert not ImageFolder.accepts(tmp_path)
    (tmp_path / "b.jpg").write_bytes(b"b")
    (tmp_path / "a.png").write_bytes(b"a")
    data = ImageFolder().load(tmp_path)
    assert (list(data.samples), data.labels, data.task) == ([b"a", b"b"], None, "none")


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("images", "labels"), ("inputs", "targets")])
def test_npz_names(tmp_path, x, y):
    path = tmp_path / "a-train.npz"
    np.savez(path, **{x: np.zeros((3, 4, 4, 1), np.uint8), y: np.array([[0], [2], [1]], np.uint8)})
    data = Npz().load(path)
    assert data.samples.dtype == np.uint8
    assert data.labels.tolist() == [0, 2, 1]
    assert data.labels.dtype == np.int64
    facts = Npz().describe(path)
    assert (facts.rows, facts.columns, facts.split) == (3, (x, y), "train")


def test_npz_dtypes(tmp_path):
    def load(x):
        np.savez(tmp_path / "a.npz", x=x)
        return Npz().load(tmp_path / "a.npz").samples.dtype

    assert load(np.full((2, 3, 3), 255, np.int64)) == np.uint8
    assert load(np.full((2, 3, 3), 256, np.int64)) == np.float32
    assert load(np.zeros((2, 3), np.int64)) == np.float32
    assert load(np.zeros((2, 3, 3), np.float64)) == np.float32


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"a": np.zeros(3)}, "holds the arrays a"),
        ({"x": np.zeros(3)}, r"x is float64\[3\]"),
        ({"x": np.zeros((0, 3))}, "no samples"),
        ({"x": np.array([["a", "b"]])}, "expected numbers"),
        ({"x": np.array([[object()]], dtype=object)}, "cannot be read"),
        ({"x": np.array([[1.0, 2], [np.nan, 1]])}, "NaN or infinity, first in row 1"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3, int)}, "2 samples but 3 labels"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(2)}, "expected class indices"),
        ({"x": np.zeros((2, 3)), "y": np.array([0, -1])}, "expected class indices"),
        ({"x": np.zeros((2, 3)), "y": np.array([0, 2]), "classes": np.array(["a", "b"])}, "there are 2 classes"),
    ],
)  # fmt: skip
def test_npz_with_bad_content(tmp_path, arrays, text):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=text):
        Npz().load(tmp_path / "a.npz")


def test_npz_broken_files(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(
        path, x=np.random.default_rng(0).integers(0, 255, (50, 8, 8), np.uint8), y=np.arange(50)
    )
    sound = path.read_bytes()
    rng = np.random.default_rng(1)
    damaged = [b"", b"PK", sound[: len(sound) // 2], b"x" * 100]
    for _ in range(100):
        bad = bytearray(sound)
        bad[rng.integers(len(bad))] ^= 0xFF
        damaged.append(bytes(bad))
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        for use in (Npz().load, Npz().describe):
            try:
                use(path)
            except DataError:
                refused += 1
    assert refused > 50


def test_digits_are_the_original_ones_on_the_usual_scale():
    from sklearn.datasets import load_digits

    data = Digits().load(None)
    assert data.samples.shape == (1797, 8, 8, 1)
    assert (data.samples.min(), data.samples.max()) == (0, 255)
    np.testing.assert_array_equal(np.rint(data.samples[..., 0] * (16 / 255)), load_digits().images)
    assert len(data) == Digits().describe(None).rows
    assert data.hash == Digits().load(None).hash
