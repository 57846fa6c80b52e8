"""Real conversions with known faults: the ground-truth table beside what dlas measures today.

    python benchmarks/ground_truth.py                     # every row that can be tried here
    python benchmarks/ground_truth.py --rows small        # on 100 images instead of all
    python benchmarks/ground_truth.py --only 'r20-onnx2tf*'

Needs DLAS_DATA; rows with onnx2tf, litert-torch, ncnn and tflite2onnx need side environments (``dlas doctor --make-env
NAME``, 7.5 GB in all), rows with Keras files TensorFlow (``pip install 'dlas[keras]'``). A row that cannot be tried is
shown with the reason. It holds when the verdict is the expected one, labels differ by the expected percentage within
one point (or by two standard errors of leaving out the images that are not here, where these are larger), and the
largest difference is of the same order. Leaves with 1 if a row that was tried does not hold.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import tempfile
from pathlib import Path

from _common import parser, progress
from _ground_truth import ABSENT, ROWS, Bench, Found, Row

COLUMNS = (
    "row", "images", "expected", "labels", "max diff", "dB", "measured", "labels", "max diff", "dB", "", "remarks",
)  # fmt: skip
SMALL = 100


def main() -> int:
    """Entry point."""
    options = _options()
    root = os.environ.get("DLAS_DATA")
    if not root or not (Path(root) / "models").is_dir():
        sys.stderr.write("ground_truth.py: set DLAS_DATA to the folder with the data sets and models\n")
        return 2
    wanted = [r for r in ROWS if not options.only or any(fnmatch.fnmatch(r.name, o) for o in options.only)]
    if not wanted:
        sys.stderr.write("ground_truth.py: no row has such a name: " + ", ".join(r.name for r in ROWS) + "\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="dlas-ground-truth-") as folder:
        bench = Bench(Path(root), Path(folder), SMALL if options.rows == "small" else 0, progress)
        found: list[tuple[Row, Found]] = [(row, bench.judge(row)) for row in wanted]
        accuracies = _accuracies(bench, [row for row, result in found if result.comparison])
    _print([_cells(row, result) for row, result in found])
    for line in accuracies:
        print(line)
    if not options.only:
        print("\nNot among the data:")
        for line in ABSENT:
            print(f"  {line}")
    tried = [f for _, f in found if f.holds is not None]
    print(
        f"\n{sum(bool(f.holds) for f in tried)} of {len(tried)} rows hold; {len(found) - len(tried)} not tried"
    )
    if options.json is not None:
        _write(options.json, found)
    return 0 if all(f.holds for f in tried) else 1


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--rows", choices=("all", "small"), default="all", help=f"small: {SMALL} images")
    made.add_argument("--only", metavar="NAME", action="append", help="only rows of this name; may hold *")
    return made.parse_args()


def _accuracies(bench: Bench, rows: list[Row]) -> list[str]:
    """Top-1 of the sources on the rows they were judged on; tells how far these are the published sets."""
    pairs = dict.fromkeys((row.reference, row.rows) for row in rows if row.reference.path == "native")
    told = []
    for run, name in pairs:
        share = bench.accuracy(run, name)
        if share is not None:
            told.append(f"{run}: {share:.1f} % of {name} right")
    return (
        ["", *told, "(published: ResNet-20 80.4 % of A and 81.8 % of B, MLPerf Tiny's ResNet 76.2 % of B)"]
        if told
        else []
    )


def _cells(row: Row, found: Found) -> tuple[str, ...]:
    seen = found.comparison
    count = seen.rows if seen else 0
    diff = seen.label_diff if seen else None
    mark = {True: "ok", False: "MISSED", None: "-"}[found.holds]
    remarks = "; ".join(t for t in (found.why, found.reason if seen is None else "", row.note) if t)
    return (
        row.name,
        f"{row.rows} {count}" if count else row.rows,
        "/".join(row.verdict),
        "" if row.label_diff is None else f"{row.label_diff:.1f} %",
        "" if row.max_abs is None else f"{row.max_abs:.2g}",
        "" if row.sqnr is None else f"{row.sqnr:g}",
        found.verdict,
        f"{100 * diff.value:.1f} %" if diff else "",
        f"{seen.max_abs:.2g}" if seen else "",
        f"{seen.sqnr_db:.1f}" if seen and seen.sqnr_db is not None else "",
        mark,
        " ".join(remarks.split())[:140],
    )


def _print(cells: list[tuple[str, ...]]) -> None:
    widths = [max(len(line[i]) for line in (COLUMNS, *cells)) for i in range(len(COLUMNS))]
    for line in (COLUMNS, *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _write(target: Path, found: list[tuple[Row, Found]]) -> None:
    from dlas.core.environment import fingerprint
    from dlas.core.files import write_atomic

    rows = [
        {
            "row": row.name,
            "reference": str(row.reference),
            "run": str(row.run),
            "rows": row.rows,
            "expected": {
                "verdict": row.verdict, "label_diff": row.label_diff, "max_abs": row.max_abs, "sqnr_db": row.sqnr,
            },
            "verdict": result.verdict,
            "reason": result.reason,
            "comparison": result.comparison.to_dict() if result.comparison else None,
            "holds": result.holds,
            "why": result.why,
        }
        for row, result in found
    ]  # fmt: skip
    write_atomic(target, json.dumps({"rows": rows, "environment": fingerprint()}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
