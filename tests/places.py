"""Where the project and the real data lie; a module of its own, as several folders have a ``conftest``."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def find_data() -> Path | None:
    """Folder with the real data sets and models, or None."""
    for place in (os.environ.get("DLAS_DATA"), ROOT.parent / "shared" / "data"):
        if place and (Path(place) / "models").is_dir():
            return Path(place)
    return None
