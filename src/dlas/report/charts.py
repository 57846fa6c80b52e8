"""Vega-Lite specifications of the page's charts. Data are named: the page fills them in from its one block of data.

Colours are custom properties of the style sheet (``var(--ink)``), so that charts follow light, dark and print.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from dlas.core.cache import Cache, key_of
from dlas.core.lazy import distribution_version

SERIES = 8
"""Colours told apart by everyone (Okabe and Ito 2008); the style sheet has them as ``--s0`` to ``--s7``."""
SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "triangle-right",
    "triangle-left",
)


@functools.cache
def specifications() -> dict[str, dict[str, Any]]:
    """All charts by name, each for data sets the page brings: ``points``, ``front`` and so on."""
    return {"pareto": _pareto(), "effect": _effect()}


@functools.cache
def library() -> str:
    """Vega, Vega-Lite and vega-embed as one JavaScript module that sets ``window.vegaEmbed``, offline."""
    import altair as alt
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    known = vl_convert.get_vegalite_versions()
    shipped = version if version in known else known[-1]

    def bundle(folder: Path) -> None:
        code = vl_convert.javascript_bundle(vl_version=shipped)  # pyright: ignore[reportCallIssue]  # stub lacks a default
        (folder / "vega.js").write_text(code, encoding="utf-8")

    # Bundling takes seconds and gives the same for the same versions.
    key = key_of("vega bundle", shipped, distribution_version("vl-convert-python"))
    code = (Cache().folder(key, bundle) / "vega.js").read_text(encoding="utf-8")
    # Inside a script element these would end it or hide what follows; in code they only occur within strings.
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _pareto() -> dict[str, Any]:
    """Two figures against each other: every point with its intervals, the front as a staircase, numbered."""
    import altair as alt

    x = alt.X("x:Q", title="x", scale=alt.Scale(type="log", nice=False, padding=18))
    y = alt.Y("y:Q", title="y", scale=alt.Scale(padding=18))
    bars = alt.Chart(alt.NamedData("bars"))
    points = alt.Chart(alt.NamedData("points"))
    front = alt.Chart(alt.NamedData("front"))
    quiet = alt.value("var(--muted)")
    layers = [
        bars.mark_rule(strokeWidth=1, opacity=0.45).encode(x=x, x2="xh:Q", y=y, color=quiet),
        bars.mark_rule(strokeWidth=1, opacity=0.3).encode(x=x, y=y, y2="yh:Q", color=quiet),
        front.mark_line(interpolate="step-after", strokeWidth=1.5).encode(
            x=x, y=y, order="order:Q", color=alt.value("var(--ink)")
        ),
        points.mark_point(filled=True, opacity=0.9, strokeWidth=0.8, stroke="var(--panel)", cursor="pointer").encode(
            x=x,
            y=y,
            color=alt.Color("series:N", legend=None, scale=alt.Scale(domain=["?"], range=["var(--s0)"])),
            shape=alt.Shape("shape:N", legend=None, scale=alt.Scale(domain=["?"], range=["circle"])),
            size=alt.Size("size:Q", legend=None, scale=None),
        ),
        alt.Chart(alt.NamedData("base")).mark_point(size=260, strokeWidth=1.4, filled=False, shape="circle").encode(
            x=x, y=y, color=alt.value("var(--ink)")
        ),
        alt.Chart(alt.NamedData("base")).mark_text(dy=21, fontSize=11, text="baseline").encode(
            x=x, y=y, color=alt.value("var(--ink)")
        ),
        front.mark_text(dy=-13, dx=-9, fontSize=11, fontWeight="bold").encode(
            x=x, y=y, text="rank:N", color=alt.value("var(--ink)")
        ),
        alt.Chart(alt.NamedData("selected")).mark_point(size=420, strokeWidth=2.5, filled=False, shape="circle").encode(
            x=x, y=y, color=alt.value("var(--accent)")
        ),
    ]  # fmt: skip
    return finished(alt.layer(*layers).properties(width="container", height=420))


def _effect() -> dict[str, Any]:
    """What a choice of one axis does to latency: one row per choice, every pair a tick, the median a dot."""
    import altair as alt

    x = alt.X(
        "ratio:Q",
        title=None,
        scale=alt.Scale(type="log", nice=False, padding=16),
        axis=alt.Axis(format=".4~g"),
    )
    row = alt.Y("value:N", sort=None, axis=None, scale=alt.Scale(paddingInner=0, paddingOuter=0))
    low = alt.X("low:Q").scale(type="log")
    stats, pairs = alt.Chart(alt.NamedData("stats")), alt.Chart(alt.NamedData("pairs"))
    tone = alt.Color("tone:N", legend=None, scale=alt.Scale(
        domain=["faster", "slower", "open"], range=["var(--faster)", "var(--slower)", "var(--muted)"]))  # fmt: skip
    layers = [
        alt.Chart(alt.NamedData("one")).mark_rule(strokeWidth=1).encode(x=x, color=alt.value("var(--muted)")),
        stats.mark_rule(strokeWidth=1.2, yOffset=6).encode(x=low, x2="high:Q", y=row, color=tone),
        pairs.mark_tick(thickness=1, height=9, yOffset=6, opacity=0.7).encode(x=x, y=row, color=tone),
        stats.mark_point(filled=True, size=72, opacity=1, yOffset=6, stroke="var(--panel)", strokeWidth=1).encode(
            x=x, y=row, color=tone
        ),
        *_haloed(stats, row, "text:N", align="left", x=0),
        *_haloed(stats, row, "words:N", align="right", x="width", fontWeight="bold"),
    ]  # fmt: skip
    return finished(alt.layer(*layers).properties(width="container", height=36))


def _haloed(chart: Any, row: Any, field: str, **look: Any) -> list[Any]:
    """Text above a row of marks, over a broader copy in the colour of the ground, so that no line crosses it."""
    import altair as alt

    text = chart.mark_text(baseline="middle", dy=-8, fontSize=11.5, **look)
    halo = chart.mark_text(
        baseline="middle", dy=-8, fontSize=11.5, stroke="var(--panel)", strokeWidth=4, **look
    )
    return [
        layer.encode(y=row, text=field, color=alt.value(colour))
        for layer, colour in ((halo, "var(--panel)"), (text, "var(--ink)"))
    ]


def finished(chart: Any) -> dict[str, Any]:
    """The specification with the look all charts share."""
    config = {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "axis": {
            "labelColor": "var(--muted)",
            "titleColor": "var(--ink)",
            "titleFontWeight": 600,
            "titlePadding": 10,
            "labelFontSize": 11.5,
            "titleFontSize": 12,
            "gridColor": "var(--grid)",
            "domainColor": "var(--line-strong)",
            "tickColor": "var(--line-strong)",
            "labelOverlap": "greedy",
            "labelFlush": False,
            "labelSeparation": 6,
        },
    }
    spec = chart.to_dict(validate=True)
    spec["config"] = config
    spec.pop("$schema", None)
    return spec
