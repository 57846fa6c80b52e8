"""What all commands share: consoles, JSON, tables, progress, options in common."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlas.core.errors import DlasError, OptionError, UnsupportedError
from dlas.core.text import printable

if TYPE_CHECKING:
    from dlas.core.figure import Figure
    from dlas.data.dataset import Dataset

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for study.db, report.html and models.")]
Data = Annotated[
    str, typer.Option("--data", help="Data set: file, folder or built-in name; relative to DLAS_DATA.")
]
Split = Annotated[str, typer.Option("--split", help="Split of the data set, where it has several.")]
Architecture = Annotated[
    str,
    typer.Option("--architecture", help="Architecture of a bare checkpoint, such as cifar-resnet:depth=20."),
]
Preprocess = Annotated[
    str,
    typer.Option(
        "--preprocess", help="What samples go through: key=value pairs, mean and std joined by ':'."
    ),
]

_TEXT = 1_000_000
_CELL = 300  # characters of a table's cell


def clean(text: object) -> str:
    """Text fit for a terminal: what a hostile file could carry is removed, and what is very long is cut."""
    return printable(text)


def say(text: str) -> None:
    """One line of progress or advice on standard error."""
    sys.stderr.write(clean(text) + "\n")


def write_json(value: Any) -> None:
    """The answer as JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=_plain) + "\n")


def write_text(text: str) -> None:
    """Plain text on standard output."""
    sys.stdout.write(printable(text, _TEXT).rstrip() + "\n")


def write_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table on standard output; as wide as its content where that is no terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    numeric = {"ms", "MiB", "KiB", "params", "MACs"}
    heading = Text(printable(title, _CELL)) if title else None
    table = Table(title=heading, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        right = any(word in column for word in numeric)
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell, _CELL, lines=False)) for cell in row))
    console = Console(file=sys.stdout, soft_wrap=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=240)
    console.print(table)


def figure_text(figure: Figure | None, digits: int = 3) -> str:
    """A figure for a table: ``0.412 [0.408, 0.419] ms``; empty when there is none."""
    if figure is None:
        return ""
    if figure.unit == "fraction":
        return f"{100 * figure.value:.2f} %"
    if figure.unit == "bytes":
        return size_text(figure.value)
    text = f"{figure.value:.{digits}g}"
    if figure.low is not None and figure.high is not None:
        text += f" [{figure.low:.{digits}g}, {figure.high:.{digits}g}]"
    return text


def size_text(count: float) -> str:
    """Bytes in a readable unit."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def count_text(count: float) -> str:
    """A large count in a readable unit: ``40.8 M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f}"


def preprocessing_fields(text: str) -> dict[str, Any]:
    """Fields of Preprocessing from ``scale=0.00392,mean=0.485:0.456:0.406``; ``imagenet`` names its constants."""
    from dlas.core.options import parse_value
    from dlas.graph.preprocessing import IMAGENET_MEAN, IMAGENET_STD

    constants = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    fields: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, sign, value = part.partition("=")
        key = key.strip()
        if not sign:
            raise OptionError("--preprocess", text, "key=value pairs, such as scale=0.00392,layout=NCHW")
        if key in constants:
            try:
                fields[key] = constants[key] if value == "imagenet" else tuple(map(float, value.split(":")))
            except ValueError:
                raise OptionError(
                    f"--preprocess {key}", value, "numbers joined by ':', or imagenet"
                ) from None
        elif "/" in value:
            top, _, bottom = value.partition("/")
            fields[key] = float(top) / float(bottom)
        else:
            fields[key] = parse_value(value)
    return fields


def dataset(data: str, split: str = "", rows: int = 0) -> Dataset | None:
    """The data set a user named, or None; fewer rows come as a balanced sample.

    Raises:
        OptionError: A split or a number of rows, and no data set to take them from.
    """
    from dlas import api
    from dlas.data.splits import sample

    found = api.dataset(data, split)
    if found is None:
        if rows:
            raise OptionError("--rows", rows, "none without --data")
        return None
    if 0 < rows < len(found):
        found = sample(found, rows, seed=0, balanced=found.labels is not None)
    return found


def check_target(target: Path, force: bool) -> None:
    """Refuse what could not be written before any work is done for it.

    Raises:
        DlasError: As :func:`check_place`.
        UnsupportedError: A format that cannot be written.
    """
    from dlas.graph.format import format_for, formats

    check_place(target, force)
    if not format_for(target).can_write:
        endings = sorted(e for _, member in formats.members() if member.can_write for e in member.suffixes)
        raise UnsupportedError(
            f"format {format_for(target).name} can be read but not written", "accepted: " + ", ".join(endings)
        )


def guarded_target(target: Path, force: bool) -> contextlib.AbstractContextManager[None]:
    """While a command works: a file that somebody else puts at ``target`` meanwhile is kept, except with ``force``."""
    from dlas.core.files import only_new

    return contextlib.nullcontext() if force else only_new(target)


def check_place(target: Path, force: bool) -> None:
    """Refuse a target that is a folder, a file that exists (without ``force``), or in a place that takes no files.

    Raises:
        DlasError: It is one of these.
    """
    if target.is_dir() or not target.parent.is_dir():
        what = "it is a folder" if target.is_dir() else f"{target.parent} is not a folder"
        raise DlasError(f"cannot write {target}: {what}", "name a file in a folder that exists")
    if target.exists() and not force:
        raise DlasError(f"{target} exists", "name another file, or --force to replace it")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise DlasError(f"cannot write {target}: {target.parent} is not writable", "choose another folder")


def pairs(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts of a repeated option as a dictionary.

    Raises:
        OptionError: One of them has no ``=``.
    """
    from dlas.core.options import parse_value

    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise OptionError(option, text, "KEY=VALUE")
        found[key.replace("-", "_")] = parse_value(value)
    return found


def method_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split free arguments into names and ``--option value`` pairs, for options that belong to a method.

    Raises:
        OptionError: An option without a value.
    """
    from dlas.core.options import parse_value

    names: list[str] = []
    options: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            names.append(word)
            continue
        key, sign, value = word[2:].partition("=")
        if not sign:
            if not rest or rest[0].startswith("--"):
                raise OptionError(word, "", "a value after it")
            value = rest.pop(0)
        options[key.replace("-", "_")] = parse_value(value)
    return names, options


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    to_list = getattr(value, "tolist", None)
    if callable(to_list):
        return to_list()
    return str(value)


class Bar:
    """Progress of a long run on standard error: a bar on a terminal, a line per step elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self._lines = not console.is_terminal
        self._bar = Progress(
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=self._lines,
        )
        self._task = self._bar.add_task("start", total=None)
        self._done, self._total = 0, 0
        self._said = ""

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, total: int) -> None:
        """See explore.progress.Progress."""
        self._total = total
        self._bar.update(self._task, total=total)

    def step(self, text: str) -> None:
        """See explore.progress.Progress."""
        self._bar.update(self._task, description=clean(text))
        if self._lines and text != self._said:
            self._said = text
            count = f"{self._done}/{self._total} " if self._total else ""
            say(f"  {count}{text}")

    def advance(self, units: int = 1) -> None:
        """See explore.progress.Progress."""
        self._done += units
        self._bar.advance(self._task, units)
