"""Simulations take half a minute to compile, areas as long to find; both are kept by content between tests and runs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

_PLACE = (
    Path(os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()) / f"dlas-hardware-tests-{os.getuid()}"
)


@pytest.fixture(autouse=True)
def kept_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all tests of these folders."""
    monkeypatch.setenv("DLAS_CACHE", str(_PLACE))
