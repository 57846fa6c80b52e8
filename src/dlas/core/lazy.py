"""Optional libraries: imported on first use, in one place of their layer, with the extra to install in the error."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

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
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


class _LateModule(ModuleType):
    """Stands for a module until somebody asks for anything in it."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__file__ = spec, spec.origin
        self.__dict__["_lock"] = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        with self.__dict__["_lock"]:
            if "_real" not in self.__dict__:
                if sys.modules.get(self.__name__) is self:
                    del sys.modules[self.__name__]
                self.__dict__["_real"] = importlib.import_module(self.__name__)
        return getattr(self.__dict__["_real"], name)


def import_late(module: str, *submodules: str) -> None:
    """Let a library that others import at their top, and seldom use, be loaded by its first use.

    Args:
        module: A top-level module; nothing happens where it is loaded already or missing.
        submodules: Instead of the package itself, these of its modules: plain files, which the package imports.
    """
    spec = None if module in sys.modules else importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return
    if not submodules:
        sys.modules[module] = _LateModule(spec)
    for name in submodules:
        path = Path(spec.origin).parent / f"{name}.py"
        part = importlib.util.spec_from_file_location(f"{module}.{name}", path) if path.is_file() else None
        if part is not None:
            sys.modules[part.name] = _LateModule(part)
