"""Rows that get another label than the source gives them: which, on which paths, and whether rounding explains it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlas.core.files import write_atomic

if TYPE_CHECKING:
    from dlas.verify.differential.compare import CompareReport

LISTED = 100  # rows that a report lists; --csv has all


@dataclass(frozen=True)
class Flip:
    """One path's other label for a row."""

    target: str
    path: str
    label: int
    explained: bool


@dataclass(frozen=True)
class FlippedRow:
    """A row whose label differs on some path.

    Attributes:
        row: Its number among the rows compared, from 0.
        truth: Its own label, where it has one.
        source_label: What the source says.
        margin: Distance between the source's best and second-best score.
        flips: The paths that say something else.
    """

    row: int
    truth: int | None
    source_label: int
    margin: float
    flips: tuple[Flip, ...]

    @property
    def unexplained(self) -> int:
        """Paths whose other label rounding cannot explain."""
        return sum(not flip.explained for flip in self.flips)

    def told_by(self, report: CompareReport, *, rounding: bool = True) -> dict[int, str]:
        """Who says each other label: ``all paths`` or their names; ``rounding`` has those it explains, marked so."""
        several = len({path.target for path in report.paths}) > 1
        able = sum(path.labels is not None for path in report.paths)
        by: dict[int, list[str]] = {}
        for flip in self.flips:
            if rounding or not flip.explained:
                name = f"{flip.target} {flip.path}" if several else flip.path
                by.setdefault(flip.label, []).append(name + (" (rounding)" if flip.explained else ""))
        return {
            label: "all paths" if len(names) == able > 2 else ", ".join(names) for label, names in by.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "row": self.row,
            "truth": self.truth,
            "source_label": self.source_label,
            "margin": self.margin,
            "unexplained": self.unexplained,
            "flips": [vars(flip) for flip in self.flips],
        }


def flipped_rows(report: CompareReport) -> list[FlippedRow]:
    """All rows with another label somewhere: unexplained ones, those on most paths and of large margin first."""
    answers = report.answers
    if answers is None:
        return []
    found: dict[int, list[Flip]] = {}
    for path in report.paths:
        compared = path.comparison
        if compared is None or path.labels is None:
            continue
        for at, row in enumerate(np.asarray(compared.flips, np.int64)):
            flip = Flip(path.target, path.path, int(path.labels[row]), at >= compared.unexplained)
            found.setdefault(int(row), []).append(flip)
    rows = [
        FlippedRow(
            row,
            None if answers.truth is None else int(answers.truth[row]),
            int(answers.labels[row]),
            float(answers.margins[row]),
            tuple(flips),
        )
        for row, flips in found.items()
    ]
    return sorted(rows, key=lambda r: (-r.unexplained, -len(r.flips), -r.margin, r.row))


def write_csv(report: CompareReport, path: Path) -> None:
    """One line per row and path that gave labels: labels, whether they differ, and by how much the scores do.

    Raises:
        StorageError: The file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        (
            "row",
            "truth",
            "source_label",
            "margin",
            "target",
            "path",
            "label",
            "flipped",
            "explained",
            "max_abs",
        )
    )
    writer.writerows(_lines(report))
    write_atomic(path, text.getvalue().encode("utf-8", "replace"))


def _lines(report: CompareReport) -> Iterator[tuple[object, ...]]:
    answers = report.answers
    if answers is None:
        return
    for path in report.paths:
        if path.labels is None or path.comparison is None:
            continue
        unexplained = set(path.comparison.flips[: path.comparison.unexplained])
        distances = path.distances if path.distances is not None else np.full(len(path.labels), np.nan)
        for row, label in enumerate(path.labels):
            flipped = label != answers.labels[row]
            yield (
                row,
                "" if answers.truth is None else answers.truth[row],
                answers.labels[row],
                f"{answers.margins[row]:.6g}",
                _cell(path.target),
                _cell(path.path),
                label,
                int(flipped),
                int(row not in unexplained) if flipped else "",
                f"{distances[row]:.6g}",
            )


def _cell(text: str) -> str:
    """A name that a spreadsheet does not take for a formula."""
    return "'" + text if text[:1] in tuple("=+-@\t\r") else text
