"""Charts of profiles and benchmarks: roofline, times of steps, ratios of back ends; and what their pages share."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from dlas.hardware.cpu.roofline import LEVELS, Roofline
from dlas.report import charts
from dlas.report.data import embed_json
from dlas.report.html import environment, file, policy

OTHERS = "other"


def page(template: str, figures: Sequence[dict[str, Any]], **content: Any) -> str:
    """A page with charts.

    Args:
        template: File of the folder ``page``.
        figures: One per chart: ``id`` of its element, ``spec`` (a name of :func:`specifications`), ``height``,
            ``datasets``.
        content: Everything else that the template shows.
    """
    specs = specifications()
    data = [{**figure, "spec": specs[figure["spec"]]} for figure in figures]
    library, script = charts.library(), '"use strict";\n' + file("speed.js")
    return (
        environment()
        .get_template(template)
        .render(
            policy=policy([library, script]),
            style=file("style.css") + file("speed.css"),
            library=library,
            script=script,
            data=embed_json(data),
            **content,
        )
    )


@functools.cache
def specifications() -> dict[str, dict[str, Any]]:
    """All charts by name; their data are named and come with the page."""
    return {"roofline": _roofline(), "times": _times(), "ratios": _ratios()}


def series_of(names: Sequence[str], weights: Sequence[float]) -> dict[str, str]:
    """Colour of every name: the weightiest get one of their own, the rest share the last."""
    totals: dict[str, float] = {}
    for name, weight in zip(names, weights, strict=True):
        totals[name] = totals.get(name, 0.0) + weight
    ordered = sorted(totals, key=lambda n: -totals[n])
    own = ordered if len(ordered) <= charts.SERIES else ordered[: charts.SERIES - 1]
    order = [5, 4, 3, 1, 6, 2, 7, 0]  # strong hues first, ink last
    found = {name: f"var(--s{order[i]})" for i, name in enumerate(own)}
    return {name: found.get(name, "var(--s0)") for name in totals}


def roof_lines(roof: Roofline, kinds: Sequence[str], low: float, high: float) -> list[dict[str, Any]]:
    """Ends of the roofs between two intensities: a slope for every memory, and a flat top for every arithmetic.

    Returns:
        Rows of ``x``, ``y``, ``x2``, ``y2``, ``label`` (of a slope) and ``top`` (of a top).
    """
    peaks = {kind: roof.peaks[kind] for kind in kinds}
    highest = max(peak.value for peak in peaks.values())
    rows = []
    for level in (level for level in LEVELS if level in roof.bandwidths):
        speed = roof.bandwidths[level].value
        end = min(highest / speed, high)
        rows.append(
            {"x": low, "y": low * speed, "x2": end, "y2": end * speed, "label": f"{level.upper()} {speed:.3g} GB/s"}
        )  # fmt: skip
    fastest = max(figure.value for figure in roof.bandwidths.values())
    for kind, peak in peaks.items():
        start = max(low, peak.value / fastest)
        words = f"{kind.replace('_', ' ')} {peak.value:.4g} {peak.unit}"
        rows.append({"x": start, "y": peak.value, "x2": high, "y2": peak.value, "label": "", "top": words})
    return rows


def spread_labels(points: list[dict[str, Any]], most: int, width: float, height: float) -> None:
    """Leave ``text`` on the first points only, as many as find room on a logarithmic plane.

    Args:
        points: With ``x``, ``y`` and ``text``, the most important first; changed in place.
        most: Labels at most.
        width: Width of a label as a share of a decade.
        height: Its height, likewise.
    """
    taken: list[tuple[float, float]] = []
    for point in points:
        at = math.log10(point["x"]), math.log10(point["y"])
        free = all(abs(at[0] - x) > width or abs(at[1] - y) > height for x, y in taken)
        if point["text"] and len(taken) < most and free:
            taken.append(at)
        else:
            point["text"] = ""


def bounds(values: Sequence[float], spare: float = 1.6) -> tuple[float, float]:
    """Ends of a logarithmic axis that holds all positive values with room to spare."""
    positive = [v for v in values if v > 0 and math.isfinite(v)] or [1.0]
    return min(positive) / spare, max(positive) * spare


def _roofline() -> dict[str, Any]:
    """Attainable roofs, one point per step, and the gap between them."""
    import altair as alt

    log = alt.Scale(type="log", nice=False)
    axis = alt.Axis(format="~g", tickCount=6)
    x = alt.X("x:Q", title="operations per byte", scale=log, axis=axis)
    y = alt.Y("y:Q", title="GFLOP/s", scale=log, axis=axis)
    roofs, points = alt.Chart(alt.NamedData("roofs")), alt.Chart(alt.NamedData("points"))
    slopes, tops = roofs.transform_filter("datum.label != ''"), roofs.transform_filter("isValid(datum.top)")
    named = points.transform_filter("datum.text != ''")
    colour, line = alt.Color("colour:N", scale=None, legend=None), alt.value("var(--line-strong)")
    layers = [
        roofs.mark_rule(strokeWidth=1.6).encode(x=x, y=y, x2="x2:Q", y2="y2:Q", color=line),
        points.mark_rule(strokeWidth=1, opacity=0.35, strokeDash=[2, 3]).encode(
            x=x, y=y, y2="roof:Q", color=colour
        ),
        points.mark_tick(thickness=1.5, width=9, opacity=0.55, orient="horizontal").encode(
            x=x, y=alt.Y("roof:Q", scale=log), color=colour
        ),
        *_labels(
            slopes,
            alt.X("x:Q", scale=log),
            y,
            "label:N",
            "var(--muted)",
            align="left",
            baseline="top",
            dx=9,
            dy=7,
        ),
        *_labels(tops, alt.X("x2:Q", scale=log), y, "top:N", "var(--muted)", align="right", dx=-4, dy=-9),
        points.mark_point(
            filled=True, opacity=0.85, strokeWidth=1, stroke="var(--panel)", cursor="pointer"
        ).encode(x=x, y=y, color=colour, size=alt.Size("size:Q", scale=None, legend=None)),
        *_labels(named, x, y, "text:N", "var(--ink)", align="center", dy=-15),
    ]
    return charts.finished(alt.layer(*layers).properties(width="container"))


def _labels(chart: Any, x: Any, y: Any, text: str, colour: str, **look: Any) -> list[Any]:
    """Texts above a broader copy in the colour of the ground, so that no line crosses them."""
    import altair as alt

    halo = chart.mark_text(fontSize=11.5, stroke="var(--panel)", strokeWidth=4, **look)
    return [
        halo.encode(x=x, y=y, text=text, color=alt.value("var(--panel)")),
        chart.mark_text(fontSize=11.5, **look).encode(x=x, y=y, text=text, color=alt.value(colour)),
    ]


def _times() -> dict[str, Any]:
    """A bar per step, with a mark where the roofline puts it."""
    import altair as alt

    rows = alt.Chart(alt.NamedData("rows"))
    y = alt.Y(
        "name:N",
        sort=None,
        title=None,
        axis=alt.Axis(labelLimit=260, ticks=False, domain=False, labelFontSize=11.5, labelExpr="datum.label"),
    )
    x = alt.X("ms:Q", title="ms (median)", axis=alt.Axis(format="~g", orient="top", tickCount=8))
    layers = [
        rows.mark_bar(height={"band": 0.72}, cursor="pointer").encode(
            y=y, x=x, color=alt.Color("colour:N", scale=None, legend=None)
        ),
        rows.transform_filter("isValid(datum.least)")
        .mark_tick(thickness=2, height={"band": 0.95}, orient="vertical")
        .encode(y=y, x=alt.X("least:Q"), color=alt.value("var(--ink)")),
    ]
    return charts.finished(alt.layer(*layers).properties(width="container"))


def _ratios() -> dict[str, Any]:
    """A bar per back end: its time over that of the fastest, with the interval."""
    import altair as alt

    rows = alt.Chart(alt.NamedData("rows"))
    y = alt.Y(
        "name:N",
        sort=None,
        title=None,
        axis=alt.Axis(labelLimit=320, ticks=False, domain=False, labelFontSize=12),
    )
    x = alt.X("ratio:Q", title="time over that of the fastest", axis=alt.Axis(format="~g"))
    colour = alt.Color("colour:N", scale=None, legend=None)
    layers = [
        rows.mark_bar(height={"band": 0.6}, cursor="pointer").encode(y=y, x=x, color=colour),
        rows.mark_rule(strokeWidth=1.5).encode(
            y=y, x=alt.X("low:Q"), x2="high:Q", color=alt.value("var(--ink)")
        ),
        alt.Chart(alt.NamedData("one"))
        .mark_rule(strokeDash=[4, 3])
        .encode(x=x, color=alt.value("var(--muted)")),
        rows.mark_text(align="left", dx=6, fontSize=12).encode(
            y=y, x=alt.X("high:Q"), text="words:N", color=alt.value("var(--ink)")
        ),
    ]
    return charts.finished(alt.layer(*layers).properties(width="container"))
