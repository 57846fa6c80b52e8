"""With ``--json`` a program that reads standard output learns what went wrong as well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlas.cli.main import run_command


@pytest.mark.parametrize(
    ("arguments", "code", "words", "hint"),
    [
        (["info", "none.onnx", "--json"], 2, "none.onnx", None),
        (["list", "formatz", "--json"], 2, "did you mean 'format'", ""),
        (["bench", "digits-cnn", "--threads", "0", "--json"], 2, "--threads", ""),
        (["info", "--json"], 2, "Missing argument", ""),
    ],
)
def test_an_error_is_an_object_on_standard_output(
    arguments: list[str], code: int, words: str, hint: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == code
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert set(found) == {"error", "hint", "exit_code"}
    assert found["exit_code"] == code
    assert words in found["error"]
    assert found["hint"] == hint if hint is not None else found["hint"]
    assert captured.err.startswith(f"dlas: {found['error']}")
    assert len(captured.err.splitlines()) == 1


def test_without_json_standard_output_stays_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["info", "none.onnx"]) == 2
    assert capsys.readouterr().out == ""


def test_a_defect_and_an_interruption_are_told_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(folder: Path | None) -> None:
        raise ZeroDivisionError("by zero")

    def stopped(folder: Path | None) -> None:
        raise KeyboardInterrupt

    for function, code, words in (
        (broken, 3, "internal error: ZeroDivisionError"),
        (stopped, 130, "interrupted"),
    ):
        monkeypatch.setattr("dlas.data.find.find_datasets", function)
        assert run_command(["data", "--json"]) == code
        found = json.loads(capsys.readouterr().out)
        assert words in found["error"]
        assert found["exit_code"] == code
