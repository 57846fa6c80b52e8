"""What the tests of commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dlas.cli.main import run_command
from dlas.testing import models as networks


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small residual network in a file."""
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    path.write_bytes(networks.residual().to_bytes())
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail for its user's fault; returns the one line that says why."""

    def run(*arguments: str) -> str:
        assert run_command(list(arguments)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = [line for line in captured.err.splitlines() if line.startswith("dlas: ")]
        return line

    return run
