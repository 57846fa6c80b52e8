"""The attacks against other libraries that have them; skipped where those are not installed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attack_nets import samples_of, victim_of

from dlas import api
from dlas.data.dataset import Dataset
from dlas.graph.model import Model
from dlas.graph.preprocessing import Preprocessing
from dlas.verify.attack.attack import Job, attack_for
from dlas.verify.attack.attacks.pgd import _begin
from dlas.verify.attack.victim import Victim

EPS = 16 / 255


def digits(count: int = 24) -> Dataset:
    found = api.dataset("digits", "test")
    assert found is not None
    return found.head(count)


def network() -> Model:
    """The shipped network, told to subtract a mean and to divide."""
    model = api.load("digits-cnn")
    steps = model.preprocessing
    assert steps is not None
    return replace(model, preprocessing=replace(steps, mean=(0.3,), std=(0.7,)))


def foolbox_of(victim: Victim) -> Any:
    foolbox = pytest.importorskip("foolbox", reason="foolbox is a peer for tests only")
    steps = {"mean": [0.3], "std": [0.7], "axis": -3}
    return foolbox.PyTorchModel(victim.slopes.module, bounds=(0, 1), device="cpu", preprocessing=steps)


def in_torch(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(job.samples), torch.from_numpy(job.labels)


def test_fgsm_is_that_of_foolbox_to_the_last_bit() -> None:
    victim, job = victim_of(network(), digits(), EPS)
    peer = foolbox_of(victim)
    import foolbox

    _, theirs, _ = foolbox.attacks.LinfFastGradientAttack()(peer, *in_torch(job), epsilons=EPS)
    assert np.array_equal(attack_for("fgsm").run(victim, job), theirs.numpy())


@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_is_that_of_foolbox_to_the_last_bit(random_start: bool) -> None:
    victim, job = victim_of(network(), digits(), EPS)
    peer = foolbox_of(victim)
    import eagerpy
    import foolbox

    class Peer(foolbox.attacks.LinfPGD):
        def get_random_start(
            self, x0: Any, epsilon: float
        ) -> Any:  # their draws are of one stream for all rows
            assert epsilon == job.eps
            return eagerpy.astensor(torch.from_numpy(_begin(job, job.generators(0))))

    attack = Peer(rel_stepsize=0.25, steps=12, random_start=random_start)
    _, theirs, _ = attack(peer, *in_torch(job), epsilons=EPS)
    ours = attack_for(f"pgd:steps=12,random_start={str(random_start).lower()}").run(victim, job)
    assert np.array_equal(ours, theirs.numpy())


def test_fgsm_is_that_of_the_toolbox_to_the_last_bit() -> None:
    pytest.importorskip("art.attacks.evasion", reason="the extra `attack` is not installed")
    from art.attacks.evasion import FastGradientMethod

    from dlas.verify.attack.attacks import _art

    victim, job = victim_of(network(), digits(), EPS)
    theirs = FastGradientMethod(
        _art.differentiable(victim, 10), norm=np.inf, eps=EPS, batch_size=len(job.samples)
    )
    found = theirs.generate(job.samples, np.eye(10, dtype=np.float32)[job.labels])
    assert np.array_equal(attack_for("fgsm").run(victim, job), found.astype(np.float32))


def test_square_is_as_strong_as_that_of_the_toolbox() -> None:
    pytest.importorskip("art.attacks.evasion", reason="the extra `attack` is not installed")
    from art.attacks.evasion import SquareAttack

    from dlas.verify.attack.attacks import _art

    victim, job = victim_of(network(), digits(60), 32 / 255)
    ours = attack_for("square:queries=150").run(victim, job)
    peer = SquareAttack(
        _art.scored(victim, 10),
        eps=job.eps,
        max_iter=150,
        p_init=0.8,
        nb_restarts=1,
        batch_size=60,
        verbose=False,
    )
    with _art.seeded(0):
        theirs = peer.generate(job.samples, np.eye(10, dtype=np.float32)[job.labels])
    robust = [
        int((victim.scores(x.astype(np.float32)).argmax(1) == job.labels).sum()) for x in (ours, theirs)
    ]
    assert robust[0] <= robust[1] + 8, robust  # two standard deviations of a count of 60 at one half
    assert robust[1] < 55


@pytest.mark.parametrize(
    "name",
    [
        "autopgd:steps=5",
        "autopgd:steps=5,loss=dlr",
        "boundary:steps=10",
        "hopskipjump:steps=2,evaluations=50",
    ],
)
def test_attacks_of_the_toolbox_stay_within_eps_and_repeat(name: str) -> None:
    pytest.importorskip("art.attacks.evasion", reason="the extra `attack` is not installed")
    victim, job = victim_of(network(), digits(3), 0.2)
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr,index]  # noqa: NPY002
    first, second = (attack_for(name).run(victim, job) for _ in range(2))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert np.array_equal(first, second)
    assert first.dtype == np.float32
    assert np.abs(first - job.samples).max() <= 0.2 + 1e-6
    assert first.min() >= 0
    assert first.max() <= 1


def test_autopgd_is_no_weaker_than_one_step() -> None:
    pytest.importorskip("art.attacks.evasion", reason="the extra `attack` is not installed")
    victim, job = victim_of(network(), digits(40), 32 / 255)
    right = {
        name: int((victim.scores(attack_for(name).run(victim, job)).argmax(1) == job.labels).sum())
        for name in ("fgsm", "autopgd:steps=20")
    }
    assert right["autopgd:steps=20"] <= right["fgsm"] < 40


@pytest.mark.parametrize("name", ["autopgd", "boundary", "hopskipjump"])
def test_without_the_toolbox_its_attacks_say_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlas.core.errors import MissingDependencyError
    from dlas.core.lazy import installed

    monkeypatch.setattr("dlas.core.lazy.installed", lambda module: module != "art" and installed(module))
    model = api.load("digits-cnn")
    attack = attack_for(name)
    assert "dlas[attack]" in attack.missing()
    monkeypatch.setattr(
        "dlas.core.lazy.installed", lambda module: not module.startswith("art") and installed(module)
    )
    with pytest.raises(MissingDependencyError, match="not installed"):
        attack.run(*victim_of(model, digits(2)))


def test_another_package_called_art_is_not_the_toolbox(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    import sys

    from dlas.core.errors import MissingDependencyError

    for name in [n for n in sys.modules if n == "art" or n.startswith("art.")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "art.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingDependencyError, match="adversarial-robustness-toolbox"):
        attack_for("autopgd").run(*victim_of(api.load("digits-cnn"), digits(2)))
    sys.modules.pop("art", None)


def test_a_peer_is_not_needed_to_attack() -> None:
    from attack_nets import linear

    model, _ = linear()
    victim, job = victim_of(model, samples_of(model, 2))
    assert isinstance(model.preprocessing, Preprocessing | None)
    assert attack_for("pgd").run(victim, job).shape == job.samples.shape
