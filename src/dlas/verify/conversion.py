"""Convert a file from one format to another and prove the result on the runtimes that own the two formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlas.core.errors import DlasError, ShapeError
from dlas.data.dataset import Dataset
from dlas.graph.format import Written, format_for, save_model
from dlas.verify.compare import CompareReport, SourceError, Subject, compare_files


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        source: File read.
        written: File written, with notes on everything that could not be kept.
        read: Notes of the reader on what the source means and dlas takes otherwise.
        check: Comparison of the two files; None when it was skipped.
        why_unchecked: Why there is no check although one was wanted.
    """

    source: Path
    written: Written
    check: CompareReport | None = None
    why_unchecked: str = ""
    read: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "source": str(self.source),
            "target": str(self.written.path),
            "bytes": self.written.path.stat().st_size,
            "notes": [*self.read, *self.written.notes],
            "check": self.check.to_dict() if self.check else None,
            "why_unchecked": self.why_unchecked,
        }


def convert_file(
    source: Path,
    target: Path,
    *,
    architecture: str = "",
    data: Dataset | None = None,
    check: bool = True,
    read: Mapping[str, Any] | None = None,
    write: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Conversion:
    """Read ``source``, write ``target`` in the format its ending names, and compare the two.

    Args:
        source: File to read.
        target: File to write.
        architecture: For bare checkpoints.
        data: Rows for the check; random ones without.
        check: Compare the two files.
        read: Options of the source's format.
        write: Options of the target's format.
        tell: Receives one line per step.

    Raises:
        ModelError: The source cannot be read.
        UnsupportedError: The target's format cannot express the network; names what.
        DlasError: Source and target are the same file.
    """
    if source.resolve() == target.resolve():
        raise DlasError(f"{source}: source and target are the same file", "name another target")
    format_for(target).writing(target, **(write or {}))  # a wrong option is told before anything is read
    tell(f"read {source.name}")
    subject = Subject.open(source, architecture, **(read or {}))
    tell(f"write {target.name}")
    notes = subject.model.history[-1].notes if subject.model.history else ()
    written = save_model(subject.model, target, **(write or {}))
    if not check:
        return Conversion(source, written, read=notes)
    back = Subject.open(target)
    try:
        report = compare_files(subject, [back], data=data, tell=tell)
    except (
        ShapeError,
        SourceError,
    ) as error:  # the source does not run, or its answers do not pair up row by row
        return Conversion(source, written, why_unchecked=str(error), read=notes)
    return Conversion(source, written, report, read=notes)
