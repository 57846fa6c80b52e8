"""Nothing is sent and nothing is fetched: not by dlas, not by the libraries under it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dlas.core.lazy import optional_import
from dlas.graph.format import save_model
from dlas.testing.models import residual

COMPILER = shutil.which("cc") or shutil.which("gcc")
# Stands before the C library's own calls in every process that a command starts, native code included.
WATCH = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include <errno.h>
static void tell(const char *what) {
  int f = open(getenv("WATCH_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (f >= 0) { dprintf(f, "%s by %d\n", what, getpid()); close(f); }
}
static int outside(const struct sockaddr *a) { return a && (a->sa_family == AF_INET || a->sa_family == AF_INET6); }
int connect(int s, const struct sockaddr *a, socklen_t n) {
  if (outside(a)) { tell("connect"); errno = ENETUNREACH; return -1; }
  int (*own)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
  return own(s, a, n);
}
ssize_t sendto(int s, const void *b, size_t l, int g, const struct sockaddr *a, socklen_t n) {
  if (outside(a)) { tell("sendto"); errno = ENETUNREACH; return -1; }
  ssize_t (*own)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");
  return own(s, b, l, g, a, n);
}
int getaddrinfo(const char *h, const char *s, const struct addrinfo *i, struct addrinfo **o) {
  tell("getaddrinfo"); return EAI_FAIL;
}
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    """Environment in which every attempt to reach the network fails and is written down, and where to."""
    if COMPILER is None:
        pytest.skip("no C compiler here to build the watcher with")
    folder = tmp_path_factory.mktemp("watch")
    (folder / "watch.c").write_text(WATCH)
    built = [COMPILER, "-shared", "-fPIC", "-o", str(folder / "watch.so"), str(folder / "watch.c"), "-ldl"]
    subprocess.run(built, check=True, capture_output=True)
    env = {**os.environ, "LD_PRELOAD": str(folder / "watch.so"), "WATCH_LOG": str(folder / "log")}
    # As on a machine where nobody has decided anything, with a home of its own.
    for name in ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED", "DO_NOT_TRACK", "CI"):
        env.pop(name, None)
    return {**env, "HOME": str(folder)}, folder / "log"


def attempts(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def test_the_watcher_sees_connections(watched: tuple[dict[str, str], Path], tmp_path: Path) -> None:
    env = {**watched[0], "WATCH_LOG": str(tmp_path / "log")}
    code = "import socket\ntry: socket.create_connection(('127.0.0.1', 9))\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert "connect" in attempts(tmp_path / "log") or "getaddrinfo" in attempts(tmp_path / "log")


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "m.onnx", "m2.onnx"],
        pytest.param(["bench", "m.onnx", "--quick", "--backends", "all"], marks=pytest.mark.slow),
    ],
    ids=["convert", "bench"],
)
def test_commands_reach_for_nothing(
    watched: tuple[dict[str, str], Path], tmp_path: Path, command: list[str]
) -> None:
    env, log = watched
    save_model(residual(), tmp_path / "m.onnx")
    done = subprocess.run(
        [sys.executable, "-m", "dlas.cli.main", *command],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert attempts(log) == ""


def test_openvino_finds_no_telemetry() -> None:
    try:
        optional_import("openvino", extra="openvino", needed_for="this test")
    except Exception:
        pytest.skip("openvino is not installed")
    code = (
        "import dlas.core, sys, openvino.tools.ovc.telemetry_utils as t\n"
        "assert t.tm.__name__.endswith('telemetry_stub'), t.tm\n"
        "assert sys.modules['openvino_telemetry'] is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_usage_data_are_forbidden_in_the_environment() -> None:
    code = (
        "import dlas.core, os\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == os.environ['ORT_TELEMETRY_DISABLED'] == '1'\n"
        "assert os.environ['RAY_USAGE_STATS_ENABLED'] == '0'"
    )
    env = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k and not k.startswith("RAY_")}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=60)


def test_reading_a_hostile_model_opens_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """External data and custom operators named by address are names of files that do not exist."""
    from onnx import TensorProto, helper

    from dlas.core.errors import DlasError
    from dlas.graph.format import load_model

    def connected(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connected)
    monkeypatch.setattr(socket, "getaddrinfo", connected)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="https://localhost/w.bin")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [weight],
    )
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(DlasError, match="external data"):
        load_model(tmp_path / "m.onnx")
