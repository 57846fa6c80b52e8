"""Archives, tables, images, study files and stack files that claim, unpack to, or do more than they should."""

from __future__ import annotations

import io
import json
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlas.core.figure import Figure, Outcome, Record, Source
from dlas.explore.result import Point
from dlas.explore.storage import SqliteStorage

SMALL = 600 * 2**20

# zip


def deflated(path: Path, entry: str, size: int) -> None:
    """``size`` zeros, packed a thousandfold."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(entry, "w") as file:
        for _ in range(size // 2**20):
            file.write(bytes(2**20))


def overlapping(path: Path, entry: str, size: int) -> None:
    """Many entries of the directory that all point to the same packed bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    kernel = packer.compress(bytes(2**24)) + packer.flush()
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(kernel), 2**24, 1, 0) + b"a" + kernel
    names = [entry] + [f"{i}.npy" for i in range(size // 2**24)]
    directory = b"".join(
        struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, len(kernel), 2**24, len(n), 0, 0, 0, 0, 0, 0
        )
        + n.encode()
        for n in names
    )
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(names), len(names), len(directory), len(local), 0)
    path.write_bytes(local + directory + end)


def lying(path: Path, entry: str, size: int) -> None:
    """The directory says a few bytes; the stream has more."""
    deflated(path, entry, 2**28)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2")
    content[at + 24 : at + 28] = struct.pack("<L", 100)
    path.write_bytes(content)


def nested(path: Path, entry: str, size: int) -> None:
    inner = io.BytesIO()
    deflated(inner, "x.npy", 2**26)  # type: ignore[arg-type]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(entry, inner.getvalue())


BOMBS: list[Callable[[Path, str, int], None]] = [deflated, overlapping, lying, nested]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda b: b.__name__)
@pytest.mark.parametrize(
    ("kind", "name", "entry"),
    [
        ("torch", "net.pt", "net/data.pkl"),
        ("torch", "net.pt2", "net/models/model.json"),
        ("data", "rows.npz", "x.npy"),
    ],
)
def test_zip_bombs_are_refused(
    refused: Any, tmp_path: Path, kind: str, name: str, entry: str, bomb: Callable[[Path, str, int], None]
) -> None:
    bomb(tmp_path / name, entry, 2**29)
    assert (tmp_path / name).stat().st_size < 2**22
    refused(kind, tmp_path / name, growth=SMALL)


# npz


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (100000000000,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1,) * 10**9}",
        "__import__('os').mkdir('trace')",
        "{" * 5000,
        "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (1,)}",
    ],
    ids=range(8),
)
def test_arrays_that_lie_are_refused(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = header.encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)
    with zipfile.ZipFile(tmp_path / "rows.npz", "w") as archive:
        archive.writestr("x.npy", content)
    refused("data", tmp_path / "rows.npz", growth=SMALL)
    assert not (tmp_path / "trace").exists()


def test_arrays_of_objects_are_not_unpickled(refused: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class Touch:
        def __reduce__(self) -> tuple:
            return (Path.touch, (trace,))

    np.savez(tmp_path / "rows.npz", x=np.array([Touch()], object))
    assert "Python objects" in refused("data", tmp_path / "rows.npz")
    assert not trace.exists()


# parquet


def table(path: Path, samples: list[bytes], **options: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.array([{"bytes": s, "path": ""} for s in samples])
    pq.write_table(pa.table({"image": column}), path, **options)


def test_a_value_that_stands_for_many_rows(refused: Any, tmp_path: Path) -> None:
    """One megabyte, repeated by a run length: 3 GB of rows out of some kilobytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    one = bytes(2**20)
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(tmp_path / "rows.parquet", schema, compression="zstd") as writer:
        batch = pa.array([one] * 64, pa.binary())
        for _ in range(47):
            writer.write_table(pa.table({"image": batch}))
    assert (tmp_path / "rows.parquet").stat().st_size < 2**20
    assert "zip bomb" in refused("data", tmp_path / "rows.parquet", growth=2**30)


def test_more_rows_than_there_are(refused: Any, tmp_path: Path) -> None:
    table(tmp_path / "rows.parquet", [b"x"] * 3)
    content = bytearray((tmp_path / "rows.parquet").read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(content)
        for at in rng.integers(len(content) - 600, len(content) - 8, 4):
            damaged[at] = 0xFF
        (tmp_path / "bad.parquet").write_bytes(damaged)
        refused("data", tmp_path / "bad.parquet", growth=SMALL)


# images


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))
        )

    head = struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        png(100_000, 100_000, zlib.compress(bytes(2**20))),
        png(2**31 - 1, 2**31 - 1, b""),
        png(9000, 9900, zlib.compress(bytes(2**24), 9)),
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + b"\0" * 6 + b",",
        b"P6 99999999999999999999 99999 255\n",
        b"II*\0\x08\0\0\0" + b"\xff" * 64,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(trace) (w) file\n",
    ],
    ids=["wide", "widest", "cut", "gif", "ppm", "tiff", "postscript"],
)
def test_image_bombs_are_refused(refused: Any, tmp_path: Path, content: bytes) -> None:
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "0.png").write_bytes(content)
    refused("data", tmp_path / "images", growth=2**30)


# study files


@pytest.fixture
def study(tmp_path: Path) -> Path:
    storage = SqliteStorage(tmp_path / "study.db")
    record = Record(Outcome.OK, figures={"latency_ms": Figure(1.0, "ms", Source.MEASURED)})
    storage.put_study("main", {"keys": ["k"], "objectives": ["min:latency_ms"]})
    storage.put_point("main", Point("k", {"compress": "none"}, record))
    storage.close()
    return tmp_path / "study.db"


PLANTED = {
    "trigger": "CREATE TRIGGER t AFTER INSERT ON studies BEGIN DELETE FROM points; END",
    "view": "CREATE VIEW v AS SELECT load_extension('evil')",
    "index on an expression": "CREATE INDEX i ON points (upper(key))",
    "generated column": "ALTER TABLE studies ADD COLUMN g TEXT AS (hex(zeroblob(1000000000)))",
    "table in place of one": "ALTER TABLE points RENAME TO hidden",
    "virtual table": "CREATE VIRTUAL TABLE f USING fts5(x)",
}


@pytest.mark.parametrize("planted", list(PLANTED))
def test_nothing_planted_in_a_study_file_runs(refused: Any, study: Path, planted: str) -> None:
    with sqlite3.connect(study) as database:
        database.execute(PLANTED[planted])
        if planted == "table in place of one":
            database.execute("CREATE VIEW points AS SELECT * FROM hidden")
    database.close()
    assert "which no dlas wrote" in refused("study", study, growth=SMALL)
    with sqlite3.connect(study) as database:
        rows = database.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE '%idden'").fetchone()[0]
        assert database.execute(f"SELECT count(*) FROM {'hidden' if rows else 'points'}").fetchone()[0] == 1
    database.close()


@pytest.mark.parametrize(
    ("table_", "column", "value"),
    [
        ("points", "record", "{"), ("points", "record", "[]"), ("points", "choices", "[" * 100_000),
        ("points", "record", '{"outcome": "ok", "figures": {"a": {"value": "x", "unit": "ms", "source": "measured"}}}'),
        ("points", "record", '{"outcome": "owned"}'), ("points", "seconds", "never"), ("points", "choices", '{"a": 1}'),
        ("studies", "facts", "null"), ("studies", "facts", '{"keys": 3}'), ("studies", "facts", '{"objectives": [1]}'),
        ("studies", "facts", b"\xff\xfe"), ("studies", "facts", '{"environment": []}'),
    ],
    ids=range(12),
)  # fmt: skip
def test_rows_that_make_no_sense_are_told(
    refused: Any, study: Path, table_: str, column: str, value: Any
) -> None:
    with sqlite3.connect(study) as database:
        database.execute(f"UPDATE {table_} SET {column} = ?", (value,))
    database.close()
    refused("study", study, growth=SMALL)


def test_damaged_pages_are_told(attempt: Any, study: Path) -> None:
    content = study.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(content)
        for at in rng.integers(100, len(content), 30):
            damaged[at] = rng.integers(256)
        for beside in study.parent.glob("study.db-*"):
            beside.unlink()
        study.write_bytes(damaged)
        attempt("study", study, growth=SMALL)


# stack files


@pytest.mark.parametrize(
    "text",
    [
        "[data]\nrows = " + "9" * 5000,
        "[data]\nrows = 1e999",
        "[data]\nrows = -1",
        "[limits]\nmemory_gib = nan",
        "[limits]\nstep_timeout_s = inf\nmemory_gib = -inf",
        "[runtime]\nthreads = [" + "0," * 100_000 + "]",
        "[compress]\npipeline = [" + "[" * 3000 + "]" * 3000 + "]",
        "a" + ".a" * 5000 + " = 1",
        "[model]\npath = '\\u0000'\n[model]\npath = ''",
        "[preprocessing]\nscale = 1e-999\nstd = [0]",
        "[study]\nobjectives = [" + "'min:x'," * 10_000 + "]\ndesign = 'x'",
        "x = '''" + "y" * 5_000_000,
        "\x1b]0;title\x07 = 1",
    ],
    ids=range(13),
)
def test_stack_files_are_bounded(refused: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "stack.toml").write_text(text)
    refused("stack", tmp_path / "stack.toml", growth=SMALL)


def test_json_is_not_followed_for_ever(refused: Any, tmp_path: Path) -> None:
    import torch

    net = torch.nn.Linear(2, 2).eval()
    torch.export.save(torch.export.export(net, (torch.ones(1, 2),)), tmp_path / "net.pt2")
    with zipfile.ZipFile(tmp_path / "net.pt2") as archive:
        entries = {n: archive.read(n) for n in archive.namelist()}
    for text in ("[" * 200_000, '{"a":' * 50_000, json.dumps({"x": "y" * 10_000_000})):
        with zipfile.ZipFile(tmp_path / "bad.pt2", "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, text.encode() if name.endswith("models/model.json") else content)
        refused("torch", tmp_path / "bad.pt2", growth=SMALL)
