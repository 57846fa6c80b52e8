"""Mutation testing of a trained ResNet-20 on real images: the known effects of known mutations."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tvm", reason="TVM is not installed")

from dlas.data.find import load_dataset
from dlas.data.splits import sample
from dlas.graph.guard import import_model
from dlas.verify.mutate import mutate
from dlas.verify.mutate.verdicts import Fate

pytestmark = pytest.mark.slow


def test_known_effects_on_resnet20(data_folder: Path) -> None:
    model = import_model(data_folder / "models/cifar-resnet/resnet20.th", "cifar-resnet:depth=20")
    images = load_dataset(data_folder / "cifar10-test.parquet")
    found = mutate(
        model,
        data=sample(images, 30, seed=0, balanced=True),
        operators="store-value,replace-condition:change=less-to-greater,replace-condition:change=less-to-less-equal,"
        "max-to-min,add-to-sub,extra-softmax",
        max_mutants=18,
        rows=30,
        paths="ort,tvm:O2",
    )
    assert found.baseline == {"ort | tvm:O2": 0}
    emptied = 0
    for result in found.mutants:
        mutation, fate = result.mutant.mutation, result.fates["tvm:O2"]
        change = dict(mutation.options).get("change")
        assert fate.fate is not Fate.CRASH, fate.reason
        if fate.fate is Fate.OUT_OF_BOUNDS:
            assert change in ("less-to-less-equal", "less-to-greater")
            continue
        assert fate.label_diff is not None
        if mutation.name in ("store-value", "extra-softmax"):  # controls, and scores without labels
            assert fate.label_diff.value == 0
            assert not fate.fate.noticed
        elif change == "less-to-greater":  # all of the image is taken for padding
            emptied += 1
            assert fate.label_diff.value > 0.5
        else:
            assert fate.label_diff.value > 0.5, str(result.mutant)
            assert fate.fate.noticed
    assert emptied
