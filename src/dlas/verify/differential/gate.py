"""When a comparison fails a build: by what it found, or by what is worse than an earlier report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlas.core.errors import DataError
from dlas.verify.differential.outputs import SIGNIFICANT, Verdict, excess_p
from dlas.verify.differential.report import CompareReport, PathResult

FAIL_ON = ("none", "label-diff", "unexplained-flip", "score-only")
_LARGEST = 256 * 2**20  # bytes of a report


@dataclass(frozen=True)
class Failure:
    """A path that fails, and why in one line."""

    path: PathResult
    reason: str


def failures(
    report: CompareReport, fail_on: str, baseline: Mapping[tuple[str, str], dict[str, Any]] | None = None
) -> list[Failure]:
    """Paths that fail.

    Args:
        report: What was found.
        fail_on: One of :data:`FAIL_ON`. A wrong answer or a crash fails under all but ``none``, a path that cannot run
            such a network under none.
        baseline: Rows of an earlier report by target and path (:func:`read_baseline`): what is no worse than there
            does not fail.
    """
    if fail_on == "none":
        return []
    found = []
    for path in report.paths:
        reason = _reason(path, fail_on)
        before = (baseline or {}).get((path.target, path.path))
        if reason and before is not None:
            reason = _worse(path, before, fail_on)
        if reason:
            found.append(Failure(path, reason))
    return found


def read_baseline(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of a report that ``dlas compare --json`` printed, by target and path.

    Raises:
        DataError: It cannot be read, or is no such report.
    """
    hint = "make one with `dlas compare ... --json > FILE`"
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"baseline {path}: {path.stat().st_size} bytes are no report", hint)
        stored = json.loads(path.read_bytes())
        rows = {(str(row["target"]), str(row["path"])): row for row in stored["paths"]}
        for row in rows.values():
            compared = row["comparison"]
            known = compared is None or (isinstance(compared["rows"], int) and _count(row) >= 0)
            if row["verdict"] not in _ORDER or not known:
                raise ValueError(f"verdict {row['verdict']!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no report of a comparison"
        raise DataError(f"baseline {path}: {reason}", hint) from error
    return rows


_ORDER = [str(verdict) for verdict in Verdict]
_ORDER.insert(1, "unsupported")


def _reason(path: PathResult, fail_on: str) -> str:
    """Why a path fails by itself; empty if it does not."""
    words = path.reason or str(path.verdict)
    compared = path.comparison
    if compared is None:
        return "" if path.word == "unsupported" else f"{path.word}: {words}"
    if not path.verdict.right:
        return f"{path.word}: {words}"
    if fail_on == "unexplained-flip" and compared.unexplained:
        rows = ", ".join(map(str, compared.flips[: min(10, compared.unexplained)]))
        more = ", …" if compared.unexplained > 10 else ""
        return f"{compared.unexplained} flips that rounding does not explain: rows {rows}{more}"
    if fail_on == "score-only" and str(path.verdict) != "equal":
        return f"{path.word}: {words}"
    return ""


def _worse(path: PathResult, before: Mapping[str, Any], fail_on: str) -> str:
    """How a path is worse than it was; empty if it is not."""
    if _ORDER.index(path.word) < _ORDER.index(before["verdict"]):
        return f"{path.word}, was {before['verdict']}: {path.reason}"
    compared, then = path.comparison, before["comparison"]
    if compared is None or then is None:
        return ""
    if fail_on == "unexplained-flip" and compared.unexplained > int(then.get("unexplained", 0)):
        return (
            f"{compared.unexplained} flips that rounding does not explain, were {then.get('unexplained', 0)}"
        )
    if compared.label_diff is None or then.get("label_diff") is None:
        return ""
    now, was = round(compared.label_diff.value * compared.rows), _count(before)
    # The same rows give the same flips, so any one more is a change; of other rows, more than chance is.
    same = compared.rows == then["rows"]
    if now > was and (same or excess_p(now, compared.rows, was, then["rows"]) < SIGNIFICANT):
        return f"{now} of {compared.rows} labels differ, were {was} of {then['rows']}"
    return ""


def _count(row: Mapping[str, Any]) -> int:
    """Labels that differed in a stored row."""
    compared = row["comparison"]
    return round((compared.get("label_diff") or {"value": 0})["value"] * compared["rows"])
