"""A comparison as JUnit XML, the report of tests that build servers read: one test case per target and path."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from dlas.core.files import write_atomic
from dlas.core.text import printable
from dlas.verify.differential.gate import Failure
from dlas.verify.differential.report import CompareReport, PathResult

_LINES = 10  # of a failure
_LINE = 300  # characters


def write_junit(report: CompareReport, failures: Sequence[Failure], path: Path) -> None:
    """Write the file; what fails is decided by :func:`dlas.verify.differential.gate.failures`.

    A path that cannot run such a network is skipped, one that crashed is an error, one that answers wrongly a failure.

    Raises:
        StorageError: The file cannot be written.
    """
    why = {(f.path.target, f.path.path): f.reason for f in failures}
    cases = [_case(row, why.get((row.target, row.path), "")) for row in report.paths]
    kinds = [case[0].tag if len(case) else "" for case in cases]
    suite = ET.Element(
        "testsuite",
        name=_text(f"dlas compare {report.source}"),
        tests=str(len(cases)),
        failures=str(kinds.count("failure")),
        errors=str(kinds.count("error")),
        skipped=str(kinds.count("skipped")),
    )
    suite.extend(cases)
    whole = ET.Element("testsuites")
    whole.append(suite)
    ET.indent(whole)
    write_atomic(path, ET.tostring(whole, "utf-8", xml_declaration=True) + b"\n")


def _case(row: PathResult, failure: str) -> ET.Element:
    case = ET.Element("testcase", classname=_text(row.target), name=_text(row.path))
    if row.word == "unsupported":
        ET.SubElement(case, "skipped", message=_text(row.reason))
    elif failure:
        kind = "error" if row.word == "crash" else "failure"
        told = ET.SubElement(case, kind, message=_text(failure), type=row.word)
        told.text = "\n".join(_text(line) for line in _details(row)[:_LINES])
    return case


def _details(row: PathResult) -> list[str]:
    found = [f"verdict: {row.word}", f"reason: {row.reason}"]
    compared = row.comparison
    if compared is None:
        return found
    if compared.label_diff is not None:
        figure = compared.label_diff
        ends = f"[{100 * (figure.low or 0):.2f}, {100 * (figure.high or 0):.2f}]"
        found.append(f"labels differ: {100 * figure.value:.2f} % {ends} of {compared.rows} rows")
    if compared.flips:
        rows = ", ".join(map(str, compared.flips[:20])) + (", …" if len(compared.flips) > 20 else "")
        found.append(f"unexplained: {compared.unexplained}; rows, these first: {rows}")
    found.append(f"largest difference of a score: {compared.max_abs:.4g}")
    if row.kendall_tau is not None:
        found.append(
            f"Kendall tau-b {row.kendall_tau:.4f}, rank-biased overlap {row.rank_biased_overlap:.4f}"
        )
    return found


def _text(text: str) -> str:
    """One line that XML can hold."""
    return printable(" ".join(text.split()), _LINE, lines=False).replace("\ufffe", "").replace("\uffff", "")
