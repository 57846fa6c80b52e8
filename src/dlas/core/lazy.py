"""Optional libraries: imported on first use, in one place of their layer, with the extra to install in the error."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

from dlas.core.errors import MissingDependencyError


def optional_import(module: str, *, extra: str, needed_for: str) -> ModuleType:
    """Import ``module`` now.

    Raises:
        MissingDependencyError: It is not installed; names the extra that adds it.
    """
    if not installed(module):
        raise MissingDependencyError(module.split(".")[0], extra, needed_for)
    return importlib.import_module(module)


def installed(module: str) -> bool:
    """Whether the top-level package of ``module`` can be found, without importing it."""
    return importlib.util.find_spec(module.split(".")[0]) is not None


def distribution_version(distribution: str) -> str:
    """Version of an installed distribution, or an empty string."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
