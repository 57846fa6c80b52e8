"""No library sends usage data from a process of dlas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from dlas.graph.reference import predict
from dlas.testing import models
predict(models.residual(), models.images(2))
sockets = [f for f in Path("/proc/self/fd").iterdir() if f.exists() and f.is_socket()]
assert not sockets, sockets
"""


def test_onnxruntime_keeps_no_identifier_and_no_events(tmp_path: Path) -> None:
    free = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k}
    places = {
        "TMPDIR": str(tmp_path / "tmp"),
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "x"),
    }
    for place in places.values():
        Path(place).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**free, **places}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # Its uploader begins with an identifier and a store of events on disk.
    assert [str(p) for p in tmp_path.rglob("*") if p.is_file()] == []
