"""Pickles with code, in every way a pickle can name a function, in every container that torch reads."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

# A pickle names the function, gives it the path of the trace, and calls it. ``%s`` is the path.


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def ways(trace: str) -> dict[str, bytes]:
    text = b"X" + struct.pack("<I", len(trace)) + trace.encode()
    mkdir = b"cposix\nmkdir\n"
    stacked = short("posix") + short("mkdir") + b"\x93"
    body = {
        "global-reduce": mkdir + text + b"\x85R",
        "stack-global": stacked + text + b"\x85R",
        "inst": b"(" + text + b"iposix\nmkdir\n",
        "obj": b"(" + mkdir + text + b"o",
        "newobj": mkdir + text + b"\x85\x81",
        "newobj-ex": mkdir + text + b"\x85}\x92",
        "build": b"cpathlib\nPosixPath\n)R}" + text + b"Nsb",
        "eval": b"cbuiltins\neval\n" + _text(f"__import__('os').mkdir({trace!r})") + b"\x85R",
        "builtins-exec": b"cbuiltins\nexec\n" + _text(f"import os; os.mkdir({trace!r})") + b"\x85R",
        "getattr": b"cbuiltins\ngetattr\n" + b"cos\npath\n" + _text("os") + b"\x86R",
        "nested-in-allowed": b"ccollections\nOrderedDict\n(" + mkdir + text + b"\x85Rt\x85R",
        "torch-legacy-load": b"ctorch.storage\n_load_from_bytes\n" + _text("x") + b"\x85R",
        "torch-jit": b"ctorch.jit\nload\n" + text + b"\x85R",
        "torch-hub": b"ctorch.hub\nload\n" + text + b"\x85R",
        "numpy": b"cnumpy\nload\n" + text + b"\x85R",
        "dotted": b"\x8c\x05torch" + short("os.mkdir") + b"\x93" + text + b"\x85R",
        "extension": b"\x82\x01" + text + b"\x85R",
        "set-state-of-tensor": b"ctorch._tensor\n_rebuild_from_type_v2\n("
        + mkdir
        + b"ctorch\nTensor\n"
        + text
        + b"\x85Nt\x85R",
    }
    return {name: b"\x80\x04}" + short("w") + code + b"s." for name, code in body.items()}


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def zipped(path: Path, code: bytes) -> None:
    torch.save({"w": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as old:
        entries = {n: old.read(n) for n in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            new.writestr(name, code if name.endswith("data.pkl") else content)


def legacy(path: Path, code: bytes) -> None:
    """Magic number, protocol and system come first in files of torch before 1.6."""
    with path.open("wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(value, file, protocol=2)
        file.write(code)
        pickle.dump([], file, protocol=2)


def legacy_at_once(path: Path, code: bytes) -> None:
    path.write_bytes(code)


def tarred(path: Path, code: bytes) -> None:
    """The container of torch before 0.1.10."""
    with tarfile.open(path, "w") as archive:
        for name in ("pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(code)
            archive.addfile(entry, io.BytesIO(code))


CONTAINERS = {"zip": zipped, "legacy": legacy, "bare": legacy_at_once, "tar": tarred}


@pytest.mark.parametrize("container", list(CONTAINERS))
@pytest.mark.parametrize("way", list(ways("")))
def test_no_pickle_runs_code(refused: Any, tmp_path: Path, way: str, container: str) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "net.pt"
    CONTAINERS[container](path, ways(str(trace))[way])
    assert refused("torch", path).startswith("net.pt")
    assert not trace.exists()


@pytest.mark.parametrize("way", ["global-reduce", "stack-global", "inst", "eval"])
def test_the_payloads_would_work(tmp_path: Path, way: str) -> None:
    """Python's own unpickler runs them: the tests above refuse what is dangerous."""
    trace = tmp_path / "trace"
    pickle.loads(ways(str(trace))[way])
    assert trace.exists()


def test_a_persistent_id_names_no_code(refused: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    identity = b"(" + short("storage") + b"cposix\nmkdir\n" + _text(str(trace)) + _text("cpu") + b"K\x02tQ"
    zipped(tmp_path / "net.pt", b"\x80\x02}" + short("w") + identity + b"s.")
    refused("torch", tmp_path / "net.pt")
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_not_run(refused: Any, tmp_path: Path) -> None:
    script = torch.jit.script(torch.nn.Linear(2, 2))
    script.save(str(tmp_path / "net.pt"))
    assert "TorchScript" in refused("torch", tmp_path / "net.pt")


def test_a_few_bytes_are_no_hundred_gigabytes(refused: Any, tmp_path: Path) -> None:
    claimed = torch.ones(1).expand(25_000_000_000)
    torch.save({"w": claimed}, tmp_path / "net.pt")
    assert (tmp_path / "net.pt").stat().st_size < 10_000
    assert "holds 1 values" in refused("torch", tmp_path / "net.pt")


@pytest.mark.parametrize("kind", ["sparse", "quantised", "meta"])
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds_are_refused(refused: Any, tmp_path: Path, kind: str) -> None:
    if kind == "sparse":
        tensor = torch.ones(2, 2).to_sparse()
    elif kind == "quantised":
        tensor = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    else:
        tensor = torch.empty(10**9, device="meta")
    torch.save({"w": tensor}, tmp_path / "net.pt")
    refused("torch", tmp_path / "net.pt")


def test_keys_that_are_no_text_are_described_briefly(refused: Any, tmp_path: Path) -> None:
    key: tuple = ()
    for _ in range(12):
        key = (key, key)
    torch.save({key: 1, "x" * 10_000: 2}, tmp_path / "net.pt")
    assert len(refused("torch", tmp_path / "net.pt")) < 400
