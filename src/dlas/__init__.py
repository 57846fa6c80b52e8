"""dlas: the Deep Learning Acceleration Stack as one package.

    import dlas

    model = dlas.load("network.onnx")
    small = dlas.compress(model, "int8", data="rows.parquet")
    with dlas.compile(small, backend="onnxruntime", threads=2) as executable:
        executable.run({"input": x})

Names are resolved on first use, so ``import dlas`` stays light.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dlas.core.lazy import import_late

__version__ = "0.1.0"

_PUBLIC = {
    "dlas.api": (
        "bench", "compare", "compile", "compress", "convert", "load", "localize", "mutate", "optimize", "profile",
        "repair", "report", "save", "study",
    ),
    "dlas.core.errors": (
        "CheckFailedError", "DataError", "DlasError", "MissingDependencyError", "ModelError", "OptionError",
        "ShapeError", "StorageError", "UnknownNameError", "UnsupportedError",
    ),
    "dlas.core.figure": ("Figure", "Outcome", "Record", "Source"),
    "dlas.core.options": ("Choice",),
    "dlas.compress.method": ("Method", "methods"),
    "dlas.data.dataset": ("Dataset", "loaders"),
    "dlas.explore.result": ("StudyResult",),
    "dlas.explore.study": ("Study",),
    "dlas.graph.format": ("formats",),
    "dlas.graph.model": ("Model",),
    "dlas.graph.preprocessing": ("Preprocessing",),
    "dlas.hardware.target": ("Target", "targets"),
    "dlas.kernels.kernel": ("Kernel", "kernels"),
    "dlas.runtime.backend": ("Backend", "Executable", "backends"),
}  # fmt: skip
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from dlas.api import bench as bench
    from dlas.api import compare as compare
    from dlas.api import compile as compile
    from dlas.api import compress as compress
    from dlas.api import convert as convert
    from dlas.api import load as load
    from dlas.api import localize as localize
    from dlas.api import mutate as mutate
    from dlas.api import optimize as optimize
    from dlas.api import profile as profile
    from dlas.api import repair as repair
    from dlas.api import report as report
    from dlas.api import save as save
    from dlas.api import study as study


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dlas' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Layer(ModuleType):
    """A layer's package whose name is also a verb: ``dlas.compress(...)`` works before and after it is imported."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module("dlas.api"), self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Face(ModuleType):
    """This package: the import system puts a layer's package under its name, where a verb of that name would go."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PUBLIC["dlas.api"] and isinstance(value, ModuleType):
            value.__class__ = _Layer
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face

# onnx-ir loads SymPy (0.3 s, in every process) for arithmetic on symbolic dimensions, which hardly any network needs.
import_late("sympy")
import_late("onnx_ir", "_symbolic_shapes")
