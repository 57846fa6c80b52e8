"""The page of a benchmark: back ends against the fastest, and layer by layer where that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlas.core.environment import fingerprint
from dlas.core.figure import Figure, Source
from dlas.core.files import write_atomic
from dlas.core.timing import is_clear
from dlas.report.labels import figure_words, value_words
from dlas.report.speed import page
from dlas.runtime.bench import BenchRow
from dlas.runtime.engine.explain import CAUTION, Explanation

_EDGE = 8.0  # times the fastest: what takes longer would press all others together


def write_bench_page(
    model: str, rows: Sequence[BenchRow], explanations: Sequence[Explanation], path: Path
) -> None:
    """Write the page of a benchmark as one HTML file.

    Args:
        model: Name of the network.
        rows: From ``dlas.runtime.bench``.
        explanations: One per thread count, or none.
        path: File to write.

    Raises:
        StorageError: The folder does not exist or cannot be written, or the disk is full.
    """
    write_atomic(Path(path), render_bench(model, rows, explanations).encode("utf-8", "replace"))


def render_bench(model: str, rows: Sequence[BenchRow], explanations: Sequence[Explanation] = ()) -> str:
    """The page as text."""
    counts = list(dict.fromkeys(row.threads for row in rows))
    groups = [[row for row in rows if row.threads == count] for count in counts]
    figures = [_ratios(group, number) for number, group in enumerate(groups) if _timed(group)]
    environment = fingerprint()
    facts = {
        "processor": environment["cpu"],
        "instruction set": environment["isa"],
        "system": environment["os"],
        "load average": environment["load"],
        **environment["versions"],
    }
    return page(
        "bench.html.j2",
        figures,
        model=model,
        headlines=[_headline(group) for group in groups],
        charts=[
            {"id": f"ratios-{number}", "threads": count}
            for number, (count, group) in enumerate(zip(counts, groups, strict=True))
            if _timed(group)
        ],
        rows=[_cells(row) for row in rows],
        limited=any("limit_fraction" in row.figures for row in rows),
        explanations=[_layers(found) for found in explanations],
        caution=CAUTION,
        facts=facts,
    )


def _timed(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """Rows with a time, the fastest first."""
    return sorted((r for r in rows if "latency_ms" in r.figures), key=lambda r: r.figures["latency_ms"].value)


def _headline(rows: Sequence[BenchRow]) -> str:
    timed = _timed(rows)
    threads = f"{rows[0].threads} thread{'' if rows[0].threads == 1 else 's'}"
    if not timed:
        return f"With {threads} nothing ran."
    first = timed[0]
    words = f"With {threads} {first.backend} is the fastest: {figure_words(first.figures['latency_ms'])}"
    if len(timed) > 1 and "to_fastest" in timed[1].figures:
        second = timed[1].figures["to_fastest"]
        if is_clear(second):
            words += f"; {timed[1].backend} takes {figure_words(second)} of that"
        else:
            words += f", as far as can be told: {timed[1].backend} takes {figure_words(second)} of that"
    return words + "."


def _ratios(rows: Sequence[BenchRow], number: int) -> dict[str, Any]:
    """The chart of one thread count; a bar that is much longer than the others ends at the edge."""
    timed = _timed(rows)
    ratios = [r.figures.get("to_fastest") or Figure(1.0, "ratio", Source.MEASURED) for r in timed]
    edge = min(_EDGE, max(figure.high or figure.value for figure in ratios))
    bars = []
    for row, figure in zip(timed, ratios, strict=True):
        told = [(words, figure_words(row.figures[n])) for n, words in _KNOWN.items() if n in row.figures]
        own = row.backend.partition(":")[0] == "engine"
        fits = figure.value <= edge
        words = f"{value_words(figure.value, 'ratio')}, {value_words(row.figures['latency_ms'].value, 'ms')}"
        bars.append(
            {
                "name": row.backend,
                "ratio": min(figure.value, edge),
                "low": figure.low if fits and figure.low is not None else min(figure.value, edge),
                "high": min(figure.high, edge)
                if fits and figure.high is not None
                else min(figure.value, edge),
                "colour": "var(--s4)" if own else "var(--s5)",
                "words": words if fits else f"… {words}",
                "tip": {"head": row.backend, "pairs": told},
            }
        )
    data = {"rows": bars, "one": [{"ratio": 1}], "edge": [{"ratio": 1.22 * edge}]}
    return {"id": f"ratios-{number}", "spec": "ratios", "height": 34 * len(bars), "datasets": data}


_KNOWN = {
    "latency_ms": "latency",
    "to_fastest": "to the fastest",
    "gflops": "speed",
    "limit_fraction": "of the limit",
    "peak_memory_bytes": "peak memory",
}


def _cells(row: BenchRow) -> dict[str, str]:
    found = {name: figure_words(row.figures[name]) if name in row.figures else "" for name in _KNOWN}
    noisy = row.figures["latency_ms"].note if "latency_ms" in row.figures else ""
    return {
        **found,
        "backend": row.backend,
        "threads": str(row.threads),
        "outcome": str(row.outcome),
        "noisy": noisy,
        "notes": "; ".join(filter(None, (row.reason, *row.notes))),
    }


def _layers(found: Explanation) -> dict[str, Any]:
    lines = []
    for line in found.lines:
        best = line.best_of(found.shown)
        cells = [
            {"text": f"{line.milliseconds[b]:.4f}" if b in line.milliseconds else "", "best": b == best}
            for b in found.shown
        ]
        lines.append(
            {
                "name": line.name,
                "op": line.op,
                "impl": next(iter(line.impls.values()), ""),
                "nodes": ", ".join(line.nodes),
                "cells": cells,
            }
        )
    return {
        "threads": found.threads,
        "backends": found.shown,
        "lines": lines,
        "sentences": found.sentences(),
        "silent": found.silent,
    }
