"""``dlas serve``: where it says it is, how it ends, what it refuses."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dlas.cli import serve as command
from dlas.cli.main import run_command
from dlas.explore.storage import SqliteStorage

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
Started = tuple["subprocess.Popen[str]", str]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    storage = SqliteStorage(tmp_path / "dlas-out" / "study.db")
    storage.put_study("kept", {"keys": ["a"], "objectives": ["min:latency_ms"]})
    storage.close()
    return tmp_path


@pytest.fixture
def start(study: Path) -> Iterator[Callable[..., Started]]:
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> Started:
        process = subprocess.Popen(
            [sys.executable, "-m", "dlas.cli.main", "serve", "--port", "0", *arguments],
            cwd=study, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline()

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def test_it_says_where_it_is_and_ends_with_ctrl_c(start: Callable[..., Started]) -> None:
    process, line = start()
    assert line.startswith("http://127.0.0.1:")
    with DIRECT.open(line.strip() + "api/studies", timeout=20) as answer:
        assert [(s["name"], s["state"]) for s in json.load(answer)] == [("kept", "stopped")]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err


def test_json_is_one_line(start: Callable[..., Started]) -> None:
    process, line = start("--json", "kept")
    found = json.loads(line)
    assert list(found) == ["url"]
    with DIRECT.open(found["url"] + "api/studies/kept", timeout=20) as answer:
        assert json.load(answer)["pending"] == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_what_cannot_be_served_is_one_line(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(study)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, words in (
            (["--port", port], f"port {port} of 127.0.0.1 is in use"),
            (["--port", "70000"], "70000"),
            (["--port", "0", "--host", "192.0.2.1"], "cannot be served"),
            (["--port", "0", "nothing"], "no such folder, study file, stack file or study"),
            (["--port", "0", "--out", "nowhere"], "nowhere: no such folder"),
        ):
            assert run_command(["serve", *arguments]) == 2
            told = capsys.readouterr()
            assert told.out == ""
            assert words in told.err
            assert len(told.err.splitlines()) == 1


def test_the_browser_is_opened_at_the_address(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.chdir(study)
    monkeypatch.setattr(command, "_open", opened.append)
    monkeypatch.setattr("dlas.report.server.StudyServer.serve_forever", lambda self: None)
    assert run_command(["serve", "--port", "0", "--open"]) == 0
    assert opened == [capsys.readouterr().out.strip()]
    assert run_command(["serve", "--port", "0"]) == 0
    assert len(opened) == 1
