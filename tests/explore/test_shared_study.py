"""Two processes on one study and one cache: they share the work, and nothing is done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from dlas.explore.storage import SqliteStorage
from dlas.explore.study import load_result
from dlas.testing import models as networks

DRIVER = """
import json, sys
from pathlib import Path
from dlas.core.cache import Cache
from dlas.explore.spec import spec_of
from dlas.explore.study import Study


class Diary:
    def __init__(self, path):
        self.path = path

    def start(self, total):
        pass

    def step(self, text):
        with self.path.open("a") as file:
            file.write(text + "\\n")

    def advance(self, units=1):
        pass


folder, name = Path(sys.argv[1]), sys.argv[2]
spec = spec_of(json.loads((folder / "spec.json").read_text()), "shared")
study = Study(spec, folder / "out", cache=Cache(folder / "cache"), progress=Diary(folder / name))
result = study.run()
assert result.pending == 0
"""


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    from dlas.graph.reference import predict

    (tmp_path / "net.onnx").write_bytes(networks.residual().to_bytes())
    x = networks.images(64)
    np.savez(tmp_path / "rows.npz", x=x, y=predict(networks.residual(), x).argmax(1))
    spec = {
        "model": {"path": str(tmp_path / "net.onnx")},
        "data": {"path": str(tmp_path / "rows.npz")},
        "compress": {"pipeline": ["float16", "magnitude:sparsity=0.5"]},
        "runtime": {"backend": ["onnxruntime"], "threads": [1, 2]},
        "study": {"timing": "quick"},
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    names = ["one", "two"]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path), name], stderr=subprocess.PIPE, text=True
        )
        for name in names
    ]
    errors = [child.communicate(timeout=240)[1] for child in both]
    assert [child.returncode for child in both] == [0, 0], errors
    storage = SqliteStorage(tmp_path / "out" / "study.db", create=False)
    result = load_result(storage, "shared")
    storage.close()
    assert len({tuple(sorted(p.choices.items())) for p in result.points}) == len(result.points) == 6
    assert {str(p.record.outcome) for p in result.points} == {"ok"}
    assert set(result.changes) == {"none", *spec["compress"]["pipeline"]}

    lines = {name: (tmp_path / name).read_text().splitlines() for name in names}
    made = Counter(line for found in lines.values() for line in found if "with another dlas" not in line)
    # Judging has one name for several networks: the folders of the cache tell how often it was done.
    once = {k: n for k, n in made.items() if not k.startswith(("judge", "check rows", "compile"))}
    assert set(once.values()) == {1}, once
    assert sum(made.values()) - sum(n for k, n in made.items() if k.startswith("time ")) == len(
        [p for p in (tmp_path / "cache").glob("??/*") if p.is_dir()]
    )
    assert all(any(line.startswith("time ") for line in found) for found in lines.values()), lines
    left = [p for p in tmp_path.rglob("*") if p.suffix in (".lock", ".tmp") or p.name == ".claims"]
    assert left == []
