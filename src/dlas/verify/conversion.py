"""Convert a file from one format to another and prove the result on the runtimes that own the two formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlas.core.errors import DlasError, ModelError, ShapeError
from dlas.core.figure import Outcome
from dlas.data.dataset import Dataset
from dlas.graph.format import Written, format_for, save_model
from dlas.runtime.converter import TIMEOUT_S, Converted, Converter
from dlas.verify.differential.compare import CompareReport, SourceError, Subject, compare_files


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        source: File read.
        written: File written, with notes on everything that could not be kept.
        read: Notes of the reader on what the source means and dlas takes otherwise.
        check: Comparison of the two files; None when it was skipped.
        why_unchecked: Why there is no check although one was wanted.
        made_by: What became of the converter that was asked for; None where dlas wrote the file itself.
    """

    source: Path
    written: Written
    check: CompareReport | None = None
    why_unchecked: str = ""
    read: tuple[str, ...] = ()
    made_by: Converted | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "source": str(self.source),
            "target": str(self.written.path),
            "bytes": self.written.path.stat().st_size,
            "notes": [*self.read, *self.written.notes],
            "check": self.check.to_dict() if self.check else None,
            "why_unchecked": self.why_unchecked,
            "made_by": self.made_by.to_dict() if self.made_by else None,
        }


class ConverterError(DlasError):
    """A converter ended without a file."""

    exit_code = 1


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
    done = Conversion(source, written, read=notes)
    return _checked(done, subject, data, tell) if check else done


def convert_with(
    converter: Converter,
    source: Path,
    target: Path,
    *,
    architecture: str = "",
    data: Dataset | None = None,
    check: bool = True,
    read: Mapping[str, Any] | None = None,
    timeout_s: float = TIMEOUT_S,
    tell: Callable[[str], None] = lambda text: None,
) -> Conversion:
    """Let somebody else's converter write ``target``, and compare the two files.

    Args:
        converter: The tool, with its options.
        source: File to read.
        target: File to write; it may have an ending that dlas does not know, and is not checked then.
        architecture: For bare checkpoints.
        data: Rows for the check; random ones without.
        check: Compare the two files.
        read: Options of the source's format, for the check.
        timeout_s: Longest time for the tool.
        tell: Receives one line per step.

    Raises:
        ConverterError: The tool crashed, hung or refused; says how, with the last words it wrote as hint.
        UnsupportedError: It cannot take or give files of these endings, or is not installed.
        DlasError: Source and target are the same file.
    """
    if source.resolve() == target.resolve():
        raise DlasError(f"{source}: source and target are the same file", "name another target")
    tell(f"convert {source.name} with {converter.spelled()}")
    made = converter.convert(source, target, architecture=architecture, timeout_s=timeout_s)
    name = " ".join([converter.spelled(), next(iter(made.versions.values()), "")]).strip()
    if made.status is not Outcome.OK:
        tail = made.stderr_tail.rsplit("\n", 1)[-1].strip()
        raise ConverterError(f"{name}: {made.status}: {made.reason}", "" if tail in made.reason else tail)
    with_what = ", ".join(f"{k} {v}" for k, v in made.versions.items() if v)
    written = Written(
        target, (*made.notes, f"made by {converter.spelled()} in {made.seconds:.0f} s ({with_what})")
    )
    done = Conversion(source, written, made_by=made)
    if not check:
        return done
    try:
        subject = Subject.open(source, architecture, **(read or {}))
        format_for(target)
    except ModelError as error:
        return replace(done, why_unchecked=str(error))
    return _checked(done, subject, data, tell)


def _checked(
    done: Conversion, subject: Subject, data: Dataset | None, tell: Callable[[str], None]
) -> Conversion:
    back = Subject.open(done.written.path)
    try:
        report = compare_files(subject, [back], data=data, tell=tell)
    except (
        ShapeError,
        SourceError,
    ) as error:  # the source does not run, or its answers do not pair up row by row
        return replace(done, why_unchecked=str(error))
    return replace(done, check=report)
