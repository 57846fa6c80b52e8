"""Passes of the optimisers on ResNet-20 and real images: what was found by hand once must be found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlas.core.options import Choice
from dlas.data.dataset import Dataset
from dlas.data.find import load_dataset
from dlas.graph.format import load_model
from dlas.graph.model import Model
from dlas.verify.passes import PassOutcome, PassReport, blame, pass_tools


@pytest.fixture(scope="module")
def resnet20(data_folder: Path) -> Model:
    return load_model(data_folder / "models" / "cifar-resnet" / "resnet20.th")


@pytest.fixture(scope="module")
def images(data_folder: Path) -> Dataset:
    return load_dataset(data_folder / "cifar10-test.parquet")


def report_of(name: str, model: Model, rows: Dataset, *, each: bool = False) -> PassReport:
    choice = Choice.parse(name)
    kind = pass_tools.get(choice.name)
    if kind.missing():
        pytest.skip(f"{choice.name} {kind.missing()}")
    return blame(model, kind(**choice.as_dict()), data=rows, rows=50, each=each)


def test_44_of_48_passes_of_onnxoptimizer_are_fine_alone(resnet20: Model, images: Dataset) -> None:
    report = report_of("onnxoptimizer", resnet20, images, each=True)
    if report.version != "0.4.2":
        pytest.skip(f"the known answers are those of onnxoptimizer 0.4.2, this is {report.version}")
    assert report.right
    fine = [p for p in report.passes if p.outcome is PassOutcome.FINE]
    assert (len(fine), len(report.passes)) == (44, 48)
    assert all(p.comparison is not None and p.comparison.max_abs <= 1.5e-5 for p in fine)
    rest = {p.name: p for p in report.passes if p.outcome is not PassOutcome.FINE}
    assert {name: p.outcome for name, p in rest.items()} == {
        "lift_lexical_references": PassOutcome.CRASH,
        "split_init": PassOutcome.INVALID,
        "split_predict": PassOutcome.INVALID,
        "rename_input_output": PassOutcome.RENAMES_IO,
    }
    assert "Unresolved value references" in rest["lift_lexical_references"].reason
    assert "more inputs" in rest["split_predict"].reason


@pytest.mark.parametrize("name", ["onnxslim", "onnxsim", "ort"])
def test_the_bundles_are_right(name: str, resnet20: Model, images: Dataset) -> None:
    report = report_of(name, resnet20, images)
    assert [b.outcome for b in report.bundles] == [PassOutcome.FINE] * len(report.bundles)
    assert all(b.comparison is not None and b.comparison.max_abs <= 3e-5 for b in report.bundles)
    assert report.floor.flips == 0


@pytest.mark.slow
def test_single_transformers_of_onnx_runtime_are_right(resnet20: Model, images: Dataset) -> None:
    report = report_of("ort", resnet20, images, each=True)
    assert not [p for p in report.passes if p.outcome is not PassOutcome.FINE]
    changing = {p.name for p in report.passes if p.changed}
    assert "NchwcTransformer" in changing  # ConvActivationFusion waits for the batch norms to be folded
