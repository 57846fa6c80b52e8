"""``dlas mutate``: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from dlas.cli.main import run_command
from dlas.testing import models as networks


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(networks.residual().to_bytes())
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npz"
    np.savez(path, x=networks.images(40))
    return path


CHOICE = ["--operators", "add-to-sub,swap-inputs,perturb-bias:share=0.00001,ceil-mode"]


def test_a_run_from_the_command_line(
    net: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["mutate", str(net), "--data", str(rows), *CHOICE, "-o", str(out), "--jobs", "1"]
    assert run_command([*command, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["paths"] == ["onnxruntime"]
    assert found["rows"] == 40
    assert found["no_effect"] == ["ceil-mode"]
    assert {m["name"]: m["paths"]["onnxruntime"]["fate"] for m in found["mutants"]}[
        "swap-inputs-001"
    ] == "equivalent"
    assert found["score"]["onnxruntime"]["n"] == 3
    assert found == json.loads((out / "report.json").read_text())
    table = list(csv.DictReader((out / "matrix.csv").open()))
    assert [line["mutant"] for line in table] == [m["name"] for m in found["mutants"]]
    assert {p.name for p in (out / "mutants").iterdir()} == {f"{m['name']}.onnx" for m in found["mutants"]}

    assert (
        run_command([*command, "--fail-under", "1"]) == 1
    )  # goes on where it was, and has nothing left to do
    captured = capsys.readouterr()
    assert "mutation score" in captured.out
    assert "no place for ceil-mode: not counted" in captured.err
    assert "-001: onnxruntime" not in captured.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--operators", "add-to-sup"], "unknown mutation 'add-to-sup': did you mean 'add-to-sub'"),
        (["--operators", "scale-weights:factr=2"], "unknown option of scale-weights 'factr'"),
        (["--operators", "round-weights:bits=1"], "round-weights: bits = 1 is not accepted"),
        (["--operators", ","], "operators = ',' is not accepted"),
        (["--operators", "program"], "or add a path of tvm"),
        (["--paths", "ort:O9"], "unknown path 'ort:O9'"),
        (["--max-mutants", "-1"], "--max-mutants"),
    ],
)
def test_what_it_refuses(
    net: Path, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["mutate", str(net), *given]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_a_file_where_the_folder_should_be(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("here")
    assert run_command(["mutate", str(net), *CHOICE, "-o", str(tmp_path / "taken")]) == 2
    assert "taken" in capsys.readouterr().err
