"""Options of the two formats in ``dlas convert``."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlas.cli.main import run_command
from dlas.graph.format import load_model
from dlas.testing import models


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(models.residual().to_bytes())
    return path


def test_an_option_reaches_the_writer(net: Path, tmp_path: Path) -> None:
    assert (
        run_command(["convert", str(net), str(tmp_path / "net.tflite"), "--write", "batch=3", "--no-check"])
        == 0
    )
    loaded = load_model(tmp_path / "net.tflite", dynamic_batch=False)
    assert loaded.inputs[0].shape[0] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--write", "batch=0"], ">= 1"),
        (["--write", "bach=2"], "did you mean 'batch'"),
        (["--write", "batch"], "KEY=VALUE"),
        (["--read", "max_nodes=3"], "nodes"),
        (["--read", "allow_nan=perhaps"], "bool"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], words: str
) -> None:
    assert run_command(["convert", str(net), str(tmp_path / "net.tflite"), *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dlas: ")]
    assert words in line
    assert not (tmp_path / "net.tflite").exists()
