"""The report in a real browser, from a file, with every request refused."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_study
import pytest

from dlas.explore.result import StudyResult
from dlas.report.html import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine")

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'&\u2028"


class Opened:
    """A page with what went wrong while it was open."""

    def __init__(self, browser: Any, folder: Path, result: StudyResult, **options: Any) -> None:
        self.result = result
        path = folder / "report.html"
        write_report(result, path)
        self.problems: list[str] = []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.route("**/*", self._route)
        self.page.on("console", lambda m: self.problems.append(f"console {m.type}: {m.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.goto(path.as_uri())
        self.page.locator("html[data-ready]").wait_for(state="attached")

    def _route(self, route: Any) -> None:
        if route.request.url.startswith(("file://", "data:", "blob:")):
            route.continue_()
        else:
            self.problems.append(f"request: {route.request.url}")
            route.abort()

    def row(self, number: int) -> Any:
        return self.page.locator(f'#table tr[data-row="{number}"]')

    def shown(self) -> list[int]:
        rows = self.page.locator("#table tr[data-row]")
        return [int(n) for n in rows.evaluate_all("rows => rows.map(r => r.dataset.row)")]

    def sideways(self) -> int:
        """Pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    pages: list[Opened] = []

    def open_page(result: StudyResult | None = None, **options: Any) -> Opened:
        pages.append(Opened(browser, tmp_path, result or fake_study.study(), **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()
        assert page.problems == []


@pytest.mark.parametrize("factory", ["study", "one_point", "all_failed", "empty"])
def test_it_opens_offline_without_complaints(opened: Any, factory: str) -> None:
    result = getattr(fake_study, factory)()
    page = opened(result).page
    assert page.locator("#table tr[data-row]").count() == len(result.points)
    assert len(page.screenshot(full_page=True)) > 10_000


def test_the_chart_draws_every_point_near_the_baseline(opened: Any) -> None:
    page = opened().page
    symbols = page.locator("#pareto-chart .mark-symbol.role-mark path")
    caption = page.locator("#pareto-caption").inner_text()
    near = int(caption.split()[0])
    assert symbols.count() >= near
    page.locator("#near").uncheck()
    page.get_by_text("59 points with both figures").wait_for()
    page.locator("#wrong-too").check()
    page.get_by_text("63 points with both figures").wait_for()


def test_the_list_of_the_front_is_the_pareto_set(opened: Any) -> None:
    result = fake_study.study()
    names = opened(result).page.locator("#front button").all_inner_texts()
    front = [p for p in result.points if p.key in result.pareto]
    front.sort(key=lambda p: p.record.figures["latency_ms"].value)
    assert names == [p.label for p in front]


def test_a_click_on_a_point_selects_its_row_and_shows_its_command(opened: Any) -> None:
    opened_page = opened()
    page = opened_page.page
    data = "JSON.parse(document.getElementById('data').textContent)"
    best = page.evaluate(f"{data}.pareto")
    symbol = page.locator("#pareto-chart .mark-symbol.role-mark").first.locator("path").first
    symbol.scroll_into_view_if_needed()
    box = symbol.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("#tip:not([hidden])").wait_for()
    tip = page.locator("#tip").inner_text()
    assert all(word in tip for word in ("Compression", "Back end", "Latency", "measured", "n 240"))
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    picked = page.locator("#table tr[aria-current=true]")
    assert picked.count() == 1
    point = opened_page.result.points[int(picked.get_attribute("data-row"))]
    assert page.locator("#picked b").first.inner_text() == point.label
    command = page.locator("#picked code").inner_text()
    assert command.startswith("dlas run examples/cifar10-resnet20.toml --set data.path=rows.parquet")
    assert f"""--set 'compress.pipeline=["{point.choices["compress"]}"]'""" in command
    assert f"--set 'runtime.threads=[{point.choices['threads']}]'" in command
    assert best


def test_the_command_of_a_point_is_read_as_its_choices(opened: Any) -> None:
    import shlex

    from dlas.explore.spec import embedded_spec

    page = opened().page
    page.locator("#front button").first.click()
    words = shlex.split(page.locator("#picked code").inner_text())
    settings = dict(w.split("=", 1) for w, flag in zip(words[1:], words, strict=False) if flag == "--set")
    settings.pop("data.path")
    space = embedded_spec(settings, {}).space
    assert [str(p) for p in space.compress][-1] == "channel:finetune_epochs=1,ratio=0.25 + int8"
    assert ([str(b) for b in space.backends], space.threads) == (["onnxruntime"], (2,))


def test_other_figures_can_stand_on_the_axes(opened: Any) -> None:
    page = opened().page
    page.locator("#x-figure").select_option("model_bytes")
    page.locator("#pareto-chart").get_by_text("Model size (MiB)").wait_for()
    page.locator("#y-figure").select_option("cache_misses")
    page.locator("#pareto-chart").get_by_text("cache misses (k)").wait_for()


def test_series_can_be_hidden(opened: Any) -> None:
    opened_page = opened()
    page = opened_page.page
    right = [p for p in opened_page.result.points if str(p.record.outcome) == "ok"]
    left = sum(p.choices["backend"] != "tvm" for p in right)
    assert 0 < left < len(right)
    page.locator("#near").uncheck()
    button = page.locator("#shapes button", has_text="tvm")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    page.get_by_text(f"{left} points with both figures").wait_for()


def test_heads_sort_both_ways_and_unknown_values_come_last(opened: Any) -> None:
    opened_page = opened()
    page, points = opened_page.page, opened_page.result.points

    def latencies() -> list[float | None]:
        figures = [points[i].record.figures.get("latency_ms") for i in opened_page.shown()]
        return [f.value if f else None for f in figures]

    known = sorted(p.record.figures["latency_ms"].value for p in points if "latency_ms" in p.record.figures)
    unknown = [None] * (len(points) - len(known))
    assert latencies() == known + unknown  # by the first objective from the start
    head = page.locator('th:has(button[data-sort="latency_ms"])')
    assert head.get_attribute("aria-sort") == "ascending"
    page.locator('button[data-sort="latency_ms"]').click()
    assert latencies() == known[::-1] + unknown
    assert head.get_attribute("aria-sort") == "descending"
    page.locator('button[data-sort="threads"]').press("Enter")
    threads = [int(points[i].choices["threads"]) for i in opened_page.shown()]
    assert threads == sorted(threads)


def test_filters_narrow_the_table(opened: Any) -> None:
    opened_page = opened()
    page, points = opened_page.page, opened_page.result.points
    page.locator("#filter").fill("INT8 tvm")
    assert {points[i].choices["backend"] for i in opened_page.shown()} == {"tvm"}
    assert len(opened_page.shown()) == 6
    page.locator("#outcome").select_option("timeout")
    assert [str(points[i].record.outcome) for i in opened_page.shown()] == ["timeout", "timeout"]
    page.locator("#filter").fill("")
    page.locator("#outcome").select_option("")
    page.locator("#pareto-only").check()
    assert {points[i].key for i in opened_page.shown()} == set(opened_page.result.pareto)
    page.locator("#filter").fill("no such thing")
    page.get_by_text("No point fits the filter.").wait_for()


def test_a_failed_row_tells_why_with_its_last_words(opened: Any) -> None:
    opened_page = opened()
    result = opened_page.result
    number = next(i for i, p in enumerate(result.points) if str(p.record.outcome) == "crash")
    row = opened_page.row(number)
    assert "crash" in row.inner_text()
    assert result.points[number].record.reason in row.inner_text()
    row.locator(".toggle").press("Enter")
    details = opened_page.page.locator("tr.details")
    assert "Segmentation fault" in details.locator("pre.tail").inner_text()
    assert opened_page.row(number).locator(".toggle").get_attribute("aria-expanded") == "true"
    assert opened_page.page.evaluate("document.activeElement.className") == "toggle"


def test_layers_are_shown_for_the_chosen_variant_and_points(opened: Any) -> None:
    page = opened().page
    page.locator("#variant").select_option("float16")
    assert "16x16x3x3 float16" in page.locator("#change-table tbody").inner_text()
    assert page.locator("#change-table tbody tr").count() == len(fake_study.LAYERS)
    assert page.locator("#layer-times tbody tr").count() == 2 * len(fake_study.LAYERS)


def test_copying_puts_the_exact_command_on_the_clipboard(opened: Any) -> None:
    opened_page = opened(permissions=["clipboard-read", "clipboard-write"])
    page = opened_page.page
    page.locator("button[data-copy=command]").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == opened_page.result.command
    page.locator("button[data-copy=stack]").click()
    page.wait_for_timeout(100)
    assert page.evaluate("navigator.clipboard.readText()").strip() == opened_page.result.stack.strip()


def test_hostile_names_are_shown_and_not_run(opened: Any) -> None:
    base = fake_study.study(name=HOSTILE, model=HOSTILE)
    points = [
        dataclasses.replace(
            p,
            choices={**p.choices, "compress": p.choices["compress"] + HOSTILE, HOSTILE: HOSTILE},
            record=dataclasses.replace(p.record, reason=HOSTILE, stderr_tail=HOSTILE),
        )
        for p in base.points
    ]
    page = opened(dataclasses.replace(base, points=tuple(points), command=f"dlas run '{HOSTILE}")).page
    page.locator("#front button").first.click()
    page.locator("#table .toggle").first.click()
    assert HOSTILE in page.locator("pre.tail").first.text_content()
    assert page.evaluate("window.hacked === undefined")
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("factory", ["study", "one_point", "all_failed", "empty"])
def test_a_phone_never_scrolls_the_page_sideways(opened: Any, factory: str) -> None:
    opened_page = opened(getattr(fake_study, factory)(), viewport={"width": 390, "height": 844})
    if opened_page.result.points:
        opened_page.page.locator("#table .toggle").first.click()
        opened_page.page.locator("#columns summary").click()
    assert opened_page.sideways() <= 0


def test_charts_follow_the_colour_scheme(opened: Any) -> None:
    page = opened(color_scheme="dark").page

    def ink() -> str:
        label = page.locator("#pareto-chart .role-axis-title text").first
        return label.evaluate("e => getComputedStyle(e).fill")

    dark = ink()
    page.emulate_media(color_scheme="light")
    assert ink() != dark
    page.emulate_media(media="print", color_scheme="dark")
    assert ink() == "rgb(0, 0, 0)"


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_no_serious_fault_of_accessibility(opened: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = opened(color_scheme=scheme).page
    page.locator("#front button").first.click()
    page.locator("#table tr.failed .toggle").first.click()
    page.locator("#columns summary").click()
    found = axe.Axe().run(page).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], [n["html"][:120] for n in v["nodes"]][:4]) for v in serious] == []


def test_the_keyboard_reaches_every_part(opened: Any) -> None:
    page = opened().page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    reached: set[str] = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('section')?.id || ''"))
    assert {"pareto", "points"} <= reached


def test_ten_thousand_rows_are_shown_by_the_page(opened: Any) -> None:
    opened_page = opened(fake_study.large())
    page = opened_page.page
    assert len(opened_page.shown()) == 100
    for column in ("compress", "top1"):
        page.locator(f'button[data-sort="{column}"]').click()
        assert len(opened_page.shown()) == 100
    page.locator("#filter").fill("0.0123 tvm")
    assert 0 < len(opened_page.shown()) <= 100
    page.locator("#filter").fill("")
    page.locator("#next").click()
    assert page.locator("#page").inner_text() == "Page 2 of 100"
    page.locator("#front button").first.click()
    assert page.locator("#table tr[aria-current=true]").count() == 1
