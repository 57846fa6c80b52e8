"""The ground-truth table: real conversions, healthy and faulty, come out as they were measured before dlas existed.

Rows whose tools share dlas's environment run on a few images in every test run; the others are slow, and skipped with
the reason where their side environment is not built or TensorFlow is not installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dlas.core.environments import environments_root
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))  # workers find the helpers of the table there, too

from _ground_truth import ROWS, Bench, Row, Run, images, left_out

ENVIRONMENTS = environments_root()  # before each test gets a cache of its own
FEW = 100
# One of each tool and of each source; exports take most of the time.
QUICK = {"r20-legacy-tvm-dlas", "r20-dynamo-openvino-f32", "kws-tvm"}
# A hundred images say little about small percentages.
COUNTED = {"r8-int8", "r8-int8-xnnpack-builtin", "r8-int8-xnnpack-reference", "r8-int8-builtin-reference"}


@pytest.fixture(scope="module")
def few(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(data_folder, tmp_path_factory.mktemp("few"), FEW)


@pytest.fixture(scope="module")
def whole(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(data_folder, tmp_path_factory.mktemp("whole"))


@pytest.fixture(autouse=True)
def _side_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLAS_ENVS", str(ENVIRONMENTS))


def check(bench: Bench, row: Row) -> None:
    found = bench.judge(row)
    if found.holds is None:
        pytest.skip(found.why)
    assert found.holds, (row.name, found.why, found.verdict, found.reason, found.comparison)


@pytest.mark.parametrize("row", [r for r in ROWS if r.name in QUICK], ids=lambda r: r.name)
def test_quick_rows(row: Row, few: Bench) -> None:
    assert not row.environments
    check(few, row)


@pytest.mark.parametrize("row", [r for r in ROWS if r.name in COUNTED], ids=lambda r: r.name)
def test_rows_about_int8_kernels(row: Row, whole: Bench) -> None:
    check(whole, row)


@pytest.mark.slow
@pytest.mark.parametrize("row", [r for r in ROWS if r.name not in QUICK | COUNTED], ids=lambda r: r.name)
def test_all_other_rows(row: Row, whole: Bench) -> None:
    check(whole, row)


def test_the_images_are_those_of_the_published_sets_that_are_here(data_folder: Path) -> None:
    x, labels = images(data_folder, "A")
    assert 700 < len(x) < 1000
    assert x.shape[1:] == (32, 32, 3)
    assert (x.min(), x.max()) == (0, 255)
    evens, _ = images(data_folder, "B")
    assert 350 < len(evens) < 500
    some, of_class = images(data_folder, "A", FEW)
    assert len(some) == FEW
    assert set(of_class) == set(labels) == set(range(10))


def test_images_that_are_not_here_widen_the_tolerance() -> None:
    half = next(r for r in ROWS if r.name == "r20-onnx2tf-1.29")  # 46 % of B
    assert left_out(half, 500) == 0
    assert left_out(half, 400) == pytest.approx(2.23, abs=0.01)
    assert left_out(half, 100) == pytest.approx(8.92, abs=0.01)
    assert left_out(next(r for r in ROWS if r.name == "r20-executorch"), 100) == 0
    assert left_out(next(r for r in ROWS if r.name == "ad01-shipped"), 100) == 0


def test_every_row_has_its_files(data_folder: Path) -> None:
    assert {r.name for r in ROWS} >= QUICK | COUNTED
    for row in ROWS:
        for run in (row.reference, row.run):
            assert isinstance(run, Run)
            assert (data_folder / "models" / run.file).is_file()
