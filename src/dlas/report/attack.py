"""The page of an attack: one HTML file without scripts, in the look of the report of a study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlas.core.figure import Figure
from dlas.core.files import write_atomic
from dlas.data.dataset import Dataset
from dlas.report.compare_images import thumbnail
from dlas.report.html import environment, file, policy
from dlas.report.labels import value_words
from dlas.verify.attack.report import AttackReport, ModelResult


@dataclass(frozen=True)
class _Cell:
    """A cell of the table: its text, its interval, the length of its bar in percent, what a pointer is told."""

    text: str
    ends: str = ""
    share: float | None = None
    title: str = ""


def write_attack(report: AttackReport, path: Path) -> None:
    """Write the page of an attack.

    Raises:
        StorageError: The folder does not exist or cannot be written, or the disk is full.
    """
    write_atomic(Path(path), render_attack(report).encode("utf-8", "replace"))


def render_attack(report: AttackReport) -> str:
    """The page as text."""
    return (
        environment()
        .get_template("attack.html.j2")
        .render(
            report=report,
            policy=policy([]),
            style=file("style.css") + file("attack.css"),
            eps=f"{report.eps * 255:.3g}/255",
            headline=_headline(report),
            titles=report.titles,
            rows=[_row(model, report.titles) for model in report.models],
            remarks=[remark for model in report.models for remark in _remarks(model)],
            pictures=_pictures(report),
            pictured=report.pictured,
        )
    )


def _headline(report: AttackReport) -> str:
    known = [m for m in report.models if m.worst is not None and m.clean is not None]
    if not known:
        return "No attack could be made."
    best = max(known, key=lambda m: m.worst.value if m.worst else 0)
    assert best.worst is not None
    assert best.clean is not None
    words = (
        f"{best.target} keeps {100 * best.worst.value:.1f} % of the rows under every attack "
        f"({100 * best.clean.value:.1f} % as they are)"
    )
    if len(known) > 1:
        words += f", the most of {len(known)} networks"
    warned = sum(bool(m.warnings) for m in report.models)
    masked = f" {warned} of {len(report.models)} mask their gradients." if warned else ""
    return words + "." + masked


def _row(model: ModelResult, titles: list[str]) -> dict[str, object]:
    by_title = {result.title: result for result in model.results}
    cells = [_cell(model.clean, model.reason or "none", model.reason)]
    for title in titles:
        result = by_title.get(title)
        if result is None:
            cells.append(_Cell("–"))
            continue
        asked = f"{result.kind}, {result.queries:.0f} queries a row" if result.queries else result.kind
        cells.append(_cell(result.robust, "none", result.reason or asked))
    cells.append(_cell(model.worst, "none", ""))
    size = value_words(model.size_bytes, "bytes") if model.size_bytes else ""
    return {"target": model.target, "path": model.path, "size": size, "cells": cells}


def _cell(figure: Figure | None, otherwise: str, title: str) -> _Cell:
    if figure is None:
        return _Cell(otherwise, title=title)
    ends = f"{100 * (figure.low or 0):.1f}–{100 * (figure.high or 0):.1f}"
    return _Cell(f"{100 * figure.value:.1f} %", ends, round(100 * figure.value, 1), title)


def _remarks(model: ModelResult) -> list[tuple[str, str, bool]]:
    found = [(model.target, warning, True) for warning in model.warnings]
    found += [(model.target, note, False) for note in (*model.notes, *filter(None, [model.reason]))]
    said = " ".join(model.notes)
    for result in model.results:
        if result.reason and result.reason not in said:
            found.append((model.target, f"no {result.title}: {result.reason}", False))
    return found


def _pictures(report: AttackReport) -> list[dict[str, str]]:
    """Rows that the first network loses, beside what they were; none where samples are no pictures."""
    found = []
    for example in report.examples:
        pair = [np.rint(255 * x).astype(np.uint8) for x in (example.before, example.after)]
        before, after = (thumbnail(Dataset("example", x[None]), 0) for x in pair)
        if before and after:
            found.append({"row": str(example.row), "label": example.label, "before": before, "after": after})
    return found
