"""What a file format is: how it is recognised, read into a Model and written from one.

Members live in ``graph/formats/``, one module or sub-package each.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from dlas.core.errors import ModelError, OptionError, UnsupportedError
from dlas.core.options import Configurable, describe_options
from dlas.core.registry import Registry
from dlas.graph.model import Model
from dlas.graph.weights import WeightFile

formats: Registry[type[Format]] = Registry("format", "dlas.graph.formats")


@dataclass(frozen=True)
class Written:
    """What an exporter did: notes name everything that could not be kept."""

    path: Path
    notes: tuple[str, ...] = ()


class Format(Configurable):
    """A file format of networks.

    Class attributes:
        suffixes: File endings, with the dot.
        can_write: Whether :meth:`save` exists.
        runtime: Who runs a file of it without any translation of ours, as ``dlas.runtime.native`` knows it; empty where
            nobody does.
        load_seconds: Longest time a sound file of it takes to read; a guarded import (graph/guard.py) stops there.
        load_memory: Bytes that reading a small file may take beside the interpreter, libraries included.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    can_write: ClassVar[bool] = False
    runtime: ClassVar[str] = ""
    load_seconds: ClassVar[float] = 20.0
    load_memory: ClassVar[int] = 2 * 2**30

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        """Whether the first 64 bytes of a file can be of this format (a cheap test against wrong endings)."""
        return True

    @classmethod
    def recognises_folder(cls, path: Path) -> bool:
        """Whether a folder is a network of this format, told by the names of the files in it."""
        return False

    @abstractmethod
    def load(self, path: Path) -> Model:
        """Read a file, or a folder that :meth:`recognises_folder` knows.

        Raises:
            ModelError: Missing, truncated, of another type, or not a valid network.
            UnsupportedError: It uses an operator that cannot be expressed; all of them are named.
        """

    @classmethod
    def weights(cls, path: Path) -> WeightFile | None:
        """What a file that can hold tensors without a graph has in it; None for a format that always has a graph.

        Raises:
            ModelError: As :meth:`load`.
        """
        return None

    @classmethod
    def unread(cls, path: Path) -> frozenset[str]:
        """Options of the reader that say nothing about this one file, although they do about others of the format."""
        return frozenset()

    @classmethod
    def reading(cls, path: Path, **given: Any) -> Self:
        """The reader of ``path`` with these options.

        Raises:
            UnknownNameError: The format has no such option.
            OptionError: A value is not accepted, or reading this file would ignore the option.
        """
        return cls._with("reading", path, given, cls.unread(path))

    @classmethod
    def writing(cls, path: Path, **given: Any) -> Self:
        """The writer of ``path`` with these options; raises as :meth:`reading`."""
        return cls._with("writing", path, given, frozenset())

    @classmethod
    def _with(cls, use: str, path: Path, given: dict[str, Any], idle: frozenset[str]) -> Self:
        made = cls(**given)
        own = describe_options(cls.Options)
        useful = [name for name, o in own.items() if o.get("use", use) == use and name not in idle]
        for name, value in given.items():
            if name not in useful:
                raise OptionError(
                    f"{path.name}: {name}",
                    value,
                    f"options for {use} it, which are " + (", ".join(useful) or "none"),
                    "this one says nothing about it"
                    if name in idle
                    else f"this one is for {own[name]['use']}",
                )
        return made

    @classmethod
    def companions(cls, path: Path) -> tuple[Path, ...]:
        """Other files that hold part of the network in ``path``; none where the file is damaged (load says so)."""
        return ()

    def save(self, model: Model, path: Path) -> Written:
        """Write ``model`` to ``path`` (atomically)."""
        raise UnsupportedError(f"format {self.name} cannot be written")


def format_for(path: Path) -> type[Format]:
    """The format whose suffix ``path`` carries, or that knows the folder ``path``.

    Raises:
        ModelError: No format has that suffix, or knows that folder.
    """
    if path.is_dir():
        for _, member in formats.members():
            if member.recognises_folder(path):
                return member
        raise ModelError(f"{path} is a folder that no format knows", "name the model file in it")
    known: list[str] = []
    for _, member in formats.members():
        known += member.suffixes
        if path.suffix.lower() in member.suffixes:
            return member
    hint = "accepted: " + ", ".join(sorted(known))
    if any(member.recognises_folder(path.parent) for _, member in formats.members()):
        hint = f"it is a part of the network in {path.parent}: name that folder"
    elif path.suffix.lower() == ".pb":
        hint += "; of TensorFlow's, the folder of a SavedModel"
    raise ModelError(f"{path.name}: no format has the ending {path.suffix or '(none)'!r}", hint)


def takes(path: Path, option: str) -> bool:
    """Whether reading ``path`` looks at an option of that name; raises ModelError as :func:`format_for`."""
    member = format_for(path)
    return option in describe_options(member.Options) and option not in member.unread(path)


def companions(path: Path) -> tuple[Path, ...]:
    """Other files that hold part of the network in ``path``, such as external weights.

    Raises:
        ModelError: No format has its suffix.
    """
    return format_for(path).companions(path) if path.exists() else ()


def identify(path: Path) -> type[Format]:
    """The format of an existing file or folder, by its ending and its first bytes.

    Raises:
        ModelError: The file is missing, empty, or not what its ending says.
    """
    if path.is_dir():
        return format_for(path)
    if not path.exists():
        raise ModelError(f"{path}: no such file", "check the path, or set DLAS_DATA for relative ones")
    if not path.is_file():
        raise ModelError(f"{path} is not a regular file", "name a model file")
    try:
        size = path.stat().st_size
        member = format_for(path)
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    if size == 0:
        raise ModelError(f"{path.name} is empty", "download or export it again")
    if not member.recognises(head):
        others = [
            m for _, m in formats.members() if m.recognises is not Format.recognises and m.recognises(head)
        ]
        fits = [e for m in others if _tells(m, head) for e in m.suffixes]
        raise ModelError(
            f"{path.name} holds no {member.name} network although it ends in {path.suffix}",
            f"it looks like {' or '.join(fits)}: give it that ending"
            if fits
            else "check that it was downloaded or exported completely",
        )
    return member


def _tells(member: type[Format], head: bytes) -> bool:
    """Whether the head says something: a format that takes noise for its own is no hint."""
    return not member.recognises(b"\xff" * 64) and not member.recognises(b"a text of letters and blanks" * 2)


def load_model(path: Path, **options: Any) -> Model:
    """Read a network from ``path`` in this process; options go to the format's reader.

    A file that nobody vouches for is better read by :func:`dlas.graph.guard.import_model`.

    Raises:
        ModelError: The file is missing, empty, or not what its ending says.
        OptionError: As :meth:`Format.reading`.
    """
    return identify(path).reading(path, **options).load(path)


def save_model(model: Model, path: Path, **options: Any) -> Written:
    """Write a network to ``path`` in the format its ending names."""
    member = format_for(path)
    if not member.can_write:
        raise UnsupportedError(f"format {member.name} can be read but not written")
    return member.writing(path, **options).save(model, path)
