"""``dlas attack`` on the embedded network: table, JSON, page, exit codes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dlas.cli.main import run_command

FAST = ["--data", "digits", "--split", "test", "--attacks", "fgsm,square:queries=5", "--eps", "24/255"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(["attack", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_table_a_page_and_a_bound(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "attack.html"
    code, out, err = run(
        capsys, "digits-cnn", *FAST, "--rows", "20", "--report", str(page), "--fail-under", "0.99"
    )
    assert code == 1
    assert "20 rows of digits, eps 24/255" in err
    assert "fails: the minimum is below 99 %: digits-cnn.onnx" in err
    header, row = [line for line in out.splitlines() if line.startswith(("network", "digits-cnn"))]
    for column in ("runs on", "size", "clean", "fgsm", "square:queries=5", "minimum"):
        assert column in header
    assert "onnxruntime" in row
    text = page.read_text()
    assert "Does it hold under attack?" in text
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert text.count('<img src="data:image/png;base64,') >= 2
    code, out, _ = run(capsys, "digits-cnn", *FAST, "--rows", "20", "--json")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    (model,) = found["models"]
    assert model["clean"]["n"] == 20
    assert model["minimum"]["value"] <= min(a["robust"]["value"] for a in model["attacks"])
    assert [a["kind"] for a in model["attacks"]] == ["white box", "black box"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits-cnn"], "--data = '' is not accepted: expected labelled rows"),
        (["digits-cnn", *FAST, "--eps", "8"], "eps = '8' is not accepted"),
        (["digits-cnn", *FAST, "--attacks", "fsgm"], "unknown attack 'fsgm': did you mean 'fgsm'"),
        (["digits-cnn", *FAST, "--attacks", "pgd:steps=0"], "pgd: steps = 0 is not accepted"),
        (["digits-cnn", *FAST, "--range", "1:0"], "--range = '1:0' is not accepted: expected LOW:HIGH"),
        (["digits-cnn", *FAST, "--range", "inf:nan"], "--range = 'inf:nan' is not accepted"),
        (["digits-cnn", *FAST, "--path", "ort:O9"], "unknown path 'ort:O9'"),
        (["digits-cnn", *FAST, "--path", "ort:O0,ort:O1"], "expected one back end"),
        (["digits-cnn", *FAST, "--report", "/nowhere/page.html"], "/nowhere is not a folder"),
        (["digits-cmn", *FAST], "model 'digits-cmn' not found"),
        (["digits-cnn", "--data", "nowhere.parquet"], "'nowhere.parquet' not found"),
    ],
)
def test_mistakes_are_one_line_and_exit_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2, err
    assert words in err
    assert "Traceback" not in err
    assert out == ""


def test_attacks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["list", "attack", "--json"]) == 0
    names = {choice["name"] for choice in json.loads(capsys.readouterr().out)}
    assert {"fgsm", "pgd", "square", "nes", "autopgd", "boundary", "hopskipjump"} <= names
