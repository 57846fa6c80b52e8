"""A CIFAR ResNet-20 on many paths, on real images: what the ground-truth table of conversions says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

import dlas
from dlas.runtime.backend import backends


@pytest.mark.slow
@pytest.mark.parametrize(
    "paths",
    [
        "ort:O0,ort:all",
        "ort:O1..O3,openvino:f32",
        "litert:xnnpack,litert:ref,tvm:O0,tvm:O3,iree:O0,iree:O3,executorch",
    ],
)
def test_float_paths_of_resnet20_give_the_same_labels(data_folder: Path, paths: str) -> None:
    source = data_folder / "models" / "cifar-resnet" / "resnet20.th"
    report = dlas.compare(source, source, data=data_folder / "cifar10-test.parquet", rows=60, paths=[paths])
    ran = 0
    for row in report.paths:
        if row.word == "unsupported" and "pip install" in row.reason:
            continue
        assert row.word == "equal", row
        assert row.comparison is not None
        assert row.comparison.max_abs < 1e-4
        assert row.kendall_tau == pytest.approx(1, abs=0.01)
        ran += 1
    assert ran
    assert report.matrix is not None
    assert not report.matrix.counts.any()


@pytest.mark.slow
def test_bfloat16_moves_scores_and_is_no_error(data_folder: Path) -> None:
    if backends.get("openvino").missing():
        pytest.skip("openvino " + backends.get("openvino").missing())
    source = data_folder / "models" / "cifar-resnet" / "resnet20.th"
    report = dlas.compare(
        source, source, data=data_folder / "cifar10-test.parquet", rows=60, paths=["openvino:bf16"]
    )
    (row,) = report.paths
    if row.notes:
        assert "not available here" in row.notes[0]
        return
    assert row.word in ("score-only", "label-diff")
    assert row.comparison is not None
    assert 0.01 < row.comparison.max_abs < 2
