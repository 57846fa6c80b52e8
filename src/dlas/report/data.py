"""A study as compact columns for the page: every text once, every figure one array, layer times within a budget."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dlas.core.figure import Figure, Outcome, Source
from dlas.explore.result import Point, StudyResult
from dlas.report.labels import AXES, SOURCES, label_of

LAYER_TIMES = 250_000
"""Layer times a page carries at most; beyond that only the best points keep theirs."""
CHANGED_LAYERS = 60_000
"""Rows of what changed per layer that a page carries at most; variants of the Pareto set come first."""
TAIL_CHARACTERS = 1_000_000
"""Characters of error output a page carries at most."""
_ORDER = ("compress", "kernels", "backend", "threads", "target")


def page_data(result: StudyResult) -> dict[str, Any]:
    """Everything the script of the page needs, as plain JSON values."""
    points = result.points
    front = set(result.pareto)
    texts = Texts()
    columns = {
        "axes": axes_of(points),
        "figures": [_figure_column(name, points, texts) for name in figure_names(points)],
        "outcomes": _coded([str(p.record.outcome) for p in points]),
        "verdicts": _coded([verdict_of(p) for p in points]),
        "reasons": [texts.code(p.record.reason) for p in points],
        "tails": _tails(points, texts),
        "notes": _notes(points, texts),
        "keys": [str(p.key)[:12] for p in points],
        "pareto": [i for i, p in enumerate(points) if p.key in front],
        "baseline": next((i for i, p in enumerate(points) if p.baseline), -1),
        "objectives": [{"figure": o.figure, "minimise": o.minimise} for o in result.objectives],
        "layers": _layers(points, front, texts),
        "changes": {
            variant: [[texts.code(row.get(k, "")) for k in ("layer", "op", "before", "after")] for row in rows]
            for variant, rows in changes_of(result)[0].items()
        },
        "command": base_command(result.command),
    }  # fmt: skip
    return {"count": len(points), **columns, "texts": texts.all}


def embed_json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can close the element or start a comment.

    Infinite and undefined numbers become null; anything JSON does not know becomes text.
    """
    text = json.dumps(plain(value), separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(value: Any) -> Any:
    """Plain JSON values of anything."""
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


class Texts:
    """A table of texts in which each stands once."""

    def __init__(self) -> None:
        self.all: list[str] = [""]
        self._codes = {"": 0}

    def code(self, text: object) -> int:
        """Number of a text; 0 is the empty one."""
        key = str(text)
        if key not in self._codes:
            self._codes[key] = len(self.all)
            self.all.append(key)
        return self._codes[key]


def verdict_of(point: Point) -> str:
    """What the table answers to ``right?``: the verdict of the check, or the outcome where there was none."""
    if point.record.outcome in (Outcome.OK, Outcome.WRONG):
        return str(point.record.facts.get("verdict") or point.record.outcome)
    return str(point.record.outcome)


def axes_of(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Every axis of choice: its name, its values in order of appearance, and the value's number for every point."""
    names = list(dict.fromkeys(name for p in points for name in p.choices))
    names.sort(key=lambda n: _ORDER.index(n) if n in _ORDER else len(_ORDER))
    return [
        {"name": n, "label": AXES.get(n, n), **_coded([str(p.choices.get(n, "")) for p in points])}
        for n in names
    ]


def figure_names(points: Sequence[Point]) -> list[str]:
    """All figures any point has: those known by name in their order, then the others."""
    from dlas.report.labels import FIGURES

    found = dict.fromkeys(name for p in points for name in p.record.figures)
    return [n for n in FIGURES if n in found] + [n for n in found if n not in FIGURES]


def changes_of(result: StudyResult) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """What changed, per compression variant that changed anything, and how many variants did not fit the budget."""
    front = set(result.pareto)
    best = {p.choices.get("compress") for p in result.points if p.key in front}
    having = [variant for variant, rows in result.changes.items() if rows]
    kept: set[str] = set()
    budget = CHANGED_LAYERS
    for variant in sorted(having, key=lambda v: v not in best):
        budget -= len(result.changes[variant])
        if budget >= 0:
            kept.add(variant)
    return {v: list(result.changes[v]) for v in having if v in kept}, len(having) - len(kept)


def base_command(command: str) -> list[str]:
    """Words of the study's command without the choices that a single point makes again; empty when unknown."""
    try:
        words = shlex.split(command)
    except ValueError:
        return []
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in ("--compress", "--backend", "--threads"):
            skip = True
        elif not word.startswith(("--compress=", "--backend=", "--threads=")):
            kept.append(word)
    return [shlex.quote(word) for word in kept if word != "--fresh"]


def _coded(values: Sequence[str]) -> dict[str, Any]:
    texts = list(dict.fromkeys(values))
    codes = {text: i for i, text in enumerate(texts)}
    return {"values": texts, "codes": [codes[v] for v in values]}


def _figure_column(name: str, points: Sequence[Point], texts: Texts) -> dict[str, Any]:
    figures = [p.record.figures.get(name) for p in points]
    label = label_of(name)
    known = [f for f in figures if f is not None]
    column: dict[str, Any] = {
        "name": name,
        "label": label.short,
        "about": label.long,
        "column": label.column,
        "low": label.low_is_good,
        "unit": known[0].unit,
        "v": [None if f is None else short(f.value) for f in figures],
        "s": "".join("-" if f is None else SOURCES[f.source][0] for f in figures),
        "note": {i: texts.code(f.note) for i, f in enumerate(figures) if f is not None and f.note},
    }
    for key, attribute in (("lo", "low"), ("hi", "high"), ("n", "n")):
        values = [_end(f, attribute) for f in figures]
        if any(v is not None for v in values):
            column[key] = values[0] if key == "n" and len(set(values)) == 1 else values
    return column


def _end(figure: Figure | None, attribute: str) -> float | int | None:
    value = None if figure is None else getattr(figure, attribute)
    return None if value is None or not math.isfinite(value) else short(value)


def short(value: float) -> float | int:
    """Six significant digits; whole numbers as they are. ``0.412345678`` becomes ``0.412346``."""
    if float(value).is_integer() and abs(value) < 2**53:
        return int(value)
    return float(f"{value:.6g}")


def _tails(points: Sequence[Point], texts: Texts) -> dict[int, int]:
    tails = {i: str(p.record.stderr_tail) for i, p in enumerate(points) if p.record.stderr_tail}
    allowed = max(200, TAIL_CHARACTERS // max(1, len(set(tails.values()))))
    return {i: texts.code(tail[-allowed:]) for i, tail in tails.items()}


def _notes(points: Sequence[Point], texts: Texts) -> dict[int, list[int]]:
    found = {i: _listed(p, "notes") for i, p in enumerate(points)}
    return {i: [texts.code(note) for note in notes] for i, notes in found.items() if notes}


def _listed(point: Point, fact: str) -> list[Any]:
    value = point.record.facts.get(fact)
    if isinstance(value, str):
        return [value] if value else []
    return list(value) if isinstance(value, Iterable) and not isinstance(value, Mapping) else []


def _layers(points: Sequence[Point], front: set[str], texts: Texts) -> dict[str, Any]:
    """Per-layer times: the lists of layers once each, then one row of times per point, best points first."""
    having = [i for i, p in enumerate(points) if _layer_rows(p)]
    first = {i: (not points[i].baseline, points[i].key not in front) for i in having}
    having.sort(key=lambda i: (*first[i], _latency(points[i])))
    sets: dict[tuple[tuple[int, int, str], ...], int] = {}
    times: dict[int, list[Any]] = {}
    budget = LAYER_TIMES
    for i in having:
        rows = _layer_rows(points[i])
        budget -= len(rows)
        if budget < 0:
            break
        kind = tuple((texts.code(r.get("name", "")), texts.code(r.get("op", "")), _letter(r)) for r in rows)
        number = sets.setdefault(kind, len(sets))
        times[i] = [number, [_milliseconds(r["milliseconds"]) for r in rows]]
    return {"sets": [list(map(list, s)) for s in sets], "times": times, "left_out": len(having) - len(times)}


def _letter(row: Mapping[str, Any]) -> str:
    """Of the source of a layer's time; studies from before layers had one were all measured."""
    return SOURCES[Source(row.get("source", Source.MEASURED))][0]


def _layer_rows(point: Point) -> list[Mapping[str, Any]]:
    rows = _listed(point, "layers")
    return [r for r in rows if isinstance(r, Mapping) and isinstance(r.get("milliseconds"), int | float)]


def _milliseconds(value: float) -> float | int | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None


def _latency(point: Point) -> float:
    figure = point.record.figures.get("latency_ms")
    return figure.value if figure else math.inf
