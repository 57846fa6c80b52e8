"""The configuration of a Keras file, judged before Keras sees it: only names of Keras's own building blocks pass.

Keras makes objects from what the configuration says: classes by name out of any module, functions out of serialised
bytecode, files read from paths. So every class, function and module in it must stand in the lists here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.formats.keras.accepted import ACTIVATIONS, LAYERS, OPERATIONS, PARTS, TF_CALLS

MAX_TEXT = 64 * 2**20  # bytes of a configuration; 10,000 layers take about 10 MB
_MAX_DEPTH = 200  # nested models and wrappers stay far below
_MAX_OBJECTS = 100_000
_LARGEST = 2**31  # of any number: units, filters, sizes
_OPEN_ENDS = (2**63 - 1, -(2**63), 1e9, -1e9, 3.4028234663852886e38, -3.4028234663852886e38)
_NOT_SIZES = frozenset({"shared_object_id", "seed"})  # an address, and any number at all

_CLASSES = LAYERS | PARTS | OPERATIONS
_TF_LAYERS = frozenset({"TFOpLambda", "SlicingOpLambda"})
_MODULE = re.compile(
    r"^(tf_)?keras(\.src)?(\.(layers|initializers|regularizers|constraints|activations|models|engine|ops"
    r"|dtype_policies|mixed_precision)(\.[a-z_0-9]+)*)?$"
)
_CODE = {
    "Lambda": "a Lambda layer, which is Python code",
    "__lambda__": "a function serialised as Python bytecode",
    "function_type": "a function serialised as Python bytecode",
    "TFSMLayer": "a layer that loads another model file (TFSMLayer)",
    "TorchModuleWrapper": "a pickled PyTorch module (TorchModuleWrapper)",
    "__typespec__": "a TensorFlow type of its own (__typespec__)",
}
_TEXT = frozenset(
    {"TextVectorization", "StringLookup", "IntegerLookup", "Hashing", "HashedCrossing", "DenseFeatures"}
)


def read_config(text: bytes | str, file: str) -> dict[str, Any]:
    """The configuration as a dictionary, once everything in it has been found harmless.

    Raises:
        ModelError: Not JSON, too large or too deep, or it holds code.
        UnsupportedError: It names layers or functions that are not Keras's own, or that read files; all are named.
    """
    if isinstance(text, bytes):
        # One reading for everyone: JSON in bytes might be taken for UTF-16 by one reader and not by the next.
        if b"\0" in text:
            raise ModelError(f"{file}: its configuration is not text", "save it again with Keras")
        text = text.decode("utf-8", errors="replace")
    if len(text) > MAX_TEXT:
        raise ModelError(f"{file}: its configuration has {len(text)} bytes, at most {MAX_TEXT} are read")
    try:
        config = json.loads(text)
    except RecursionError as error:
        raise ModelError(f"{file}: its configuration is nested too deeply", "export it again") from error
    except ValueError as error:
        raise ModelError(
            f"{file}: its configuration is not JSON: {error}", "save it again with Keras"
        ) from error
    if not isinstance(config, dict) or "class_name" not in config:
        raise ModelError(f"{file}: its configuration describes no network", "save it again with Keras")
    # Losses and metrics are never built: reading passes compile=False.
    config.pop("compile_config", None)
    check_config(config, file)
    return config


def check_config(config: Any, file: str) -> None:
    """Refuse what :func:`read_config` refuses, in a configuration that is parsed already."""
    refused: dict[str, None] = {}
    for entry in _objects(config, file):
        kind = entry.get("class_name")
        _refuse_code(entry, kind, file)
        if kind is not None:
            for problem in _strangers(entry, kind):
                refused[problem] = None
    if refused:
        shown = list(refused)
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        raise UnsupportedError(
            f"{file} uses what is not a plain Keras layer or function: {', '.join(shown[:8])}{more}",
            "nothing from a file is ever run: build the network without it, or export it to ONNX yourself",
        )


def _objects(config: Any, file: str) -> Iterator[Mapping[str, Any]]:
    """Every dictionary in ``config``; no recursion, so that depth costs nothing."""
    waiting: list[tuple[Any, int]] = [(config, 0)]
    count = 0
    while waiting:
        item, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise ModelError(
                f"{file}: its configuration is nested deeper than {_MAX_DEPTH}", "export it again"
            )
        if isinstance(item, Mapping):
            count += 1
            if count > _MAX_OBJECTS:
                raise ModelError(f"{file}: its configuration has more than {_MAX_OBJECTS} objects")
            yield item
            waiting += [(value, depth + 1) for key, value in item.items() if key not in _NOT_SIZES]
        elif isinstance(item, list):
            waiting += [(value, depth + 1) for value in item]
        elif (
            isinstance(item, int | float) and _LARGEST <= abs(item) < float("inf") and item not in _OPEN_ENDS
        ):
            raise ModelError(f"{file}: its configuration holds the number {item:.4g}, no size of a network")


def _refuse_code(entry: Mapping[str, Any], kind: Any, file: str) -> None:
    found = kind if isinstance(kind, str) and kind in _CODE else ""
    if "function_type" in entry and entry.get("function_type") != "function":
        found = found or "function_type"
    if "__lambda__" in entry:
        found = "__lambda__"
    if found:
        raise ModelError(
            f"{file} holds {_CODE[found]}, which dlas does not run",
            "replace it by Keras layers and save again, or export the network to ONNX yourself",
        )


def _strangers(entry: Mapping[str, Any], kind: Any) -> Iterator[str]:
    if not isinstance(kind, str):
        yield f"class {_shown(kind)}"
        return
    module, registered = entry.get("module"), entry.get("registered_name")
    inner = entry.get("config")
    if kind == "function":
        # Keras looks such a function up in any module; activations are the only ones a network needs.
        if (
            not isinstance(inner, str)
            or inner not in ACTIVATIONS
            or registered not in (None, "function", inner)
        ):
            yield f"function {_shown(module)}.{_shown(inner)}"
        elif module not in (None, "builtins", "keras.activations"):
            yield f"module {_shown(module)}"
        return
    if kind in _TF_LAYERS:
        called = inner.get("function") if isinstance(inner, Mapping) else None
        if called not in TF_CALLS:
            yield f"TensorFlow function {_shown(called)}"
    elif kind in _TEXT:
        yield f"{kind} (it works on text or reads files)"
    elif kind not in _CLASSES:
        yield _shown(kind)
    if module is not None and not (isinstance(module, str) and _MODULE.match(module)):
        yield f"module {_shown(module)}"
    if registered not in (None, kind):
        yield f"registered object {_shown(registered)}"


def _shown(value: Any) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", str(value))[:60]
