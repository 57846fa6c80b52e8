"""``dlas info`` on files of weights: what is in them, although no network can be made of them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from dlas.cli.main import run_command
from dlas.testing import models as networks

DESCRIBED = [("blk.0.w", (64, 3), 2, 0), ("norm", (5,), 0, 128)]  # Q4_0 and F32


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(path: Path, scores: tuple[float, ...] = (0.5,) * 1000) -> Path:
    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("chat") + struct.pack("<I", 8) + text("line\n\x1b[2Jtwo " + "x" * 1000),
        text("scores") + struct.pack("<IIQ", 9, 6, len(scores)) + struct.pack(f"<{len(scores)}f", *scores),
    ]
    infos = [
        text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
        for name, sizes, kind, offset in DESCRIBED
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(pairs + infos)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + b"\0" * 160)
    return path


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """A checkpoint of a network that nobody registered."""
    import torch

    path = tmp_path / "unknown.pth"
    state = {
        "module.body.weight": torch.ones(4, 3, dtype=torch.float16),
        "module.count": torch.tensor([7]),
        "module.nan": torch.tensor([float("nan")]),
    }
    torch.save({"state_dict": state, "epoch": 12, "best": 0.5, "optimiser": {}}, path)
    return path


def rows(printed: str) -> set[tuple[str, ...]]:
    return {tuple(line.split()) for line in printed.splitlines()}


def test_gguf_as_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["info", str(gguf(tmp_path / "net.gguf"))]) == 0
    captured = capsys.readouterr()
    found = rows(captured.out)
    assert ("architecture", "llama") in found
    assert ("blk.0.w", "3x64", "Q4_0", "4.5", "108", "B") in found
    assert ("norm", "5", "F32", "32", "20", "B") in found
    assert ("Q4_0", "1", "192", "108", "B", "4.5") in found
    assert "… 1000 values]" in captured.out
    assert "\x1b" not in captured.out
    assert max(map(len, captured.out.splitlines())) <= 240
    assert "no network: net.gguf holds 2 weights" in captured.err
    assert run_command(["info", str(tmp_path / "net.gguf"), "--no-layers"]) == 0
    assert "blk.0.w" not in capsys.readouterr().out


def test_gguf_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = (1.5, float("nan"), float("-inf"))
    assert run_command(["info", str(gguf(tmp_path / "net.gguf", scores)), "--json"]) == 0

    def never(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found = json.loads(capsys.readouterr().out, parse_constant=never)
    assert found["kind"] == "weights"
    assert found["architecture"] == "llama"
    assert found["metadata"]["scores"] == [1.5, "nan", "-inf"]
    assert found["metadata"]["chat"].endswith("x" * 1000)
    assert found["tensors"][0] == {
        "name": "blk.0.w", "shape": [3, 64], "dtype": "Q4_0", "nbytes": 108, "bits_per_weight": 4.5
    }  # fmt: skip
    assert (found["params"], found["weight_bytes"]) == (197, 128)
    assert sum(t["nbytes"] for t in found["types"]) == 128


def test_lists_are_whole_up_to_a_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlas.cli.info._MOST_IN_JSON", 10)
    assert run_command(["info", str(gguf(tmp_path / "net.gguf")), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metadata"]["scores"] == {"first": [0.5] * 10, "length": 1000}


def test_a_checkpoint_of_nobody_is_listed(unknown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["info", str(unknown), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(t["name"], t["shape"], t["dtype"], t["nbytes"]) for t in found["tensors"]] == [
        ("module.body.weight", [4, 3], "float16", 24),
        ("module.count", [1], "int64", 8),
        ("module.nan", [1], "float32", 4),
    ]
    assert found["metadata"] == {"epoch": 12, "best": 0.5}
    assert "holds NaN" in found["note"]
    assert run_command(["info", str(unknown)]) == 0
    assert ("module.body.weight", "4x3", "float16", "16", "24", "B") in rows(capsys.readouterr().out)


def test_odd_names_and_numbers_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    path = tmp_path / "odd.pth"
    torch.save({"a\ud800\x1b[2J": torch.ones(2), "huge": 10**500, "text": "\udfff", "epoch": True}, path)
    for arguments in ([], ["--json"]):
        assert run_command(["info", str(path), *arguments]) == 0
        printed = capsys.readouterr().out
        assert printed.encode()
        assert "\x1b" not in printed
    found = json.loads(printed)
    assert found["metadata"] == {"text": "\\udfff", "epoch": True}


def test_what_the_user_says_must_fit(unknown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["info", str(unknown), "--architecture", "digits-cnn"]) == 2
    assert capsys.readouterr().out == ""


def test_other_commands_say_that_info_lists_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    path = tmp_path / "mine.pt"
    torch.save({"w": torch.ones(3, 2)}, path)
    for file in (path, gguf(tmp_path / "net.gguf")):
        assert run_command(["compress", str(file), "float16", "-o", str(tmp_path / "out.onnx")]) == 2
        assert "`dlas info` lists" in capsys.readouterr().err


def test_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = {"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {"by": "me"}}
    raw = json.dumps(header).encode()
    path = tmp_path / "net.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * 12)
    assert run_command(["info", str(path)]) == 0
    captured = capsys.readouterr()
    assert {("w", "2x3", "BF16", "16", "12", "B"), ("by", "me")} <= rows(captured.out)
    assert "fit no known architecture" in captured.err


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors", ".pth", ".net"])
def test_damaged_files_are_one_line(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(
        {".gguf": b"GGUF", ".pth": b"\x80\x02"}.get(suffix, b"\x02\0\0\0\0\0\0\0{]") + b"\xff" * 20
    )
    assert run_command(["info", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dlas: bad")
    assert len(captured.err.splitlines()) == 1


def test_a_network_has_its_kind_on_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(networks.residual().to_bytes())
    assert run_command(["info", str(path)]) == 0
    assert ("kind", "float32") in rows(capsys.readouterr().out)


def test_totals_do_not_divide_by_nothing() -> None:
    from dlas.graph.weights import WeightFile, WeightTensor

    found = WeightFile("gguf", (WeightTensor("e", (0, 3), "F32", 0),))
    assert found.by_type()[0].bits_per_weight == 0
    assert WeightFile.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert np.isfinite(found.tensors[0].bits_per_weight)
