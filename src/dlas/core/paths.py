"""Where relative paths of a stack file or a command start."""

from __future__ import annotations

import os
from pathlib import Path

from dlas.core.errors import DataError


def data_root() -> Path | None:
    """The folder that ``DLAS_DATA`` names, or None."""
    given = os.environ.get("DLAS_DATA")
    return Path(given).expanduser() if given else None


def resolve(name: str | Path, kind: str, *folders: Path) -> Path:
    """The file or folder called ``name``: as given, else below one of ``folders``, else below ``DLAS_DATA``.

    Args:
        name: Absolute or relative path.
        kind: What it is, for the message (``model``, ``data set``).
        folders: Further folders to look in.

    Raises:
        DataError: It is in none of them; lists where it was looked for.
    """
    path = Path(name).expanduser()
    roots = [Path(), *folders]
    root = data_root()
    if root is not None:
        roots.append(root)
    tried = [path] if path.is_absolute() else list(dict.fromkeys(r / path for r in roots))
    for candidate in tried:
        if candidate.exists():
            return candidate.resolve()
    hint = "check the path" + (
        "" if root else ", or set DLAS_DATA to the folder that relative paths start from"
    )
    raise DataError(f"{kind} {str(name)!r} not found; looked for " + ", ".join(map(str, tried)), hint)
