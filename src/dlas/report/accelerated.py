"""The page of a run on an accelerator: what its units do when, and where each layer was computed. No scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlas.core.files import write_atomic
from dlas.report.html import environment, file, policy
from dlas.report.labels import value_words
from dlas.runtime.accelerated import AcceleratedRun
from dlas.runtime.offload import Placed

_WIDTH, _LEFT, _ROW = 1000.0, 70.0, 26.0  # of the picture, of its labels, of a unit
_SHORTEST = 0.4  # pixels of a bar that can still be seen
_COLOURS = {"weights": "slower", "inputs": "bar", "compute": "faster", "post": "accent"}


@dataclass(frozen=True)
class _Bar:
    x: float
    width: float
    y: float
    state: str
    title: str


def write_accelerated(found: AcceleratedRun, path: Path) -> None:
    """Write the page of a run on an accelerator.

    Raises:
        StorageError: The folder does not exist or cannot be written, or the disk is full.
    """
    write_atomic(Path(path), render_accelerated(found).encode("utf-8", "replace"))


def render_accelerated(found: AcceleratedRun) -> str:
    """The page as text."""
    units, bars, ticks = _timeline(found)
    return (
        environment()
        .get_template("accelerated.html.j2")
        .render(
            found=found,
            policy=policy([]),
            style=file("style.css") + file("accelerated.css"),
            headline=_headline(found),
            units=units,
            bars=bars,
            ticks=ticks,
            height=_ROW * len(units) + 24,
            states=[
                (state, colour) for state, colour in _COLOURS.items() if any(b.state == state for b in bars)
            ],
            rows=[_row(layer, found.cycles.total) for layer in found.layers],
            figures=_figures(found),
        )
    )


def _headline(found: AcceleratedRun) -> str:
    words = (
        f"{100 * found.offloaded:.1f} % of the products are on {found.accelerator}: "
        f"{found.cycles.total:,} cycles a row, "
        f"{100 * found.cycles.utilisation:.1f} % of its multipliers used."
    )
    top = found.figures.get("top1")
    return words if top is None else f"{words} {100 * top.value:.1f} % of {found.rows} rows are right."


def _timeline(found: AcceleratedRun) -> tuple[list[tuple[str, float]], list[_Bar], list[tuple[float, str]]]:
    """Units with their heights, bars, and marks of the axis; layers one after the other, as they run."""
    names = list(dict.fromkeys(unit for _, spans in found.spans for unit, *_ in spans))
    units = [(name, _ROW * place) for place, name in enumerate(names)]
    height = dict(units)
    totals = {layer.name: layer.cycles.total for layer in found.layers if not layer.reason}
    whole = max(sum(totals.values()), 1)
    scale = (_WIDTH - _LEFT) / whole
    bars, start = [], 0
    for name, spans in found.spans:
        for unit, state, first, last in spans:
            title = f"{name}: {unit}, {state}, cycles {first:,} to {last:,}"
            width = max((last - first + 1) * scale, _SHORTEST)
            bars.append(_Bar(_LEFT + (start + first) * scale, width, height[unit] + 3, state, title))
        start += totals.get(name, 0)
    marks = [
        (_LEFT + part * (_WIDTH - _LEFT), f"{whole * part:,.0f}") for part in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return units, bars, marks


def _row(layer: Placed, whole: int) -> dict[str, object]:
    cycles = layer.cycles
    if layer.reason:
        blank: dict[str, object] = dict.fromkeys(("cycles", "busy", "used", "counters"), "")
        return {
            "name": layer.name,
            "op": layer.op,
            "on": f"CPU: {layer.reason}",
            "macs": f"{layer.macs:,}",
            "share": None,
        } | blank
    busy = cycles.counters.get("compute", 0) / cycles.total if cycles.total else 0.0
    return {
        "name": layer.name,
        "op": layer.op,
        "on": "accelerator",
        "macs": f"{layer.macs:,}",
        "cycles": f"{cycles.total:,}",
        "share": round(100 * cycles.total / max(whole, 1), 1),
        "busy": f"{100 * busy:.1f} %",
        "used": f"{100 * cycles.utilisation:.1f} %",
        "counters": ", ".join(f"{name} {value:,}" for name, value in cycles.counters.items()),
    }


def _figures(found: AcceleratedRun) -> Sequence[tuple[str, str, str, str]]:
    return [
        (name.replace("_", " "), value_words(figure.value, figure.unit), str(figure.source), figure.note)
        for name, figure in found.figures.items()
    ]
