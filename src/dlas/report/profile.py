"""The page of a profile: roofline, times of the steps, and the table of everything known of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlas.core.environment import cpu_model
from dlas.core.files import write_atomic
from dlas.report.labels import figure_words, value_words
from dlas.report.speed import bounds, page, roof_lines, series_of, spread_labels
from dlas.runtime.engine.profile import Profile, Row
from dlas.runtime.engine.work import peak_of

BARS = 40  # steps of the chart of times
_NAMED = 6  # points of the roofline that carry their name
_NAMED_SHARE = 0.02
_SMALLEST, _LARGEST = 30.0, 900.0  # area of a point in square pixels


def write_profile_page(profile: Profile, path: Path) -> None:
    """Write the page of a profile as one HTML file.

    Raises:
        StorageError: The folder does not exist or cannot be written, or the disk is full.
    """
    write_atomic(Path(path), render_profile(profile).encode("utf-8", "replace"))


def render_profile(profile: Profile) -> str:
    """The page as text."""
    colours = series_of([r.impl for r in profile.rows], [r.milliseconds for r in profile.rows])
    figures: list[dict[str, Any]] = []
    has_roofline = profile.roof is not None and any(r.gflops and r.work for r in profile.rows)
    if has_roofline:
        figures.append(_roofline(profile, colours))
    shown, left_out = _longest(profile.rows)
    figures.append(_times(profile, shown, colours))
    return page(
        "profile.html.j2",
        figures,
        profile=profile,
        headline=_headline(profile),
        slowest=_slowest(profile),
        has_roofline=has_roofline,
        legend=_legend(profile, colours),
        left_out=left_out,
        rows=[
            _cells(row, number, max(r.share for r in profile.rows)) for number, row in enumerate(profile.rows)
        ],
        candidates=sorted(profile.candidates.items(), key=lambda item: item[1]),
        facts=_facts(profile),
    )


def _headline(profile: Profile) -> str:
    words = f"{value_words(profile.whole_ms, 'ms')} a run on {_threads(profile.threads)}"
    if profile.interrupted:
        words += f", of which {value_words(profile.cpu_ms, 'ms')} processor time"
    return ". ".join([words, *profile.summary()[:1]]) + "."


def _slowest(profile: Profile) -> str:
    """Where the time goes, and where most of it could be won."""
    if not profile.rows:
        return ""
    first = max(profile.rows, key=lambda r: r.milliseconds)
    words = f"The longest step is {first.name} ({first.impl}), {100 * first.share:.0f} % of the time."
    gaps = [(r.milliseconds * (1 - r.fraction), r) for r in profile.rows if r.fraction is not None]
    if gaps:
        lost, row = max(gaps, key=lambda pair: pair[0])
        if lost > 0:
            words += (
                f" Most could be won on {row.name}: {value_words(lost, 'ms')} above the roofline, "
                f"at {100 * (row.fraction or 0):.0f} % of what is attainable."
            )
    return words


def _roofline(profile: Profile, colours: dict[str, str]) -> dict[str, Any]:
    roof = profile.roof
    assert roof is not None
    longest = max(row.share for row in profile.rows)
    points = [
        {
            "x": row.work.intensity,
            "y": row.gflops,
            "roof": row.attainable,
            "colour": colours[row.impl],
            "size": _SMALLEST + (_LARGEST - _SMALLEST) * row.share / longest,
            "text": row.name if row.share >= _NAMED_SHARE else "",
            "row": number,
            "tip": _tip(row),
        }
        for number, row in sorted(enumerate(profile.rows), key=lambda pair: -pair[1].share)
        if row.work is not None and row.gflops
    ]
    spread_labels(points, _NAMED, width=0.45, height=0.16)
    kinds = dict.fromkeys(peak_of(row.work, roof) for row in profile.rows if row.work and row.gflops)
    ridge = max(roof.peaks[k].value for k in kinds) / max(f.value for f in roof.bandwidths.values())
    low, high = bounds([p["x"] for p in points] + [ridge / 2, 3 * ridge], 2.0)
    lines = roof_lines(roof, list(kinds), low, high)
    frame = {"x": [low, high], "y": list(bounds([p["y"] for p in points] + [e["y"] for e in lines], 1.7))}
    return {
        "id": "roofline-chart", "spec": "roofline", "height": 460, "domains": frame,
        "datasets": {"roofs": lines, "points": points},
    }  # fmt: skip


def _longest(rows: Sequence[Row]) -> tuple[list[tuple[int, Row]], int]:
    """The longest steps in the order they run, and how many are left out."""
    numbered = list(enumerate(rows))
    kept = sorted(sorted(numbered, key=lambda pair: -pair[1].milliseconds)[:BARS], key=lambda pair: pair[0])
    return kept, len(rows) - len(kept)


def _times(profile: Profile, shown: Sequence[tuple[int, Row]], colours: dict[str, str]) -> dict[str, Any]:
    rows = [
        {
            "name": f"{n} {row.name}",
            "ms": row.milliseconds,
            "least": row.fraction * row.milliseconds if row.fraction is not None else None,
            "colour": colours[row.impl],
            "row": n,
            "tip": _tip(row),
        }
        for n, row in shown
    ]
    return {
        "id": "times-chart",
        "spec": "times",
        "height": 19 * max(len(rows), 1),
        "datasets": {"rows": rows},
    }


def _tip(row: Row) -> dict[str, Any]:
    """What a pointer is told: a head and pairs of words."""
    found = [
        ("kernel", row.impl),
        ("time", f"{value_words(row.milliseconds, 'ms')}, {100 * row.share:.1f} %"),
    ]
    if row.layout:
        found.append(("layout", row.layout))
    work = row.work
    if work is not None:
        if work.macs:
            found.append(("MACs", value_words(work.macs, "count")))
        found.append(("bytes in", value_words(work.bytes_in, "bytes")))
        found.append(("bytes out", value_words(work.bytes_out, "bytes")))
        if work.bytes_weights:
            found.append(("weights", value_words(work.bytes_weights, "bytes")))
    if row.gflops is not None:
        found.append(("speed", value_words(row.gflops, "GFLOP/s")))
    if row.attainable is not None:
        found.append(("attainable", f"{value_words(row.attainable, 'GFLOP/s')} from {row.level}"))
    if row.fraction is not None:
        found.append(("of it", f"{100 * row.fraction:.0f} %"))
    return {"head": f"{row.name} ({row.op})", "pairs": found}


def _legend(profile: Profile, colours: dict[str, str]) -> list[dict[str, str]]:
    totals: dict[str, float] = {}
    for row in profile.rows:
        totals[row.impl] = totals.get(row.impl, 0.0) + row.share
    return [
        {"name": name, "colour": colours[name], "share": f"{100 * share:.0f} %"}
        for name, share in sorted(totals.items(), key=lambda item: -item[1])
    ]


def _cells(row: Row, number: int, longest: float) -> dict[str, str]:
    work = row.work
    sizes = (
        "" if work is None else " + ".join(map(_short, (work.bytes_in, work.bytes_out, work.bytes_weights)))
    )
    return {
        "number": str(number),
        "name": row.name,
        "op": row.op,
        "impl": row.impl,
        "layout": row.layout,
        "ms": f"{row.milliseconds:.4f}",
        "share": f"{100 * row.share:.1f}",
        "bar": f"{100 * row.share / longest:.1f}" if longest else "0",
        "macs": value_words(work.macs, "count") if work is not None and work.macs else "",
        "bytes": sizes,
        "gflops": "" if row.gflops is None else f"{row.gflops:.3g}",
        "intensity": f"{work.intensity:.3g}" if work is not None and work.operations else "",
        "attainable": "" if row.attainable is None else f"{row.attainable:.3g}",
        "fraction": "" if row.fraction is None else f"{100 * row.fraction:.0f}",
        "bound": row.bound,
    }


def _short(count: int) -> str:
    """Bytes with the first letter of their unit: ``12.5K``."""
    for unit, size in (("M", 2**20), ("K", 2**10)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _facts(profile: Profile) -> dict[str, str]:
    found = {
        "back end": profile.backend,
        "policy": profile.policy,
        "instruction set": profile.isa,
        "threads": str(profile.threads),
        "runs": str(profile.runs),
    }
    found["processor"] = cpu_model()
    if profile.roof is not None:
        for name, peak in profile.roof.peaks.items():
            found[f"{name.replace('_', ' ')} peak"] = figure_words(peak)
        for level, speed in profile.roof.bandwidths.items():
            found[f"reads from {level.upper()}"] = figure_words(speed)
    if profile.backend == "engine":
        found["steps and call"] = value_words(profile.steps_ms + profile.call_ms, "ms")
        found["whole, no clocks"] = value_words(profile.whole_ms, "ms")
        found["difference"] = f"{100 * profile.difference:.1f} %"
        if not profile.interrupted:
            found["overhead of profiling"] = f"{100 * profile.clock_cost:.1f} %"
        if profile.interrupted:
            found["of it processor time"] = value_words(profile.cpu_ms, "ms")
    return {name: value for name, value in found.items() if value}


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"
