"""The page of a comparison, as text and in a real browser with every request refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlas.core.figure import Figure, Outcome, Source
from dlas.core.statistics import proportion
from dlas.data.dataset import Dataset
from dlas.report.compare import render_comparison, write_comparison
from dlas.report.compare_images import thumbnail
from dlas.verify.differential import Comparison, NoiseFloor, Verdict
from dlas.verify.differential.matrix import LabelMatrix
from dlas.verify.differential.report import Answers, CompareReport, PathResult
from dlas.verify.differential.times import PathTime

HOSTILE = "</style><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'&\u2028"
ROWS = 20
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def report(name: str = "net.onnx") -> CompareReport:
    """Three paths: one equal and slow, one with five other labels, one that died."""
    labels = np.arange(ROWS) % 3
    other = np.where(np.arange(ROWS) < 5, 2 - labels, labels)
    flipped = np.flatnonzero(other != labels)
    measured = {"source": Source.MEASURED, "low": 0.9, "high": 1.2, "n": 30}
    slow = PathTime(
        Figure(1.0, "ms", **measured),
        Figure(2.0, "ratio", **measured),
        Figure(1.5, "ratio", **measured),
        "ort:O0",
    )
    equal = Comparison(Verdict.EQUAL, "", ROWS, proportion(0, ROWS), sqnr_db=120.0)
    wrong = Comparison(
        Verdict.LABEL_DIFF, f"{len(flipped)} of {ROWS} labels differ", ROWS, proportion(len(flipped), ROWS),
        max_abs=3.0, flips=tuple(map(int, flipped)), unexplained=len(flipped),
    )  # fmt: skip
    rows = (
        PathResult(name, "ort:all", Outcome.OK, "", equal, kendall_tau=1.0, rank_biased_overlap=1.0, mcnemar_p=1.0,
                   time=slow, labels=labels, distances=np.zeros(ROWS)),
        PathResult(name, "tvm:O3", Outcome.WRONG, wrong.reason, wrong, clipped=0.25, labels=other,
                   distances=np.full(ROWS, 3.0)),
        PathResult(name, "iree:O0", Outcome.CRASH, "killed by SIGSEGV (segmentation fault)"),
    )  # fmt: skip
    found = {"source": labels, "ort:all": labels, "tvm:O3": other}
    return CompareReport(
        name, ROWS, NoiseFloor(0, ROWS, 1e-5, 1e-7, "all against none"), proportion(15, ROWS), rows,
        matrix=LabelMatrix.of(found), base="ort:all", versions={"onnxruntime": "1.31.1"},
        answers=Answers(labels, np.linspace(1, 2, ROWS), labels),
    )  # fmt: skip


def images() -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 3), np.uint8)
    return Dataset("pictures", pixels, np.arange(ROWS) % 3, classes=("cat", HOSTILE, "dog"))


def test_the_page_answers_first_and_shows_every_row() -> None:
    page = render_comparison(report(), images())
    assert "1 of 3 may be relied on. 2 do not answer" in page
    for word in ("time-only", "label-diff", "crash", "SIGSEGV", "1.50 times the time of ort:O0", "2.00×"):
        assert word in page.replace("1.5 times", "1.50 times"), word
    flips = report().flips
    assert len(re.findall(r'<img src="data:image/png;base64,', page)) == len(flips) > 0
    assert "25 %" in page  # clipped


def test_the_heat_map_is_the_matrix() -> None:
    found = report().matrix
    assert found is not None
    page = render_comparison(report())
    cells = re.findall(r'<td style="--v:([\d.]+)"', page)
    assert [float(c) for c in cells] == pytest.approx(np.sqrt(found.counts / ROWS).ravel(), abs=1e-3)
    count = int(found.counts[0, 2])
    assert f"source and tvm:O3: {count} of {ROWS} labels differ" in page


def test_names_are_text_and_nothing_can_be_fetched() -> None:
    page = render_comparison(report(HOSTILE), images())
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page)


def test_without_images_or_labels_the_page_is_shorter() -> None:
    assert "<img" not in render_comparison(report())
    bare = CompareReport("a", 3, NoiseFloor(), None, (PathResult("b", "ort", Outcome.UNSUPPORTED, "no"),))
    page = render_comparison(bare)
    assert 'id="matrix"' not in page
    assert 'id="flips"' not in page
    assert "1 cannot run such a network" in page


@pytest.mark.parametrize(
    ("samples", "shown"),
    [
        (np.zeros((2, 8, 8, 1), np.uint8), True),
        (np.zeros((2, 3, 8, 8), np.float32), True),
        (np.full((2, 8, 8), np.nan, np.float32), True),
        (np.zeros((2, 40), np.float32), False),
        (np.zeros((2, 1, 3, 40), np.float32), False),
        (np.zeros((2, 8, 8, 7), np.float32), False),
        ([b"no image", b""], False),
    ],
)
def test_only_pictures_become_thumbnails(samples: Any, shown: bool) -> None:
    assert bool(thumbnail(Dataset("x", samples), 0)) is shown


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "light"), (1280, "dark")])
def test_a_browser_shows_it_whole(tmp_path: Path, width: int, scheme: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    path = tmp_path / "page.html"
    write_comparison(report(HOSTILE), path, images())
    problems: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        # The policy of the page forbids the checker's script too; what it forbids is tested as text.
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
        )
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.hacked") is None
        assert page.locator("#flips img").first.evaluate("i => i.naturalWidth") > 0
        found = axe.Axe().run(page).response["violations"]
        browser.close()
    assert [
        (v["id"], v["nodes"][0]["html"][:150]) for v in found if v["impact"] in ("serious", "critical")
    ] == []
    assert problems == []
