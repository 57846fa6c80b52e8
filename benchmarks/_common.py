"""What all benchmark scripts share: options, the one table, ``--json``, and bare-bones statistics."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        case: What was measured.
        value: Its figure, with unit.
        peer: What it is compared with, by name.
        ratio: Case over peer (below 1: the case takes less), or the figure that the target is about.
        low: Lower end of the 95 % interval of ``ratio``; None where nothing was repeated.
        high: Upper end.
        n: Samples behind it.
        target: What must hold for ``ratio``.
        holds: Whether it does.
    """

    case: str
    value: str
    peer: str
    ratio: float
    low: float | None
    high: float | None
    n: int
    target: str
    holds: bool


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options in common."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the rows and the machine to FILE")
    return made


def finish(title: str, rows: list[Row], target: Path | None, details: object = None) -> int:
    """Print the table, write the JSON (with ``details``, if any), and give the exit code: 1 if a target is missed."""
    from dlas.core.environment import fingerprint
    from dlas.core.files import write_atomic

    columns = ("case", "figure", "peer", "ratio", "95 % interval", "n", "target", "")
    cells = [
        (
            r.case,
            r.value,
            r.peer,
            f"{r.ratio:.4g}",
            _interval(r),
            str(r.n),
            r.target,
            "ok" if r.holds else "MISSED",
        )
        for r in rows
    ]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    print(title)
    for line in (columns, *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if target is not None:
        content = {"title": title, "rows": [asdict(r) for r in rows], "environment": fingerprint()}
        if details is not None:
            content["details"] = details
        write_atomic(target, json.dumps(content, indent=1) + "\n")
    return 0 if all(r.holds for r in rows) else 1


def median_interval(samples: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Median with its 95 % bootstrap interval."""
    values = np.asarray(samples)
    rng = np.random.default_rng(seed)
    medians = np.median(values[rng.integers(0, len(values), (2000, len(values)))], axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(np.median(values)), float(low), float(high)


def ratio_interval(a: list[float], b: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Median of the ratios of samples taken in pairs, with its 95 % bootstrap interval."""
    return median_interval([x / y for x, y in zip(a, b, strict=True)], seed)


def paired_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the difference of two accuracies on the same rows."""
    change = first.astype(int) - second.astype(int)
    rng = np.random.default_rng(0)
    means = [change[rng.integers(0, len(change), len(change))].mean() for _ in range(2000)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def progress(text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"  {text}\n")


def _interval(row: Row) -> str:
    return "" if row.low is None or row.high is None else f"{row.low:.4g} .. {row.high:.4g}"
