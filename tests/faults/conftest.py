"""Fixtures of the tests of faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults_bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A place of its own with a small network and rows."""
    return Bench(tmp_path).fill()
