"""How much a file may unpack to before it is refused."""

from __future__ import annotations

import re
from pathlib import Path

from dlas.core.errors import DataError

MAX_BYTES = 16 * 2**30
_SPLIT = re.compile(r"(?:^|[-_.])(train|test|validation)$")


def check_size(path: Path, unpacked_bytes: int) -> None:
    """Refuse a file that says it unpacks to more than memory should be spent on."""
    if unpacked_bytes > MAX_BYTES:
        raise DataError(
            f"{path.name} unpacks to {unpacked_bytes / 2**30:.1f} GiB; at most {MAX_BYTES / 2**30:.0f} are read",
            "cut it into several files",
        )


def split_in_name(path: Path) -> str:
    """``train``, ``test`` or ``validation`` when the name ends so, else an empty string."""
    match = _SPLIT.search(path.stem.lower())
    return match[1] if match else ""
