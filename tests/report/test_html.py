from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import fake_study
import pytest

from dlas.core.errors import DlasError
from dlas.core.figure import Figure, Outcome, Record, Source
from dlas.explore.result import Point, StudyResult
from dlas.report import charts
from dlas.report.data import embed_json, page_data
from dlas.report.html import render, write_report
from dlas.report.labels import figure_words, value_words
from dlas.report.summary import answers, reasons, volume_words

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=alert(1)>\"'&\u2028<!--"


class Page(HTMLParser):
    """Elements of a page and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def study() -> StudyResult:
    return fake_study.study()


@pytest.fixture(scope="module")
def page(study: StudyResult) -> str:
    return render(study)


def test_the_page_is_small_and_holds_the_chart_library_once(study: StudyResult, tmp_path: Path) -> None:
    write_report(study, tmp_path / "report.html")
    written = (tmp_path / "report.html").read_bytes()
    assert len(written) < 1_500_000
    assert written.count(b"window.vegaEmbed=") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_ten_thousand_points_fit_in_eight_megabytes(tmp_path: Path) -> None:
    result = fake_study.large()
    write_report(result, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 8_000_000
    assert Page((tmp_path / "report.html").read_text()).data["count"] == 10_000


def test_nothing_is_fetched_and_only_own_scripts_may_run(page: str) -> None:
    tags = Page(page).tags
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert re.findall(r"script-src ([^;]*);", policy)[0].count("'sha256-") == 2
    assert all(not re.match(r"https?:|//", a.get(k) or "") for _, a in tags for k in ("src", "href"))
    assert all(not k.startswith("on") for _, a in tags for k in a)


def test_every_point_and_figure_is_in_the_data(study: StudyResult, page: str) -> None:
    data = Page(page).data
    assert data["count"] == len(study.points) == 71
    columns = {figure["name"]: figure for figure in data["figures"]}
    assert "cache_misses" in columns  # known to nobody, shown all the same
    assert columns["cache_misses"]["column"] is True
    for number, point in enumerate(study.points):
        for name, figure in point.record.figures.items():
            assert columns[name]["v"][number] == pytest.approx(figure.value, rel=1e-5)
            assert columns[name]["s"][number] == str(figure.source)[0]
        assert data["texts"][data["reasons"][number]] == point.record.reason
        chosen = {a["name"]: a["values"][a["codes"][number]] for a in data["axes"]}
        assert chosen == point.choices
    assert [study.points[i].key for i in data["pareto"]] == list(study.pareto)
    assert study.points[data["baseline"]].baseline


def test_hostile_names_stay_text_everywhere() -> None:
    result = fake_study.study(name=HOSTILE, model=HOSTILE)
    bad = Point(
        HOSTILE,
        {HOSTILE: HOSTILE, "compress": HOSTILE, "backend": HOSTILE},
        Record(
            Outcome.CRASH,
            HOSTILE,
            figures={HOSTILE: Figure(1.0, HOSTILE, Source.PREDICTED, note=HOSTILE)},
            facts={"notes": [HOSTILE], "layers": [{"name": HOSTILE, "op": HOSTILE, "milliseconds": 1.0}]},
            stderr_tail=HOSTILE,
        ),
    )
    result = dataclasses.replace(
        result,
        points=(*result.points, bad),
        changes={HOSTILE: [{"layer": HOSTILE, "op": HOSTILE, "before": HOSTILE, "after": HOSTILE}]},
        facts={HOSTILE: HOSTILE, "model": HOSTILE, "notes": [HOSTILE]},
        environment={HOSTILE: {HOSTILE: [HOSTILE]}},
        command=HOSTILE,
        stack=HOSTILE,
    )
    text = render(result)
    parsed = Page(text)
    assert len(parsed.scripts) == 3
    assert not [a for t, a in parsed.tags if t == "img" or "onerror" in a]
    assert HOSTILE in parsed.data["texts"]
    assert "\u2028" not in parsed.scripts[0]


def test_a_json_block_cannot_be_left_and_holds_no_undefined_numbers() -> None:
    text = embed_json({"a": "</script><!--\u2028", "b": [math.inf, math.nan, 1.5]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028", "b": [None, None, 1.5]}


def test_half_a_surrogate_pair_in_a_name_is_written(tmp_path: Path) -> None:
    write_report(fake_study.study(model="net\udcff"), tmp_path / "report.html")
    assert "net?" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize("factory", [fake_study.one_point, fake_study.all_failed, fake_study.empty])
def test_studies_with_nothing_to_compare_are_written(factory, tmp_path: Path) -> None:
    result = factory()
    write_report(result, tmp_path / "report.html")
    assert Page((tmp_path / "report.html").read_text()).data["count"] == len(result.points)


def test_a_folder_that_is_not_there_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DlasError, match="does not exist"):
        write_report(fake_study.empty(), tmp_path / "missing" / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_the_answers_name_the_best_choices_with_runner_up(study: StudyResult) -> None:
    fastest, smallest, baseline = answers(study)
    base = next(p for p in study.points if p.baseline)
    good = [
        p
        for p in study.points
        if p.record.outcome is Outcome.OK
        and p.record.figures["top1"].value >= base.record.figures["top1"].value - 0.01
    ]
    ranked = sorted(good, key=lambda p: p.record.figures["latency_ms"].value)
    assert study.points[fastest.index] is ranked[0]
    assert ranked[1].label in fastest.runner_up
    assert figure_words(ranked[0].record.figures["latency_ms"]) in fastest.sentence
    assert "−0.53 points" in fastest.sentence
    least = min(p.record.figures["model_bytes"].value for p in good)
    assert study.points[smallest.index].record.figures["model_bytes"].value == least
    assert baseline.index == study.points.index(base)


def test_nothing_is_recommended_when_nothing_works() -> None:
    fastest, *_, baseline = answers(fake_study.all_failed())
    assert fastest.index == -1
    assert "nothing can be recommended" in fastest.sentence
    assert "SIGSEGV" in baseline.sentence


def test_overlapping_intervals_are_called_so() -> None:
    def point(name: str, low: float, high: float, baseline: bool = False) -> Point:
        latency = Figure((low + high) / 2, "ms", Source.MEASURED, low, high)
        choices = {"compress": name, "backend": "torch", "threads": "1"}
        return Point(name, choices, Record(Outcome.OK, figures={"latency_ms": latency}), baseline)

    close = fake_study.finish("x", [point("none", 2, 3, True), point("a", 1, 1.2), point("b", 1.1, 1.3)])
    apart = fake_study.finish("x", [point("none", 2, 3, True), point("a", 1, 1.2), point("b", 1.25, 1.3)])
    assert "not told apart" in answers(close)[0].runner_up
    assert "do not overlap" in answers(apart)[0].runner_up


def test_reasons_are_grouped_and_every_point_is_in_one_group(study: StudyResult) -> None:
    groups, left_out = reasons(study)
    assert left_out == 0
    assert sorted(i for g in groups for i in g.indices) == list(range(len(study.points)))
    assert groups[0].reason
    assert groups[-1].reason == ""
    _, rare = reasons(study, most=2)
    assert rare == len(groups) - 2


def test_layer_times_and_error_output_keep_within_their_budget(monkeypatch, study: StudyResult) -> None:
    from dlas.report import data

    monkeypatch.setattr(data, "LAYER_TIMES", 200)
    monkeypatch.setattr(data, "TAIL_CHARACTERS", 300)
    found = page_data(study)
    kept = {study.points[i].key for i in found["layers"]["times"]}
    assert len(kept) == 200 // len(fake_study.LAYERS)
    assert set(study.pareto) <= kept
    assert found["layers"]["left_out"] + len(kept) == sum("layers" in p.record.facts for p in study.points)
    assert max(len(found["texts"][t]) for t in found["tails"].values()) == 300
    monkeypatch.setattr(data, "CHANGED_LAYERS", 2 * len(fake_study.LAYERS))
    changes, left_out = data.changes_of(study)
    assert "int8" in changes  # of the Pareto set
    assert len(changes) == 2
    assert left_out == len(fake_study.VARIANTS) - 1 - 2


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.8094, "fraction", "80.94 %"),
        (0.41234, "ms", "0.412 ms"),
        (12.345, "ms", "12.3 ms"),
        (1234.5, "ms", "1234 ms"),
        (1_094_000, "bytes", "1.04 MiB"),
        (17, "bytes", "17 B"),
        (3.2, "ratio", "3.20×"),
        (40_813_184, "count", "40.8 M"),
        (-3.5, "dB", "-3.50 dB"),
        (0, "ms", "0 ms"),
    ],
)
def test_values_in_words(value: float, unit: str, words: str) -> None:
    assert value_words(value, unit).replace("\u00a0", " ") == words


def test_an_interval_is_written_in_the_unit_of_its_value() -> None:
    figure = Figure(0.8094, "fraction", Source.MEASURED, 0.8, 0.82)
    assert figure_words(figure).replace("\u00a0", " ") == "80.94 % [80.00, 82.00]"
    figure = Figure(0.4, "ms", Source.MEASURED, 0.3, math.inf)
    assert figure_words(figure).replace("\u00a0", " ") == "0.400 ms"


def test_the_hypervolume_is_told_in_the_figures_own_directions(study: StudyResult) -> None:
    words = volume_words(study).replace("\u00a0", " ")
    assert re.search(r"corner at Latency [\d.]+ ms, Top-1 \d+\.\d+ %", words)
    assert volume_words(fake_study.empty()) == ""


def test_the_chart_library_can_stand_in_a_script_element() -> None:
    library = charts.library()
    assert "</script" not in library
    assert "<!--" not in library
    assert "\r" not in library


def test_points_with_less_work_and_more_time_are_listed() -> None:
    study = fake_study.study()
    assert 'id="setbacks"' not in render(study)
    slow = next(
        p for p in study.points
        if p.choices == {"compress": "magnitude:sparsity=0.5", "backend": "tvm", "threads": "1", "target": "host"}
    )  # fmt: skip
    work = Figure(2e7, "count", Source.ESTIMATED)
    record = dataclasses.replace(slow.record, figures={**slow.record.figures, "nonzero_macs": work})
    points = tuple(dataclasses.replace(p, record=record) if p is slow else p for p in study.points)
    text = render(dataclasses.replace(study, points=points))
    assert "1 point with fewer multiply-accumulates" in text
    assert (
        f'data-select="{points.index(next(p for p in points if p.key == slow.key))}"'
        in text.partition('id="setbacks"')[2].partition("</details>")[0]
    )
