"""The table of operators: what each tflite builtin is in ONNX and back.

Every module of ``ops/`` exposes ``RULES``; one rule holds both directions of one operator, or of a few that are
written the same way.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from dlas.graph.formats.tflite.reader import Reader
    from dlas.graph.formats.tflite.tensors import Operation
    from dlas.graph.formats.tflite.writer import Writer

Read = Callable[["Reader", "Operation"], None]
Write = Callable[["Writer", "ir.Node"], None]


@dataclass(frozen=True)
class Rule:
    """One operator in both directions.

    Attributes:
        tflite: Builtins that ``read`` translates.
        onnx: ONNX operators that ``write`` translates.
        read: Emits the ONNX nodes of one tflite operator.
        write: Emits the tflite operators of one ONNX node.
    """

    tflite: tuple[str, ...] = ()
    onnx: tuple[str, ...] = ()
    read: Read | None = None
    write: Write | None = None


@cache
def _rules() -> tuple[Rule, ...]:
    package = importlib.import_module("dlas.graph.formats.tflite.ops")
    modules = sorted(found.name for found in pkgutil.iter_modules(package.__path__))
    return tuple(
        rule for module in modules for rule in importlib.import_module(f"{package.__name__}.{module}").RULES
    )


@cache
def readers() -> dict[str, Read]:
    """Builtin name to its translation into ONNX."""
    return {kind: rule.read for rule in _rules() for kind in rule.tflite if rule.read is not None}


@cache
def writers() -> dict[str, Write]:
    """ONNX operator to its translation into tflite."""
    return {kind: rule.write for rule in _rules() for kind in rule.onnx if rule.write is not None}
