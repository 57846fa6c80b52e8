"""The page of a comparison: one HTML file without scripts, in the look of the report of a study."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dlas.core.files import write_atomic
from dlas.data.dataset import Dataset
from dlas.report.compare_images import thumbnail
from dlas.report.html import environment, file, policy
from dlas.report.labels import VERDICTS, figure_words
from dlas.verify.differential.flips import LISTED, FlippedRow
from dlas.verify.differential.matrix import LabelMatrix
from dlas.verify.differential.report import CompareReport, PathResult

PICTURES = 24  # flips shown as pictures
_WORDS = {"time-only": "same answers, but slower than a lower optimisation level of the same back end"}


@dataclass(frozen=True)
class _Cell:
    """A cell of the heat map: its text, its depth of colour from 0 to 1, and what a pointer is told."""

    text: str
    depth: float
    title: str


def write_comparison(report: CompareReport, path: Path, data: Dataset | None = None) -> None:
    """Write the page of a comparison.

    Args:
        report: What was found.
        path: File to write.
        data: The rows that were compared; where they are images, the worst flips are shown.

    Raises:
        StorageError: The folder does not exist or cannot be written, or the disk is full.
    """
    write_atomic(Path(path), render_comparison(report, data).encode("utf-8", "replace"))


def render_comparison(report: CompareReport, data: Dataset | None = None) -> str:
    """The page as text."""
    flips = report.flips
    classes = data.classes if data is not None else ()
    tally = Counter(row.shown for row in report.paths)
    known = [*VERDICTS, *_WORDS]
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            report=report,
            policy=policy([]),
            style=file("style.css") + file("compare.css"),
            headline=_headline(report),
            tally=sorted(tally.items(), key=lambda t: known.index(t[0]) if t[0] in known else len(known)),
            rows=[_path_row(row) for row in report.paths],
            matrix=_heat_map(report.matrix) if report.matrix is not None else None,
            pictures=_pictures(report, flips, data, classes),
            flips=[_flip_row(report, flip, classes) for flip in flips[:LISTED]],
            flips_left_out=max(0, len(flips) - LISTED),
            unexplained=sum(flip.unexplained > 0 for flip in flips),
            targets=len({row.target for row in report.paths}),
            clipped=any(row.clipped is not None for row in report.paths),
            timed=any(row.time is not None for row in report.paths),
            verdicts={**VERDICTS, **_WORDS},
            figure_words=figure_words,
        )
    )


def _headline(report: CompareReport) -> str:
    wrong = [row for row in report.paths if row.comparison is None or not row.verdict.right]
    able = [row for row in wrong if row.word != "unsupported"]
    count = len(report.paths)
    if not wrong:
        return f"{'All ' if count > 1 else ''}{count} path{'s' if count > 1 else ''} may be relied on."
    words = [f"{count - len(wrong)} of {count} may be relied on."]
    if able:
        words.append(
            f"{len(able)} {'do' if len(able) > 1 else 'does'} not answer as the source does, or not at all."
        )
    if len(wrong) > len(able):
        words.append(f"{len(wrong) - len(able)} cannot run such a network.")
    return " ".join(words)


def _path_row(row: PathResult) -> dict[str, str]:
    """Cells of a path as text."""
    compared, time = row.comparison, row.time
    cells = {"target": row.target, "path": row.path, "verdict": row.shown, "reason": row.why}
    cells |= dict.fromkeys(
        ("labels", "unexplained", "tau", "rbo", "sqnr", "max_abs", "top1", "p", "clipped", "time", "ratio"),
        "",
    )
    if time is not None and time.latency is not None:
        cells["time"] = figure_words(time.latency)
        cells["ratio"] = figure_words(time.ratio) if time.ratio else ""
    if compared is None or row.shown in ("shape", "nan"):
        return cells
    if compared.label_diff is not None:
        cells["labels"] = figure_words(compared.label_diff)
        cells["unexplained"] = str(compared.unexplained)
    cells["sqnr"] = "" if compared.sqnr_db is None else f"{compared.sqnr_db:.1f} dB"
    cells["max_abs"] = f"{compared.max_abs:.3g}"
    for name, value, form in (
        ("tau", row.kendall_tau, "{:.3f}"),
        ("rbo", row.rank_biased_overlap, "{:.3f}"),
        ("p", row.mcnemar_p, "{:.2g}"),
    ):
        cells[name] = "" if value is None else form.format(value)
    cells["clipped"] = "" if row.clipped is None else f"{100 * row.clipped:.2g} %"
    cells["top1"] = figure_words(row.top1) if row.top1 else ""
    return cells


def _heat_map(matrix: LabelMatrix) -> list[tuple[str, list[_Cell]]]:
    """Rows of the heat map; the square root brings out the small differences that matter."""
    rows = []
    for i, name in enumerate(matrix.names):
        cells = []
        for j, other in enumerate(matrix.names):
            share = int(matrix.counts[i, j]) / matrix.rows
            low, high = matrix.interval(i, j)
            title = (
                f"{name} and {other}: {int(matrix.counts[i, j])} of {matrix.rows} labels differ "
                f"[{100 * low:.2f} %, {100 * high:.2f} %]"
            )
            text = "·" if i == j else f"{100 * share:.3g}"
            cells.append(_Cell(text, round(math.sqrt(share), 3), title))
        rows.append((name, cells))
    return rows


def _pictures(
    report: CompareReport, flips: list[FlippedRow], data: Dataset | None, classes: tuple[str, ...]
) -> list[dict[str, str]]:
    """The worst unexplained flips as pictures, where the rows are images."""
    found = []
    for flip in flips[:PICTURES]:
        address = thumbnail(data, flip.row) if data is not None and flip.unexplained else ""
        if address:
            found.append({"address": address, **_flip_row(report, flip, classes)})
    return found


def _flip_row(report: CompareReport, flip: FlippedRow, classes: tuple[str, ...]) -> dict[str, str]:
    """Cells of a row whose label differs as text."""

    def named(label: int | None) -> str:
        if label is None:
            return ""
        return f"{label} {classes[label]}" if 0 <= label < len(classes) else str(label)

    by = flip.told_by(report)
    return {
        "row": str(flip.row),
        "truth": named(flip.truth),
        "source": named(flip.source_label),
        "margin": f"{flip.margin:.3g}",
        "unexplained": str(flip.unexplained),
        "others": "; ".join(f"{named(label)}: {paths}" for label, paths in by.items()),
        "other": ", ".join(named(label) for label in by),
        "count": str(len(flip.flips)),
    }
