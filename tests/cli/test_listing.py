"""``dlas list`` where something is broken."""

from __future__ import annotations

import pytest

from dlas.cli.main import run_command
from dlas.graph.format import formats


def test_list_survives_a_member_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    get = formats.get

    def broken(name: str) -> object:
        if name == "gguf":
            raise ImportError("libstrange.so: no such file")
        return get(name)

    monkeypatch.setattr(formats, "get", broken)
    assert run_command(["list", "formats"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if " gguf " in line]
    assert "broken: ImportError: libstrange.so: no such file" in line
    assert any(" tflite " in line for line in lines)
