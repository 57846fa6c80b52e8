"""What the product of a step depends on besides its inputs: code, libraries, plug-ins, processor."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dlas
from dlas.core.environment import relevant_flags, versions

# The layers that make products; those above only choose and show.
LAYERS = ("core", "graph", "data", "models", "kernels", "compress", "hardware", "runtime", "verify")


def made_with() -> dict[str, Any]:
    """Versions of the libraries, hashes of dlas's and the plug-ins' sources, and the processor's features.

    Engines pick kernels and compilers instructions by those features.
    """
    return {
        **versions(),
        "code": code_hash(),
        "plug-ins": dict(plugin_hashes()),
        "processor": [platform.machine(), *relevant_flags()],
    }


@functools.cache
def code_hash() -> str:
    """Hash of dlas's own sources that make products: a change of the code makes new keys."""
    digest = hashlib.sha256(dlas.__version__.encode())
    root = Path(dlas.__file__).parent
    for layer in LAYERS:
        for path in sorted((root / layer).rglob("*.py")):
            digest.update(path.read_bytes())
    digest.update((root / "explore" / "steps.py").read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def plugin_hashes() -> Mapping[str, str]:
    """Hash of the sources of every top-level package that adds members to a family, by package."""
    points = [
        point
        for distribution in importlib.metadata.distributions()
        for point in distribution.entry_points
        if point.group.startswith("dlas.")
    ]
    found = {}
    for package in sorted({p.module.partition(".")[0] for p in points}):
        spec = importlib.util.find_spec(package)
        places = [Path(p) for p in (spec.submodule_search_locations or [spec.origin or ""])] if spec else []
        digest = hashlib.sha256()
        for place in places:
            for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
                digest.update(path.read_bytes() if path.is_file() else b"")
        found[package] = digest.hexdigest()[:16]
    return found
