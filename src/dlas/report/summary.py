"""The answers of a study in sentences: which choice is fastest and which is smallest, by how much, and how sure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlas.core.figure import Figure, Outcome
from dlas.explore.result import Point, StudyResult
from dlas.report.data import verdict_of
from dlas.report.labels import SOURCES, figure_words, label_of, value_words

POINT = 0.01
"""One percentage point: how far below the baseline's accuracy a recommended choice may lie."""


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        question: What is answered.
        index: Position of the chosen point, -1 when there is none.
        label: Its choices; empty when there is none.
        sentence: Why it was chosen, with figures.
        runner_up: The second best and how far behind it is.
        figures: Name, words and source letter of the figures that matter.
    """

    question: str
    index: int
    label: str
    sentence: str
    runner_up: str = ""
    figures: tuple[tuple[str, str, str], ...] = ()


def answers(result: StudyResult) -> list[Answer]:
    """Fastest and smallest choice that stays within a point of the baseline's accuracy, and the baseline itself."""
    base = baseline_of(result)
    if base is None:
        return []
    quality = quality_figure(base)
    within = _within(result.points, base, quality)
    loss = f" within 1 point of the baseline's {_quality_words(quality)}" if quality else ""
    found = [
        _fastest(result, base, within, f"Fastest{loss}", quality),
        _smallest(result, base, within, f"Smallest{loss}", quality),
    ]
    return [*[answer for answer in found if answer is not None], _baseline(result, base, quality)]


def baseline_of(result: StudyResult) -> Point | None:
    """The point the others are compared with."""
    return next((p for p in result.points if p.baseline), None)


def quality_figure(base: Point) -> str:
    """The figure by which accuracy is judged; empty where there is none."""
    return next((n for n in ("top1", "agreement") if n in base.record.figures), "")


def tally(result: StudyResult) -> list[tuple[str, int]]:
    """Outcome and number of points, the good ones first."""
    counts = Counter(p.record.outcome for p in result.points)
    return [(str(outcome), counts[outcome]) for outcome in Outcome if counts[outcome]]


def noisy(result: StudyResult) -> int:
    """Points with a figure whose note says that the measurement was disturbed."""
    return sum(any("noisy" in f.note for f in p.record.figures.values()) for p in result.points)


@dataclass(frozen=True)
class Group:
    """Points that share a verdict and a reason."""

    verdict: str
    reason: str
    indices: tuple[int, ...]
    labels: tuple[str, ...]


def reasons(result: StudyResult, most: int = 100) -> tuple[list[Group], int]:
    """Verdicts with their reasons, the most frequent first, right ones last; and how many groups were left out."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, point in enumerate(result.points):
        groups.setdefault((verdict_of(point), point.record.reason), []).append(index)
    ordered = sorted(groups.items(), key=lambda g: (g[0][1] == "", -len(g[1])))
    found = [
        Group(*key, tuple(at), tuple(result.points[i].label for i in at[:4])) for key, at in ordered[:most]
    ]
    return found, len(ordered) - len(found)


def volume_words(result: StudyResult) -> str:
    """Hypervolume of the Pareto set with its reference point in the figures' own units; empty where there is none."""
    value, reference = result.hypervolume.get("value"), result.hypervolume.get("reference")
    if value is None or reference is None:
        return ""
    units = {n: f.unit for p in result.points for n, f in p.record.figures.items()}
    corner = [
        f"{label_of(o.figure).short} {value_words(v if o.minimise else -v, units.get(o.figure, ''))}"
        for o, v in zip(result.objectives, reference, strict=False)
    ]
    return f"Hypervolume of the Pareto set: {value:.4g}, against the corner at {', '.join(corner)}."


def flat(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts as pairs of words; nested tables are written ``key value``."""
    return [
        (str(key).replace("_", " "), _words(key, value))
        for key, value in facts.items()
        if value not in (None, "", [], {})
    ]


def _fastest(
    result: StudyResult, base: Point, within: list[Point], question: str, quality: str
) -> Answer | None:
    ranked = _ranked(within, "latency_ms")
    if not ranked:
        return _nothing(question, result, "latency_ms")
    best = ranked[0]
    latency = best.record.figures["latency_ms"]
    if best.baseline:
        sentence = (
            f"takes {figure_words(latency)}: the baseline itself; nothing else that qualifies is faster."
        )
    else:
        sentence = f"takes {figure_words(latency)}, {_against(best)}{_loss(best, base, quality)}."
    return _answer(result, best, question, sentence, _behind(ranked, "latency_ms", "as long"), quality)


def _smallest(
    result: StudyResult, base: Point, within: list[Point], question: str, quality: str
) -> Answer | None:
    name = "model_bytes"
    ranked = _ranked(within, name, "latency_ms")
    if not ranked:
        return None
    best = ranked[0]
    size = best.record.figures[name]
    sentence = f"is {figure_words(size)}"
    if best.record.figures.get("model_zstd_bytes"):
        sentence += f" ({figure_words(best.record.figures['model_zstd_bytes'])} after zstd)"
    if name in base.record.figures and not best.baseline:
        share = size.value / base.record.figures[name].value if base.record.figures[name].value else math.nan
        sentence += f", {share:.0%} of the baseline".replace("%", "\u00a0%") if math.isfinite(share) else ""
    if "latency_ms" in best.record.figures:
        sentence += f"; its fastest back end takes {figure_words(best.record.figures['latency_ms'])}"
    sentence += "" if best.baseline else _loss(best, base, quality)
    others = [best, *(p for p in ranked if p.choices.get("compress") != best.choices.get("compress"))]
    return _answer(result, best, question, sentence + ".", _behind(others, name, "as large"), quality)


def _baseline(result: StudyResult, base: Point, quality: str) -> Answer:
    figures = base.record.figures
    if base.record.outcome is not Outcome.OK:
        sentence = f"did not work ({base.record.outcome}): {base.record.reason}."
    elif "latency_ms" in figures:
        sentence = f"takes {figure_words(figures['latency_ms'])}"
        sentence += (
            f" and reaches {_quality_words(quality)} {figure_words(figures[quality])}" if quality else ""
        )
        sentence += f" on {figures[quality].n:,} rows." if quality and figures[quality].n else "."
    else:
        sentence = "was not timed."
    return _answer(result, base, "Baseline: what all others are compared with", sentence, "", quality)


def _answer(
    result: StudyResult, point: Point, question: str, sentence: str, runner_up: str, quality: str
) -> Answer:
    shown = ["latency_ms", "speedup", quality, "model_bytes", "peak_memory_bytes"]
    if question.startswith("Smallest"):
        shown = ["model_bytes", "model_zstd_bytes", quality, "latency_ms"]
    figures = tuple(
        (label_of(n).short, value_words(f.value, f.unit), SOURCES[f.source][0])
        for n in shown
        if (f := point.record.figures.get(n)) is not None and not (n == "speedup" and point.baseline)
    )
    return Answer(question, result.points.index(point), point.label, sentence, runner_up, figures)


def _nothing(question: str, result: StudyResult, figure: str) -> Answer:
    good = sum(p.record.outcome is Outcome.OK for p in result.points)
    if good == 0:
        return Answer(question, -1, "", "No point gave a right answer, so nothing can be recommended.")
    closest = _ranked([p for p in result.points if p.record.outcome is Outcome.OK], figure)
    hint = f" Without that limit the fastest is {closest[0].label}." if closest else ""
    return Answer(question, -1, "", f"No right point qualifies.{hint}")


def _within(points: Sequence[Point], base: Point, quality: str) -> list[Point]:
    good = [p for p in points if p.record.outcome is Outcome.OK]
    if not quality:
        return good
    floor = base.record.figures[quality].value - POINT - 1e-9
    return [p for p in good if (f := p.record.figures.get(quality)) is not None and f.value >= floor]


def _ranked(points: Iterable[Point], *names: str) -> list[Point]:
    key: Callable[[Point], tuple[float, ...]] = lambda p: tuple(  # noqa: E731 - one line, used once
        f.value if (f := p.record.figures.get(n)) else math.inf for n in names
    )
    return sorted((p for p in points if names[0] in p.record.figures), key=key)


def _behind(ranked: Sequence[Point], name: str, how: str) -> str:
    if len(ranked) < 2:
        return "No other choice qualifies."
    best, second = (p.record.figures[name] for p in ranked[:2])
    ratio = second.value / best.value if best.value else math.nan
    text = f"Runner-up: {ranked[1].label}, {figure_words(second)}"
    if math.isfinite(ratio):
        digits = 2 if ratio >= 1.005 else 4
        text += f" ({ratio:.{digits}f} times {how})" if ratio > 1 else f" (just {how})"
    if None in (best.low, best.high, second.low, second.high):
        return text + "."
    if overlap(best, second):
        return text + "; the intervals overlap: not told apart here."
    return text + "; the intervals do not overlap."


def overlap(a: Figure, b: Figure) -> bool:
    """Whether two intervals have a value in common."""
    ends = (a.low, a.high, b.low, b.high)
    low, high, other_low, other_high = (math.nan if end is None else end for end in ends)
    return low <= other_high and other_low <= high


def _against(point: Point) -> str:
    speedup = point.record.figures.get("speedup")
    if speedup is None:
        return "without a ratio to the baseline"
    words = f"{figure_words(speedup)} the speed of the baseline"
    if speedup.low is not None and speedup.high is not None and speedup.low <= 1 <= speedup.high:
        return words + " (not told apart from it)"
    return words


def _loss(point: Point, base: Point, quality: str) -> str:
    if not quality:
        return ""
    change = 100 * (point.record.figures[quality].value - base.record.figures[quality].value)
    value = value_words(point.record.figures[quality].value, point.record.figures[quality].unit)
    sign = "+" if change > 0 else "−" if round(change, 2) else "±"
    return f", with {_quality_words(quality)} {value} ({sign}{abs(change):.2f} points)"


def _quality_words(quality: str) -> str:
    return {"top1": "top-1 accuracy", "agreement": "agreement with the original network"}.get(
        quality, quality
    )


def _words(key: object, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_words(k, v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_words("", v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if str(key).endswith("_bytes") and isinstance(value, int | float):
        return value_words(value, "bytes")
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
