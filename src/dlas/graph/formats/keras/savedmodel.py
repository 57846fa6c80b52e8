"""TensorFlow SavedModel folders, judged before TensorFlow loads them: only operators that compute with tensors pass.

A SavedModel is a program. Loading runs parts of it (initialisers, resources) and converting runs more (constant
folding), so every function that can be reached from its objects must consist of operators in the list here. The
operators that TensorFlow itself adds for writing checkpoints are accepted only where nothing can call them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.formats.keras.accepted import CHECKPOINTS, OPERATORS
from dlas.graph.formats.keras.bundle import check_bundle
from dlas.graph.formats.keras.wire import WireError, messages, number, text

PROGRAM = "saved_model.pb"
_OTHER_PROGRAMS = ("saved_model.pbtxt", "saved_model.cpb")
_MAX_NODES = 1_000_000
_MAX_FILES = 10_000
_MAX_CONSTANTS = 256 * 2**20  # bytes that constants may grow to beyond those in the file

_ITEM = {1: 4, 2: 8, 3: 4, 4: 1, 5: 2, 6: 1, 8: 8, 9: 8, 10: 1, 14: 2, 17: 2, 18: 16, 19: 2, 22: 4, 23: 8}


@dataclass(frozen=True)
class Program:
    """What a SavedModel offers.

    Attributes:
        signatures: Names a caller may choose from.
        tensorflow: Version that wrote it, or an empty string.
    """

    signatures: tuple[str, ...]
    tensorflow: str


def is_saved_model(folder: Path) -> bool:
    """Whether a folder holds the program of a SavedModel."""
    return any((folder / name).is_file() for name in (PROGRAM, *_OTHER_PROGRAMS))


def inspect(folder: Path, limit: int) -> Program:
    """Check a folder and say what can be called in it.

    Raises:
        ModelError: Damaged, leading out of its folder, or larger than it says.
        UnsupportedError: Operators, resources or files that a network has no use for; all operators are named.
    """
    for path in files(folder, limit):
        if path.name in _OTHER_PROGRAMS:
            raise UnsupportedError(f"{folder.name}: {path.name} is not read", f"save it as {PROGRAM}")
    program = folder / PROGRAM
    try:
        data = memoryview(program.read_bytes())
    except OSError as error:
        raise ModelError(f"{folder.name}: {PROGRAM} cannot be read: {error.strerror}") from error
    try:
        found = _inspect(data, folder.name)
    except WireError as error:
        raise ModelError(
            f"{folder.name}: {PROGRAM}: {error.message}", "check that it was copied completely"
        ) from error
    check_bundle(folder / "variables", folder.name, limit)
    return found


def files(folder: Path, limit: int | None = None) -> tuple[Path, ...]:
    """Every file below a folder.

    Raises:
        ModelError: One of them is a link or no regular file, they are too many, or larger than ``limit`` together.
    """
    found: list[Path] = []
    total = 0
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ModelError(
                f"{folder.name}: {path.name!r} is a link", "copy the file itself into the folder"
            )
        if path.is_dir():
            continue
        if not path.is_file():
            raise ModelError(f"{folder.name}: {path.name!r} is not a regular file")
        found.append(path)
        total += path.stat().st_size
        if len(found) > _MAX_FILES:
            raise ModelError(f"{folder.name} holds more than {_MAX_FILES} files")
        if limit is not None and total > limit:
            raise ModelError(
                f"{folder.name} holds more than the {limit} bytes that are read", "raise max_bytes"
            )
    return tuple(sorted(found))


def _inspect(data: memoryview, name: str) -> Program:
    graphs = list(messages(data, 2))
    if len(graphs) != 1:
        raise UnsupportedError(
            f"{name} holds {len(graphs)} graphs; one is read",
            "save it again with TensorFlow 2, for serving only",
        )
    (meta,) = graphs
    objects = list(messages(meta, 7))
    if not any(list(messages(part, 1)) for part in objects):
        raise UnsupportedError(
            f"{name} was saved by TensorFlow 1, which this reader does not run",
            "save it again with TensorFlow 2",
        )
    if next(messages(meta, 6), None) is not None:
        raise UnsupportedError(
            f"{name} brings files for its operators to read (assets)", "export it without them"
        )
    for part in objects:
        for node in messages(part, 1):
            if next(messages(node, 5), None) is not None or next(messages(node, 10), None) is not None:
                raise UnsupportedError(
                    f"{name} holds tables or files beside its weights", "export it without text processing"
                )
    _check_operators(meta, objects, name)
    names = [text(entry, 1) for entry in messages(meta, 5)]
    version = next((text(info, 5) for info in messages(meta, 1)), "")
    return Program(tuple(n for n in names if not n.startswith("__")), version)


def _check_operators(meta: memoryview, objects: list[memoryview], name: str) -> None:
    libraries = [lib for graph in messages(meta, 2) for lib in messages(graph, 2)]
    functions: dict[str, list[memoryview]] = {}
    for library in libraries:
        for function in messages(library, 1):
            label = next((text(s, 1) for s in messages(function, 1)), "")
            functions.setdefault(label, []).append(function)
    counter = _Counter(name, functions)
    roots = {text(entry, 1) for part in objects for entry in messages(part, 2)}
    strict = counter.reach(roots)
    refused: dict[str, None] = {}
    for label, bodies in functions.items():
        accepted = OPERATORS if label in strict else OPERATORS | CHECKPOINTS
        for body in bodies:
            refused.update(dict.fromkeys(counter.strangers(messages(body, 3), accepted)))
    for graph in messages(meta, 2):
        refused.update(dict.fromkeys(counter.strangers(messages(graph, 1), OPERATORS | CHECKPOINTS)))
    if refused:
        shown = sorted(refused)
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        raise UnsupportedError(
            f"{name} uses operators that do more than compute, or that cannot be expressed: "
            f"{', '.join(shown[:8])}{more}",
            "export the network without them, or to ONNX yourself",
        )


class _Counter:
    """Walks nodes once each, bounded in number and in the size their constants claim."""

    def __init__(self, name: str, functions: dict[str, list[memoryview]]) -> None:
        self._name = name
        self._functions = functions
        self._nodes = 0
        self._grown = 0

    def reach(self, roots: set[str]) -> set[str]:
        """Functions that can be called from ``roots``, these included."""
        reached: set[str] = set()
        waiting = list(roots)
        while waiting:
            label = waiting.pop()
            if label in reached or label not in self._functions:
                continue
            reached.add(label)
            for body in self._functions[label]:
                for node in messages(body, 3):
                    waiting.append(text(node, 2))
                    waiting += _called(node)
        return reached

    def strangers(self, nodes: Iterator[memoryview], accepted: frozenset[str]) -> Iterator[str]:
        """Operators that are not accepted; a call of a function by its name is."""
        for node in nodes:
            self._nodes += 1
            if self._nodes > _MAX_NODES:
                raise ModelError(f"{self._name} has more than {_MAX_NODES} operators")
            kind = text(node, 2)
            if kind not in accepted and kind not in self._functions:
                yield "".join(c if c.isprintable() else "?" for c in kind)[:60]
            self._weigh(node)

    def _weigh(self, node: memoryview) -> None:
        for entry in messages(node, 5):
            for value in messages(entry, 2):
                tensors = [
                    *messages(value, 8),
                    *(t for many in messages(value, 1) for t in messages(many, 8)),
                ]
                for tensor in tensors:
                    self._grown += max(0, _claimed(tensor, self._name) - len(tensor))
        if self._grown > _MAX_CONSTANTS:
            raise ModelError(
                f"{self._name}: its constants claim {self._grown} bytes more than the file has: refused"
            )


def _called(node: memoryview) -> Iterator[str]:
    """Names of the functions in the attributes of a node."""
    for entry in messages(node, 5):
        for value in messages(entry, 2):
            for function in (
                *messages(value, 10),
                *(f for many in messages(value, 1) for f in messages(many, 9)),
            ):
                yield text(function, 1)


def _claimed(tensor: memoryview, name: str) -> int:
    dims = [number(d, 1) for shape in messages(tensor, 2) for d in messages(shape, 2)]
    if any(d < 0 for d in dims):
        raise ModelError(f"{name}: a constant has the shape {dims[:8]}")
    return math.prod(dims) * _ITEM.get(number(tensor, 1), 16)
