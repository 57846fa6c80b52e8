"""A method's result is made once, whoever asks for it, and a killed one is gone on from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from dlas.compress.checkpoint import next_checkpoint
from dlas.compress.method import Method, Plan, compress_once
from dlas.core.cache import Cache
from dlas.core.errors import DataError
from dlas.core.options import option
from dlas.data.dataset import Dataset
from dlas.graph.model import Model, Step
from dlas.testing import models as networks


@dataclass(frozen=True)
class Options:
    strength: int = option(1, "how much")


class Counting(Method):
    """Renames nothing, prunes nothing: writes down that it was called."""

    name = "counting"
    Options = Options
    calls = 0

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        return Plan(self.name, ())

    def apply(self, model: Model, data: Dataset | None = None, progress=None) -> Model:
        type(self).calls += 1
        if data is not None and data.name == "bad":
            raise DataError("these rows do not fit")
        return model.with_step(model.editable(), Step(self.name, {"strength": self.options.strength}))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    monkeypatch.setattr(Counting, "calls", 0)
    return Counting


def rows(name: str = "rows", seed: int = 0) -> Dataset:
    return Dataset(name, networks.images(8, seed=seed), np.arange(8) % 2)


def test_the_same_is_made_once_and_is_what_apply_returns(tmp_path: Path, calls: type[Counting]) -> None:
    model = networks.residual()
    first, second = (compress_once(Cache(tmp_path), Counting(), model, rows()) for _ in range(2))
    assert calls.calls == 1
    assert first.to_bytes() == second.to_bytes()
    assert first.hash == Counting().apply(model, rows()).hash
    assert first.history[-1].action == "counting"
    assert first.name == model.name


def test_whatever_matters_makes_a_new_one(tmp_path: Path, calls: type[Counting]) -> None:
    model, cache = networks.residual(), Cache(tmp_path)
    for member, network, data in (
        (Counting(), model, rows()),
        (Counting(strength=2), model, rows()),
        (Counting(), model.renamed("other"), rows()),
        (Counting(), replace(model, history=(Step("earlier"),)), rows()),
        (Counting(), model, rows(seed=1)),
        (Counting(), model, rows("name")),
        (Counting(), model, None),
    ):
        before = calls.calls
        compress_once(cache, member, network, data)
        assert calls.calls == before + 1


def test_a_refusal_leaves_nothing(tmp_path: Path, calls: type[Counting]) -> None:
    for _ in range(2):
        with pytest.raises(DataError, match="do not fit"):
            compress_once(Cache(tmp_path), Counting(), networks.residual(), rows("bad"))
    assert calls.calls == 2
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from test_method import Keeping, networks
    from dlas.compress.method import compress_once
    from dlas.core.cache import Cache

    compress_once(Cache(Path(sys.argv[2])), Keeping(), networks.residual())
"""


class Keeping(Counting):
    """Keeps a file where checkpoints are kept, and dies by it the first time."""

    name = "keeping"

    def apply(self, model: Model, data: Dataset | None = None, progress=None) -> Model:
        place = next_checkpoint()
        assert place is not None
        if not place.exists():
            place.parent.mkdir()
            place.write_text("half done")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().apply(model, data, progress)


def test_what_a_killed_one_kept_is_found_again_and_removed_when_it_is_done(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(Path(__file__).parent), str(tmp_path / "c")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [p.read_text() for p in tmp_path.rglob("*.ckpt")] == ["half done"]
    Cache(tmp_path / "c").folder("0" * 64, lambda folder: None)  # another step tidies up, and leaves it
    assert subprocess.run(command, check=False).returncode == 0
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list((tmp_path / "c" / ".work").glob("*"))
