"""Short names of the ways to run a network: ``ort:O0``, ``tvm:O0..O3@x86-64-v3/2``, ``all``.

A *path* is a back end with its options, the instruction set its code is made for and a number of threads. Whatever
``dlas list backends`` shows can be written in full (``onnxruntime:level=basic``); behind a colon a single word is a
value of the back end's one option that has a list of values (``openvino:bf16``), and ``A..B`` is every value of that
list from A to B.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass

from dlas.core.errors import OptionError, UnknownNameError
from dlas.core.options import Choice, split_choices
from dlas.hardware.target import measured_target
from dlas.runtime.backend import Backend, backends, installed_backends

_SHORT = {"onnxruntime": "ort"}
# Words for values, where the field has others than the engine.
_WORDS = {
    "onnxruntime": {"O0": "disable", "O1": "basic", "O2": "extended", "O3": "layout"},
    "litert": {"ref": "reference"},
}
_RISING = {"onnxruntime", "tvm", "iree"}  # their values are optimisation levels, least first
_FORM = re.compile(r"(?P<body>[^@/]+)(?:@(?P<isa>[^@/]+))?(?:/(?P<threads>[^@/]+))?")
ALL, LEVELS = "all", "levels"
USUAL = "ort:O0,all"
"""For a network that nothing else is said of: ONNX Runtime without optimisation, and each back end as it is."""


@dataclass(frozen=True)
class RunPath:
    """One way to run a network.

    Attributes:
        label: Short name; what reports call it.
        backend: Choice of back end with its options.
        target: Choice of target as text (``host:isa=x86-64-v3``).
        threads: Threads.
    """

    label: str
    backend: Choice
    target: str = "host"
    threads: int = 1

    @property
    def key(self) -> tuple[str, str, int]:
        """Equal for two spellings of one path."""
        member = backends.get(self.backend.name)
        return member(**self.backend.as_dict()).spelled(), self.target, self.threads

    @property
    def ladder(self) -> tuple[str, str, int] | None:
        """What paths share that differ in the optimisation level alone; None where the back end has no levels."""
        return (self.backend.name, self.target, self.threads) if self.backend.name in _RISING else None

    @property
    def level(self) -> int:
        """How high on its ladder: 0 optimises least."""
        member = backends.get(self.backend.name)
        field = _scale(member)
        if field is None:
            return 0
        value = getattr(member(**self.backend.as_dict()).options, field.name)
        return field.metadata["choices"].index(value)


def parse_paths(text: str | Iterable[str]) -> list[RunPath]:
    """Paths from their short names, joined by commas; each once, in the order given.

    Args:
        text: ``ort:O0,tvm:O0..O3@x86-64-v3/2,litert:ref,openvino:bf16``, or full choices. ``all`` is every installed
            back end, ``levels`` every level (or kernel set, or precision) of every installed one.

    Raises:
        UnknownNameError: No such back end or level; names the nearest.
        OptionError: A value that is not accepted.
    """
    parts = split_choices(text) if isinstance(text, str) else [p for t in text for p in split_choices(t)]
    found: dict[tuple[str, str, int], RunPath] = {}
    for part in parts:
        for path in _expand(part):
            found.setdefault(path.key, path)
    return list(found.values())


def known_paths() -> list[str]:
    """Short names of every back end and of every level of it."""
    return sorted({*backends.names(), *(n for member in backends.names() for n in _levels(member))})


def _expand(text: str) -> list[RunPath]:
    match = _FORM.fullmatch(text)
    if match is None:
        raise OptionError("path", text, "BACKEND[:LEVEL][@ISA][/THREADS], such as tvm:O0..O3@x86-64-v3/2")
    target = f"host:isa={match['isa']}" if match["isa"] else "host"
    measured_target(target)
    threads = match["threads"] or "1"
    if not threads.isascii() or not threads.isdecimal() or not 1 <= int(threads) <= 1024:
        raise OptionError(f"threads of path {text!r}", threads, "a whole number from 1 to 1024")
    ending = text[len(match["body"]) :]
    return [
        RunPath(label + ending, choice, target, int(threads)) for label, choice in _choices(match["body"])
    ]


def _choices(body: str) -> list[tuple[str, Choice]]:
    """Labels and choices that a name without its endings stands for."""
    if body == ALL:
        return [(name, Choice.of(name)) for name in installed_backends()]
    if body == LEVELS:
        return [pair for name in installed_backends() for label in _levels(name) for pair in _choices(label)]
    head, colon, rest = body.partition(":")
    name = next((long for long, short in _SHORT.items() if short == head), head)
    if name not in backends.names() or (colon and not rest):
        raise UnknownNameError("path", body, known_paths(), "`dlas list backends` shows every back end")
    member = backends.get(name)
    field = _scale(member)
    if not rest or "=" in rest or field is None:
        choice = Choice.parse(f"{name}:{rest}" if rest else name)
        member(**choice.as_dict())
        return [(body, choice)]
    words = _words(name)
    first, dots, last = rest.partition("..")
    for word in (first, last) if dots else (first,):
        if word not in words:
            raise UnknownNameError("path", f"{head}:{word}", [f"{head}:{known}" for known in words])
    values = list(field.metadata["choices"])
    at = values.index(words[first])
    to = values.index(words[last]) if dots else at
    if to < at:
        raise OptionError("path", body, "a range that rises: " + ", ".join(_shortest(name).values()))
    return [
        (f"{head}:{_shortest(name)[value]}", Choice.of(name, **{field.name: value}))
        for value in values[at : to + 1]
    ]


def _levels(name: str) -> list[str]:
    """Short names of every level of a back end; its own name where it has none."""
    return [f"{_SHORT.get(name, name)}:{word}" for word in _shortest(name).values()] or [name]


def _scale(member: type[Backend]) -> dataclasses.Field[str] | None:
    """The one option of a back end whose values are listed; None where there is none, or several."""
    listed = [f for f in dataclasses.fields(member.Options) if f.metadata.get("choices")]
    return listed[0] if len(listed) == 1 else None


def _words(name: str) -> dict[str, str]:
    """Words for the values of a back end's scale and the values they stand for."""
    field = _scale(backends.get(name))
    return {} if field is None else {**{v: v for v in field.metadata["choices"]}, **_WORDS.get(name, {})}


def _shortest(name: str) -> dict[str, str]:
    """The values of a back end's scale, in order, and the word for each."""
    return {value: word for word, value in _words(name).items()}
