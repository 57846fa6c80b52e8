"""The benchmark scripts start, and say what they do; what they measure is never part of the tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs_blocks import ROOT

SCRIPTS = sorted((ROOT / "benchmarks").glob("bench_*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_help_names_the_json_option(script: Path) -> None:
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout
    first = script.read_text().split('"""')[1].splitlines()[0]
    assert re.sub(r"\W", "", first) in re.sub(r"\W", "", done.stdout)


def test_the_page_names_every_script() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text()
    listed = re.findall(r"^\| `(bench_\w+\.py)`", page, flags=re.M)
    assert sorted(listed) == [s.name for s in SCRIPTS]


def test_accuracy_without_data_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLAS_DATA", raising=False)
    script = ROOT / "benchmarks" / "bench_int8_accuracy.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "DLAS_DATA" in done.stderr
    assert "Traceback" not in done.stderr
