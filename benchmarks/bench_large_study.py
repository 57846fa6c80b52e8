"""Pareto set and report of a study with 10,000 rows that were made up here.

Claim: the Pareto set of two objectives takes at most 2 s, the report at most 10 s and less than 8 MB. The peer of the
Pareto set compares every row with every other in NumPy, and must find the same set.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from _common import Row, finish, median_interval, parser, ratio_interval

from dlas.core.figure import Figure, Outcome, Record, Source
from dlas.explore.pareto import non_dominated, pareto_keys, values_of
from dlas.explore.result import Objective, Point, StudyResult
from dlas.explore.study import front_volume

PARETO_S, REPORT_S, REPORT_BYTES = 2.0, 10.0, 8_000_000
OBJECTIVES = (Objective("latency_ms"), Objective("top1", minimise=False))
BACKENDS = ("onnxruntime", "litert", "tvm", "torch")


def made_up(rows: int) -> StudyResult:
    """Accurate networks are slow here, with a wide scatter; one row in fifty failed; every row has layer times."""
    rng = np.random.default_rng(1)
    points = []
    for index in range(rows):
        choices = {
            "compress": f"magnitude:sparsity={index / rows:.5f}" if index else "none",
            "backend": BACKENDS[index % 4],
            "threads": str(1 + index // 4 % 2),
            "target": "host",
        }
        record = Record(
            Outcome.CRASH, f"{choices['backend']}: died with SIGSEGV", stderr_tail="Fatal error\n" * 15
        )
        if index % 50 != 7:
            record = Record(Outcome.OK, figures=_figures(rng), facts=_facts(rng))
        points.append(Point(f"{index:064x}", choices, record, baseline=index == 0, seconds=1.0))
    facts = {
        "model": "made-up",
        "dataset": "made-up",
        "rows": 8000,
        "design": "grid",
        "notes": [],
        "check_rows": 200,
    }
    changes = {p.choices["compress"]: [] for p in points}
    return StudyResult(
        "made-up", tuple(points), OBJECTIVES, changes=changes, facts=facts, command="(made up)"
    )


def _figures(rng: np.random.Generator) -> dict[str, Figure]:
    top1 = float(rng.uniform(0.1, 0.9))
    latency = float(np.exp(2 * top1 + rng.normal(0, 0.6)))
    size = float(rng.integers(50_000, 1_000_000))
    measured = Source.MEASURED
    return {
        "top1": Figure(top1, "fraction", measured, top1 - 0.01, top1 + 0.01, 8000),
        "agreement": Figure(0.95, "fraction", measured, 0.94, 0.96, 8000),
        "latency_ms": Figure(latency, "ms", measured, latency * 0.98, latency * 1.02, 200),
        "speedup": Figure(3 / latency, "ratio", measured, 2.9 / latency, 3.1 / latency, 200),
        "peak_memory_bytes": Figure(20e6 + size, "bytes", measured),
        "model_bytes": Figure(size, "bytes", measured),
        "sqnr_db": Figure(60.0, "dB", measured, n=200),
    }


def _facts(rng: np.random.Generator) -> dict[str, object]:
    layers = [{"name": f"conv{i}", "op": "Conv", "milliseconds": float(rng.uniform(0, 1))} for i in range(20)]
    return {"verdict": "equal", "notes": [], "layers": layers}


def everyone_with_everyone(values: np.ndarray) -> np.ndarray:
    """The textbook definition, row by row; of equal rows all are kept."""
    keep = np.ones(len(values), bool)
    for index, row in enumerate(values):
        keep[index] = not ((values <= row).all(axis=1) & (values < row).any(axis=1)).any()
    return keep


def main() -> int:
    """Entry point."""
    from dlas.report.html import write_report

    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=10_000, help="rows of the study")
    options.add_argument("--rounds", type=int, default=5, help="rounds, each visits dlas and the peer")
    given = options.parse_args()
    study = made_up(given.rows)
    _, values = values_of(study.points, OBJECTIVES)
    if not np.array_equal(non_dominated(values), everyone_with_everyone(values)):
        sys.exit("the Pareto set is not the one the definition gives")
    ours, theirs, reports = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        for _ in range(given.rounds):
            start = time.perf_counter()
            front = pareto_keys(study.points, OBJECTIVES)
            ours.append(time.perf_counter() - start)
            start = time.perf_counter()
            everyone_with_everyone(values_of(study.points, OBJECTIVES)[1])
            theirs.append(time.perf_counter() - start)
            study = replace(study, pareto=front, hypervolume=front_volume(study.points, front, OBJECTIVES))
            start = time.perf_counter()
            write_report(study, page)
            reports.append(time.perf_counter() - start)
        size = page.stat().st_size
    pareto, low, high = median_interval(ours)
    seconds, fast, slow = median_interval(reports)
    peer = f"all pairs in NumPy, {median_interval(theirs)[0]:.3g} s"
    rows = [
        Row(f"Pareto set of {given.rows} rows ({len(front)} in it)", f"{pareto:.3g} s ({low:.3g} .. {high:.3g})", peer,
            *ratio_interval(ours, theirs), given.rounds, f"figure <= {PARETO_S} s", pareto <= PARETO_S),
        Row("report", f"{seconds:.3g} s", "limit", seconds / REPORT_S, fast / REPORT_S, slow / REPORT_S, given.rounds,
            f"<= 1 ({REPORT_S:.0f} s)", seconds <= REPORT_S),
        Row("report file", f"{size / 1e6:.3g} MB", "limit", size / REPORT_BYTES, None, None, 1,
            f"< 1 ({REPORT_BYTES / 1e6:.0f} MB)", size < REPORT_BYTES),
    ]  # fmt: skip
    return finish("A study with many rows", rows, given.json)


if __name__ == "__main__":
    sys.exit(main())
