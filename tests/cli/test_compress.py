"""``dlas compress``: what it refuses, and that it does so before it works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlas.cli.main import run_command
from dlas.testing import models as networks


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(networks.residual().to_bytes())
    return path


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("there.onnx", "there.onnx exists"),
        ("none/small.onnx", "none is not a folder"),
        ("folder.onnx", "it is a folder"),
        ("there.onnx/small.onnx", "there.onnx is not a folder"),
        ("small.xyz", "no format has the ending '.xyz'"),
        ("small.pt", "format torch can be read but not written"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_before_the_import(
    net: Path,
    tmp_path: Path,
    target: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the network was read")

    monkeypatch.setattr("dlas.api.load", never)
    (tmp_path / "there.onnx").write_text("kept")
    (tmp_path / "folder.onnx").mkdir()
    assert run_command(["compress", str(net), "float16", "-o", str(tmp_path / target)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert (tmp_path / "there.onnx").read_text() == "kept"


def test_a_plan_needs_no_target_and_shows_every_method(
    net: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net-magnitude-float16.onnx").write_text("kept")
    command = ["compress", str(net), "magnitude:sparsity=0.8", "float16", "--plan", "--json"]
    assert run_command(command) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [p["method"].partition(":")[0] for p in plans] == ["magnitude", "float16"]
    assert all(p["changes"] for p in plans)
    assert (tmp_path / "net-magnitude-float16.onnx").read_text() == "kept"


def test_methods_are_applied_in_order(net: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "small.onnx"
    command = ["compress", str(net), "magnitude:sparsity=0.8", "float16", "-o", str(target), "--json"]
    assert run_command(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["action"] for s in found["history"]][-2:] == ["magnitude", "float16"]
    assert found["bytes"] == target.stat().st_size
    assert run_command([*command, "--sparsity", "0.5", "--force"]) == 2
    assert "one method only" in capsys.readouterr().err


def test_the_size_is_that_of_the_file_written(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small.tflite"
    assert run_command(["compress", str(net), "float16", "-o", str(target), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == found["after"]["model_bytes"]["value"] == target.stat().st_size
    assert found["after"]["model_bytes"]["note"] == "tflite file"
    assert 0 < found["after"]["model_zstd_bytes"]["value"] < target.stat().st_size
    assert run_command(["compress", str(net), "float16", "-o", str(target), "--force"]) == 0
    assert "KiB (ONNX file) -> " in capsys.readouterr().err


def test_without_a_target_the_format_stays(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["convert", str(net), "lite.tflite", "--no-check"]) == 0
    assert run_command(["compress", "lite.tflite", "float16", "--json"]) == 0
    assert (tmp_path / "lite-float16.tflite").read_bytes()[4:8] == b"TFL3"
    capsys.readouterr()
    (tmp_path / "weights.pt").write_bytes(b"PK")
    (tmp_path / "weights-float16.onnx").write_text("kept")
    assert run_command(["compress", "weights.pt", "float16"]) == 2
    assert "weights-float16.onnx exists" in capsys.readouterr().err


def test_an_architecture_is_compressed_into_a_file_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["compress", "digits-cnn", "magnitude"]) == 0  # this one is shipped, with its weights
    assert run_command(["compress", "ds-cnn:classes=3", "magnitude"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"digits-cnn-magnitude.onnx", "ds-cnn-magnitude.onnx"}
    assert "Traceback" not in capsys.readouterr().err
