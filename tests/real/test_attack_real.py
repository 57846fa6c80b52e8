"""Attacks on the public CIFAR networks, on images that come as JPEG (``cifar10-jpeg``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlas import api
from dlas.core.figure import Figure
from dlas.data.splits import sample
from dlas.graph.reference import predict
from dlas.verify.attack import Job, attack_networks
from dlas.verify.attack.attack import attack_for
from dlas.verify.attack.pixels import pixels_of
from dlas.verify.attack.report import TRANSFER, WHITE
from dlas.verify.attack.twin import twin_of
from dlas.verify.attack.victim import Victim
from dlas.verify.running import Subject


def share(figure: Figure | None) -> float:
    assert figure is not None
    return figure.value


def files(folder: Path) -> list[Subject]:
    places = (
        "cifar-resnet/resnet20.th",
        "mlperf-tiny/ic_resnet8_float.tflite",
        "mlperf-tiny/ic_resnet8_int8.tflite",
    )
    return [Subject.open(folder / "models" / place) for place in places]


@pytest.mark.slow
def test_a_few_images_bring_down_the_networks_of_both_frameworks(data_folder: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="the extra `tflite` is not installed")
    data = api.dataset(data_folder / "cifar10-test.parquet")
    assert data is not None
    found = attack_networks(files(data_folder), data, attacks="fgsm,pgd:steps=7,random_start=false", rows=12)
    assert [m.path for m in found.models] == ["torch", "litert", "litert"]
    for model in found.models:
        assert share(model.clean) >= 0.5
        white = [share(r.robust) for r in model.results if r.kind == WHITE]
        assert white[0] <= 0.25  # 6 % on 100 rows
        assert white[1] <= 0.1  # 0 %
        assert model.warnings == ()
    carried = [share(r.robust) for m in found.models[1:] for r in m.results if r.kind == TRANSFER]
    assert len(carried) == 4
    assert max(carried) < min(share(m.clean) for m in found.models)


def test_steps_are_those_of_foolbox_on_a_normalised_network(data_folder: Path) -> None:
    foolbox = pytest.importorskip("foolbox", reason="foolbox is a peer for tests only")
    import torch

    model = api.load(data_folder / "models" / "cifar-resnet" / "resnet20.th")
    data = api.dataset(data_folder / "cifar10-test.parquet")
    assert data is not None
    few = sample(data, 8)
    assert few.labels is not None
    pixels, samples = pixels_of(model, few)
    twin = twin_of(model, pixels)
    assert not isinstance(twin, str)
    victim = Victim("resnet20", pixels, lambda x: predict(model, x), twin)
    job = Job(samples, few.labels, 8 / 255, few.rows)
    steps = model.preprocessing
    assert steps is not None
    peer = foolbox.PyTorchModel(
        twin.module, (0, 1), "cpu", {"mean": list(steps.mean), "std": list(steps.std), "axis": -3}
    )
    given = torch.from_numpy(samples), torch.from_numpy(few.labels)
    _, fgsm, _ = foolbox.attacks.LinfFastGradientAttack()(peer, *given, epsilons=8 / 255)
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=3, random_start=False)
    _, pgd, _ = attack(peer, *given, epsilons=8 / 255)
    assert np.array_equal(attack_for("fgsm").run(victim, job), fgsm.numpy())
    assert np.array_equal(attack_for("pgd:steps=3,random_start=false").run(victim, job), pgd.numpy())


@pytest.mark.slow
def test_the_table_of_the_specification(data_folder: Path) -> None:
    """ResNet-20 on 100 test images: 77 % as they are, FGSM 8/255 6 %, PGD-7 0 %, Square-100 at most a quarter."""
    data = api.dataset(data_folder / "cifar10-test.parquet")
    assert data is not None
    attacks = "fgsm,pgd:steps=7,random_start=false,square:queries=100"
    (model,) = attack_networks(files(data_folder)[:1], data, attacks=attacks, rows=100).models
    fgsm, pgd, square = (share(r.robust) for r in model.results)
    assert share(model.clean) == pytest.approx(0.79, abs=0.011)
    assert fgsm == pytest.approx(0.07, abs=0.021)
    assert pgd == 0
    assert square <= 0.25
