"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from places import find_data


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
