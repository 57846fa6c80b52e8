"""Names of layers, classes, axes and figures that try to be markup, attributes, styles or Vega expressions."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "report"))

import fake_study
import test_browser as browsing

pytestmark = browsing.pytestmark

NAMES = {
    "script": "</script><script>window.hacked=1</script>",
    "attribute": '" onmouseover="window.hacked=1" x="',
    "style": "</style><style>*{background:url(http://localhost/x)}</style>",
    "comment": "--><img src=http://localhost/x onerror=window.hacked=1><!--",
    "template": "{{ 7*7 }}{% include '/etc/passwd' %}${window.hacked=1}",
    "vega-field": "a.b[0]['constructor']['constructor']('window.hacked=1')()",
    "vega-signal": '{"signal": "window.hacked=1"}',
    "vega-datum": "datum.x || warn(window.hacked=1)",
    "link": "javascript:window.hacked=1",
    "prototype": "__proto__",
    "bidi": "a\u202eb\u2028c\x00d",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing.sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browsing.CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


@pytest.mark.parametrize("kind", list(NAMES))
def test_names_stay_names(browser: Any, tmp_path: Path, kind: str) -> None:
    name = NAMES[kind]
    base = fake_study.study(name=name, model=name)

    def renamed(layer: Any) -> Any:
        return {**layer, "name": name, "layer": name} if isinstance(layer, dict) else layer

    points = []
    for point in base.points:
        facts = dict(point.record.facts)
        if isinstance(facts.get("layers"), list):
            facts["layers"] = [renamed(layer) for layer in facts["layers"]]
        facts["notes"] = [name]
        figures = dict(point.record.figures)
        if figures:
            figures[name] = next(iter(figures.values()))
        record = dataclasses.replace(point.record, facts=facts, figures=figures)
        choices = {**point.choices, "compress": point.choices["compress"] + name, name: name}
        points.append(dataclasses.replace(point, choices=choices, record=record))
    changes = {
        variant + name: [{**row, "layer": name, "op": name} for row in rows]
        for variant, rows in base.changes.items()
    }
    result = dataclasses.replace(
        base, points=tuple(points), changes=changes, facts={**base.facts, name: name, "dataset": name},
        environment={**base.environment, name: name}, command=f"dlas run '{name}'", stack=name,
    )  # fmt: skip
    opened = browsing.Opened(browser, tmp_path, result)
    page = opened.page
    page.locator("#front button").first.click()
    page.locator("#table .toggle").first.click()
    page.locator("#columns summary").click()
    page.mouse.move(400, 400)
    assert page.evaluate("window.hacked === undefined && ({}).polluted === undefined")
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 3  # data, Vega, the page's own
    assert "49" not in page.title()
    opened.context.close()
    assert opened.problems == []
