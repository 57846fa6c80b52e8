"""The pages of a profile and of a benchmark, as text and in a real browser with every request refused."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlas.core.figure import Figure, Outcome, Source
from dlas.hardware.cpu.roofline import Roofline
from dlas.report.bench import render_bench, write_bench_page
from dlas.report.profile import BARS, render_profile, write_profile_page
from dlas.report.speed import bounds, roof_lines, series_of, specifications, spread_labels
from dlas.runtime.bench import BenchRow
from dlas.runtime.engine.explain import CAUTION, OTHER, Explanation, Line
from dlas.runtime.engine.profile import Profile, profile_of

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'&\u2028"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def measured(value: float, unit: str, spread: float = 0.0) -> Figure:
    ends = (value * (1 - spread), value * (1 + spread)) if spread else (None, None)
    return Figure(value, unit, Source.MEASURED, *ends)


ROOF = Roofline(
    "x86-64-v4",
    1,
    {"fp32": measured(100.0, "GFLOP/s"), "int8": measured(400.0, "GOP/s")},
    {name: measured(v, "GB/s") for name, v in (("l1", 200.0), ("l2", 100.0), ("l3", 50.0), ("dram", 10.0))},
    {"l1": 32 * 1024, "l2": 2**20, "l3": 2**25},
)


def profile(steps: int = 12, name: str = "net", roof: Roofline | None = ROOF, **more: Any) -> Profile:
    impls = ["spatial-pack", "winograd", "depthwise", "gemm", "reorder"]
    rows = [
        {
            "name": f"{name} {i}", "op": "Conv", "impl": impls[i % 5], "layout": "blocked",
            "milliseconds": 0.01 * (i + 1),
            "work": {
                "macs": 0 if i % 5 == 4 else 10**4 * (i + 1), "operations": 0 if i % 5 == 4 else 2 * 10**4 * (i + 1),
                "bytes_in": 1000 * (i + 1), "bytes_out": 2000, "bytes_weights": 500 * i,
            },
        }
        for i in range(steps)
    ]  # fmt: skip
    whole = sum(row["milliseconds"] for row in rows)
    fields = {
        "backend": "engine", "threads": 1, "isa": "x86-64-v4", "policy": "rules", "runs": 5, "rows": rows,
        "whole_ms": whole, "cpu_ms": whole, "call_ms": 0.0, "clocked_ms": whole, "notes": [], "candidates": {},
    }  # fmt: skip
    return profile_of(name, {**fields, **more}, roof)


def rows(name: str = "engine") -> list[BenchRow]:
    def timed(backend: str, ms: float, ratio: float) -> BenchRow:
        figures = {
            "latency_ms": measured(ms, "ms", 0.05), "to_fastest": measured(ratio, "ratio", 0.02),
            "gflops": measured(100 / ms, "GFLOP/s"), "limit_fraction": measured(0.5 / ratio, "fraction"),
        }  # fmt: skip
        return BenchRow(backend, 1, Outcome.OK, "", figures)

    return [
        timed("onnxruntime", 0.6, 1.5),
        timed(name, 0.4, 1.0),
        BenchRow("tvm", 1, Outcome.CRASH, "killed by SIGSEGV"),
    ]


def explanation(name: str = "conv") -> Explanation:
    lines = (
        Line(name, "Conv", (name, "relu"), {"engine": 0.3, "onnxruntime": 0.2}, {"engine": "gspc"}),
        Line(OTHER, "", (), {"onnxruntime": 0.1}),
    )
    return Explanation(1, ("engine", "onnxruntime"), lines, {"tvm": "killed by SIGSEGV"})


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_page_of_a_profile_answers_first_and_has_every_step() -> None:
    page = render_profile(profile())
    assert "0.780 ms a run on 1 thread" in page.replace("\u00a0", " ")
    assert "The longest step is net 11 (winograd), 15 % of the time." in page
    assert "Most could be won on" in page
    assert all(f'id="row-{i}"' in page for i in range(12))
    roofline, times = data_of(page)
    points = roofline["datasets"]["points"]
    assert len(points) == 10  # those that only move data have no place there
    for axis, key in (("x", "x"), ("y", "y")):
        low, high = roofline["domains"][axis]
        assert all(low < p[key] < high for p in points)
    assert all(math.isclose(p["roof"], 100.0) or p["roof"] < 100.0 for p in points)
    assert len(times["datasets"]["rows"]) == 12


def test_a_long_network_shows_its_longest_steps_in_order() -> None:
    page = render_profile(profile(steps=BARS + 25))
    _, times = data_of(page)
    numbers = [row["row"] for row in times["datasets"]["rows"]]
    assert numbers == list(range(25, BARS + 25))
    assert "25 shorter ones are in the table" in page


def test_without_limits_there_is_no_roofline() -> None:
    page = render_profile(profile(roof=None))
    assert "roofline-chart" not in page
    assert len(data_of(page)) == 1


def test_a_whole_network_elsewhere_is_said_first() -> None:
    note = "the whole network runs on onnxruntime"
    page = render_profile(
        profile(backend="onnxruntime", notes=[note], candidates={"rules": 2.0, "onnxruntime": 1.0})
    )
    assert page.index(note) < page.index("<table")
    assert "onnxruntime 1 ms, rules 2 ms" in page


def test_the_page_of_a_benchmark_names_the_fastest_and_who_loses_where() -> None:
    page = render_bench("net", rows(), [explanation()]).replace("\u00a0", " ")
    assert "With 1 thread engine is the fastest: 0.400 ms" in page
    assert "onnxruntime takes 1.50×" in page
    assert "as far as can be told" not in page
    assert "engine loses 0.1 of 0.3 ms on 1 of 1 layers" in page
    assert page.count(CAUTION[1:60]) == 1
    (chart,) = data_of(page)
    assert [bar["name"] for bar in chart["datasets"]["rows"]] == ["engine", "onnxruntime"]
    assert "SIGSEGV" in page


def test_intervals_that_hold_one_are_no_win() -> None:
    tied = rows()
    tied[0].figures["to_fastest"] = Figure(1.01, "ratio", Source.MEASURED, 0.98, 1.04)
    assert "as far as can be told" in render_bench("net", tied)
    assert "nothing ran" in render_bench("net", [BenchRow("tvm", 1, Outcome.CRASH, "died")])


@pytest.mark.parametrize("kind", ["profile", "bench"])
def test_names_from_files_stay_text(kind: str) -> None:
    if kind == "profile":
        page = render_profile(profile(name=HOSTILE))
    else:
        page = render_bench(HOSTILE, rows(HOSTILE), [explanation(HOSTILE)])
    assert "<img src=x" not in page
    assert page.count("<script") == 3
    assert "default-src 'none'" in page


def test_roofs_meet_their_peak_and_end_there() -> None:
    lines = roof_lines(ROOF, ["fp32"], 0.1, 100.0)
    slopes, tops = [e for e in lines if e["label"]], [e for e in lines if "top" in e]
    assert [e["label"].split()[0] for e in slopes] == ["L1", "L2", "L3", "DRAM"]
    assert all(
        math.isclose(e["y2"], 100.0) and math.isclose(e["y2"] / e["x2"], e["y"] / e["x"]) for e in slopes
    )
    assert tops == [{"x": 0.5, "y": 100.0, "x2": 100.0, "y2": 100.0, "label": "", "top": "fp32 100 GFLOP/s"}]


def test_colours_go_to_the_weightiest_and_the_rest_share_one() -> None:
    names = [f"k{i}" for i in range(12)]
    found = series_of(names, list(range(12)))
    assert len(set(found.values())) == 8
    assert found["k11"] == "var(--s5)"
    assert found["k0"] == found["k1"] == "var(--s0)"


def test_labels_that_would_overlap_are_left_out() -> None:
    points = [
        {"x": 1.0, "y": 1.0, "text": "a"},
        {"x": 1.1, "y": 1.05, "text": "b"},
        {"x": 100.0, "y": 1.0, "text": "c"},
    ]
    spread_labels(points, 6, 0.45, 0.16)
    assert [p["text"] for p in points] == ["a", "", "c"]
    assert bounds([]) == (1 / 1.6, 1.6)


def test_every_chart_names_its_data() -> None:
    for spec in specifications().values():
        assert all("name" in layer.get("data", spec.get("data")) for layer in spec["layer"])


# --- in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


def opened(browser: Any, path: Path, width: int = 1280) -> tuple[Any, list[str]]:
    problems: list[str] = []
    page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
    page.set_default_timeout(20_000)
    page.on("console", lambda m: problems.append(f"console {m.type}: {m.text}"))
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or problems.append(r.url))
    page.goto(path.as_uri())
    page.locator("html[data-ready]").wait_for(state="attached")
    return page, problems


@pytest.mark.parametrize("width", [1280, 400])
def test_the_charts_of_a_profile_are_drawn_and_tell(browser: Any, tmp_path: Path, width: int) -> None:
    write_profile_page(profile(name=HOSTILE), tmp_path / "p.html")
    page, problems = opened(browser, tmp_path / "p.html", width)
    assert page.locator("#roofline-chart .mark-symbol path").count() == 10
    assert page.locator("#times-chart .mark-rect path").count() >= 12
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    bar = page.locator("#times-chart .mark-rect.role-mark path").nth(5)
    bar.scroll_into_view_if_needed()
    box = bar.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 3)
    page.mouse.move(box["x"] + 3, box["y"] + 4)
    assert "kernel" in page.locator("#tip").inner_text()
    page.mouse.click(box["x"] + 3, box["y"] + 4)
    assert page.locator("tr.picked").get_attribute("id") == "row-5"
    assert page.evaluate("window.hacked") is None
    assert problems == []


def test_the_bars_of_a_benchmark_are_drawn(browser: Any, tmp_path: Path) -> None:
    write_bench_page(HOSTILE, rows(HOSTILE), [explanation(HOSTILE)], tmp_path / "b.html")
    page, problems = opened(browser, tmp_path / "b.html")
    assert page.locator("#ratios-0 .mark-rect.role-mark path").count() == 2
    assert page.evaluate("window.hacked") is None
    assert problems == []
