"""The page of an attack, as text and in a real browser with every request refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from dlas.core.statistics import proportion
from dlas.report.attack import render_attack, write_attack
from dlas.verify.attack.report import BLACK, TRANSFER, WHITE, AttackReport, AttackResult, Example, ModelResult

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def report(name: str = "float.onnx") -> AttackReport:
    pixels = np.random.default_rng(0).random((8, 8, 3), np.float32)
    models = (
        ModelResult(
            name, "onnxruntime", 2048, proportion(90, 100),
            (
                AttackResult("fgsm", WHITE, proportion(30, 100)),
                AttackResult("square", BLACK, proportion(50, 100), queries=123.4),
            ),
            proportion(25, 100),
        ),
        ModelResult(
            "int8.tflite", "litert", 1024, proportion(88, 100),
            (
                AttackResult("fgsm", WHITE, None, "no gradient reaches the input"),
                AttackResult("square", BLACK, proportion(40, 100)),
                AttackResult("fgsm", TRANSFER, proportion(44, 100), queries=1),
            ),
            proportion(37, 100), ("gradient masking: " + name,), ("black box only",),
        ),
        ModelResult("lost.onnx", reason="it is no network"),
    )  # fmt: skip
    return AttackReport(
        "pictures", 100, 8 / 255, (0, 1), ("fgsm", "square"), name, models, {"dlas": "0"}, {}, "fgsm",
        (Example(3, name, pixels, pixels),),
    )  # fmt: skip


def test_the_page_answers_first_and_shows_every_network() -> None:
    page = render_attack(report())
    assert "int8.tflite keeps 37.0 % of the rows under every attack (88.0 % as they are)" in page
    assert "the most of 2 networks. 1 of 3 mask their gradients." in page
    for word in (
        "8/255",
        "transfer fgsm",
        "123 queries a row",
        "lost.onnx",
        "it is no network",
        "2.00\u00a0KiB",
    ):
        assert word in page, word
    widths = re.findall(r'class="bar" style="width:([\d.]+)%"', page)
    assert [float(w) for w in widths] == [90, 30, 50, 25, 88, 40, 44, 37]
    assert page.count('<img src="data:image/png;base64,') == 2


def test_names_are_text_and_nothing_can_be_fetched() -> None:
    page = render_attack(report(HOSTILE))
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page)


def test_without_figures_the_page_says_so() -> None:
    bare = AttackReport("a", 3, 0.1, (0, 1), ("fgsm",), "", (ModelResult("b", reason="no"),))
    page = render_attack(bare)
    assert "No attack could be made." in page
    assert 'id="pictures"' not in page


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_a_browser_shows_it_whole(tmp_path: Path, width: int, scheme: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    path = tmp_path / "page.html"
    write_attack(report(HOSTILE), path)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
        )
        page = context.new_page()
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.hacked") is None
        found = axe.Axe().run(page).response["violations"]
        browser.close()
    assert [
        (v["id"], v["nodes"][0]["html"][:150]) for v in found if v["impact"] in ("serious", "critical")
    ] == []
