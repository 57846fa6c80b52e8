"""The native kernels, where they were built; without them the NumPy references do the work."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from types import ModuleType

from dlas.core.errors import OptionError, UnsupportedError

BLOCK = {"x86-64-v4": 16, "x86-64-v3": 8, "x86-64-v2": 4, "neon": 4}  # float32 lanes of a vector
_HINT = "install a C++ compiler (g++ 12 or newer) and install dlas again"


@functools.cache
def native() -> ModuleType | None:
    """The extension module, or None where this installation has none.

    ``DLAS_NATIVE`` names another build of it, such as one with sanitisers.
    """
    other = os.environ.get("DLAS_NATIVE")
    if other:
        spec = importlib.util.spec_from_file_location("_native", other)
        if spec is None or spec.loader is None or not os.path.exists(other):
            raise OptionError("DLAS_NATIVE", other, "the path of a built extension module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    try:
        return importlib.import_module("dlas.kernels._native")
    except ModuleNotFoundError:
        return None


def need_native() -> ModuleType:
    """The extension module; raises UnsupportedError where it was not built."""
    module = native()
    if module is None:
        raise UnsupportedError("the native kernels of dlas were not built on this machine", _HINT)
    return module


def missing_native() -> str:
    """What is missing for native kernels, or an empty string."""
    module = native()
    if module is None:
        return f"not built: {_HINT}"
    return "" if module.isa_levels() else "built for other processors: install dlas on this one again"


def isa_levels() -> list[str]:
    """Instruction sets that were built and that this processor has, best first."""
    return list(need_native().isa_levels())


def choose_isa(wanted: str = "native") -> str:
    """``native`` (or the value of ``DLAS_ISA``) as one of :func:`isa_levels`.

    Raises:
        OptionError: This processor lacks it, or dlas was built without it.
    """
    levels = isa_levels()
    if wanted == "native":
        wanted = os.environ.get("DLAS_ISA", levels[0])
    if wanted not in levels:
        raise OptionError("isa", wanted, f"native or one of {', '.join(levels)}")
    return wanted
