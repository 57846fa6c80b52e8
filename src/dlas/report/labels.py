"""Names, units and meanings of figures as a reader sees them. Fractions become percent here and nowhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dlas.core.figure import Figure, Source


@dataclass(frozen=True)
class Label:
    """How a figure is shown.

    Attributes:
        short: Column head.
        long: What it is, in a sentence fragment.
        column: Whether the table shows it from the start (a reader can add the others).
        low_is_good: Direction; None when neither end is better by itself.
    """

    short: str
    long: str
    column: bool = True
    low_is_good: bool | None = None


FIGURES = {
    "latency_ms": Label("Latency", "time of one inference: median, with its 95 % interval", low_is_good=True),
    "speedup": Label("Speed-up", "time of the baseline over time of this point, timed in turn", low_is_good=False),
    "top1": Label("Top-1", "share of the judged rows whose label is right", low_is_good=False),
    "robust_accuracy": Label("Robust", "share of the attacked rows that every attack leaves right", low_is_good=False),
    "peak_memory_bytes": Label("Peak memory", "largest memory of the process that ran it", low_is_good=True),
    "model_bytes": Label("Model size", "size of the network's file", low_is_good=True),
    "model_zstd_bytes": Label("Size, zstd", "size of the network's file after zstd", low_is_good=True),
    "agreement": Label("Same label", "share of the judged rows with the original network's label", low_is_good=False),
    "energy_mj": Label("Energy", "energy of one inference", low_is_good=True),
    "artifact_bytes": Label("Artifact", "size of what the back end made of the network", False, True),
    "macs": Label("MACs", "multiply-accumulates of one inference", False, True),
    "nonzero_macs": Label("MACs, not 0", "multiply-accumulates by weights that are not 0", False, True),
    "params": Label("Parameters", "stored parameters", False, True),
    "sparsity": Label("Zeros", "share of the weights that are exactly 0", False),
    "label_diff": Label("Other label", "share of the checked rows with another label than the reference", False, True),
    "sqnr_db": Label("SQNR", "signal over the error against the reference engine", False, False),
}  # fmt: skip
"""Figures known by name; others are shown under their own name."""

SOURCES = {
    Source.MEASURED: (
        "m",
        "read from a clock, a counter, a file or an evaluation on data, on the machine named in this report",
    ),
    Source.SIMULATED: ("s", "counted by a cycle model or a simulation of the hardware"),
    Source.ESTIMATED: ("e", "worked out by a formula or an analytic tool"),
    Source.PREDICTED: ("p", "guessed by a model that learned from measurements"),
}
"""Letter and meaning of every source."""

VERDICTS = {
    "equal": "same labels, and scores equal up to the order of sums",
    "score-diff": "scores differ by more than a third (10 dB or worse), and labels say nothing",
    "score-only": "same labels; scores differ by more than the order of sums explains",
    "label-diff": "more labels differ from the reference engine than its own noise explains",
    "degenerate": "nearly every row gets the same label",
    "nan": "not a number, or infinite",
    "shape": "the output has another shape than the reference's",
    "wrong": "it runs, but its answers are not the network's",
    "crash": "a worker process died",
    "timeout": "no answer within the time limit",
    "unsupported": "the choice exists but cannot do this",
    "ok": "it ran; answers were not compared",
}
"""Meaning of every answer to ``is it still right?``, best first."""

_GAP = "\u00a0"  # between a number and its unit, so that no line ends there

AXES = {"compress": "Compression", "backend": "Back end", "threads": "Threads", "target": "Target"}


def label_of(name: str) -> Label:
    """Label of a figure; a name that is not known is its own label and gets a column."""
    return FIGURES.get(name) or Label(name.replace("_", " "), name)


def value_words(value: float, unit: str) -> str:
    """A value with its unit: ``0.412 ms``, ``80.94 %``, ``1.04 MiB``, ``3.2×``."""
    if unit == "fraction":
        return f"{100 * value:.2f}{_GAP}%"
    if unit == "bytes":
        for name, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if abs(value) >= size:
                return f"{_digits(value / size)}{_GAP}{name}"
        return f"{value:.0f}{_GAP}B"
    if unit == "ratio":
        return f"{_digits(value)}×"
    if unit == "count":
        for name, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if abs(value) >= size:
                return f"{_digits(value / size)}{_GAP}{name}"
        return f"{value:.0f}"
    return f"{_digits(value)}{_GAP}{unit}".rstrip()


def figure_words(figure: Figure) -> str:
    """Value, interval and unit: ``0.412 ms [0.408, 0.419]``."""
    text = value_words(figure.value, figure.unit)
    if figure.low is None or figure.high is None or not math.isfinite(figure.low + figure.high):
        return text
    ends = [value_words(end, figure.unit) for end in (figure.low, figure.high)]
    suffix = text[len(text.rstrip("%×abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZµ" + _GAP)) :]
    if all(end.endswith(suffix) for end in ends):
        ends = [end.removesuffix(suffix) for end in ends]
    return f"{text} [{ends[0]},{_GAP}{ends[1]}]"


def _digits(value: float) -> str:
    """Three significant digits, without an exponent where people do not write one."""
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"
