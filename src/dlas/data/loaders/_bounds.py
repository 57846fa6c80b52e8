"""How much a file may unpack to before it is refused."""

from __future__ import annotations

import re
from pathlib import Path

from dlas.core.errors import DataError

MAX_BYTES = 16 * 2**30
_BLOAT = 200  # no real data shrink that much, beyond what a small file of one colour may
_FREE_BYTES = 256 * 2**20
_SPLIT = re.compile(r"(?:^|[-_.])(train|test|validation)$")


def check_size(path: Path, unpacked_bytes: int) -> None:
    """Refuse a file that unpacks to more than memory should be spent on, or to far more than it is."""
    if unpacked_bytes > MAX_BYTES:
        raise DataError(
            f"{path.name} unpacks to {unpacked_bytes / 2**30:.1f} GiB; at most {MAX_BYTES / 2**30:.0f} are read",
            "cut it into several files",
        )
    size = path.stat().st_size
    if path.is_file() and unpacked_bytes > _BLOAT * size + _FREE_BYTES:
        raise DataError(
            f"{path.name} has {size} bytes but unpacks to {unpacked_bytes}: refused as a zip bomb",
            "write it without compression if its content is really that uniform",
        )


def split_in_name(path: Path) -> str:
    """``train``, ``test`` or ``validation`` when the name ends so, else an empty string."""
    match = _SPLIT.search(path.stem.lower())
    return match[1] if match else ""
