"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def find_data() -> Path | None:
    """Folder with the real data sets and models, or None."""
    for place in (os.environ.get("DLAS_DATA"), ROOT.parent / "shared" / "data"):
        if place and (Path(place) / "models").is_dir():
            return Path(place)
    return None


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data and models; the test is skipped, with the reason, where they are absent."""
    found = find_data()
    if found is None:
        pytest.skip("the real data are not here: set DLAS_DATA to their folder")
    return found


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test writes its cache into a folder of its own."""
    monkeypatch.setenv("DLAS_CACHE", str(tmp_path_factory.mktemp("cache")))
