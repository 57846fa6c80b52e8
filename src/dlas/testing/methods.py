"""Conformance suite of compression methods.

Inherit :class:`MethodSuite` in a test module and set ``method``; the tests run on a tiny network of
``dlas.testing.models`` with random calibration rows.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from dlas.compress.method import Method, methods
from dlas.core.errors import DataError, UnknownNameError
from dlas.core.options import Choice
from dlas.data.dataset import Dataset
from dlas.graph.format import load_model, save_model
from dlas.graph.model import Model
from dlas.graph.reference import Reference
from dlas.testing import models


class MethodSuite:
    """What every method must do.

    Class attributes:
        method: Choice under test (``magnitude:sparsity=0.5``).
    """

    method: ClassVar[str]

    @pytest.fixture
    def member(self) -> Method:
        """The method; skips where its library is missing."""
        choice = Choice.parse(self.method)
        kind = methods.get(choice.name)
        if kind.missing():
            pytest.skip(f"{choice.name} {kind.missing()}")
        return kind(**choice.as_dict())

    def network(self) -> Model:
        """The network that is compressed; override for methods that need another."""
        return models.residual()

    def training(self) -> Dataset:
        """Labelled rows in the network's own shape and dtype."""
        labels = np.random.default_rng(2).integers(0, models.CLASSES, 32)
        return Dataset("tiny", models.images(32, seed=2), labels.astype(np.int64))

    def test_the_input_is_left_alone(self, member: Method) -> None:
        """Neither plan nor apply changes the Model or the rows they are given."""
        model, data = self.network(), self.training()
        before, rows = model.to_bytes(), data.hash
        member.plan(model, data)
        member.apply(model, data)
        assert model.to_bytes() == before
        assert self.training().hash == rows

    def test_one_line_of_history_tells_the_recipe(self, member: Method) -> None:
        """The last step names the method, every option and the versions of the tools."""
        model = self.network()
        changed = member.apply(model, self.training())
        assert len(changed.history) == len(model.history) + 1
        step = changed.history[-1]
        assert step.action == member.name
        assert set(asdict(member.options)) <= set(step.options)
        assert step.versions.get("dlas")
        json.dumps(step.to_dict())

    def test_something_changed_and_still_runs(self, member: Method) -> None:
        """The result is another network with the same inputs and outputs, and its answers are numbers."""
        model = self.network()
        changed = member.apply(model, self.training())
        assert changed.hash != model.hash
        assert [(s.name, s.shape) for s in changed.inputs] == [(s.name, s.shape) for s in model.inputs]
        assert [s.name for s in changed.outputs] == [s.name for s in model.outputs]
        logits = _answers(changed)
        assert logits.shape == (3, models.CLASSES)
        assert np.isfinite(logits.astype(np.float64)).all()

    def test_the_result_survives_a_file(self, member: Method, tmp_path: Path) -> None:
        """Saved and loaded it answers the same to the bit and keeps its history."""
        changed = member.apply(self.network(), self.training())
        save_model(changed, tmp_path / "changed.onnx")
        loaded = load_model(tmp_path / "changed.onnx")
        np.testing.assert_array_equal(_answers(loaded), _answers(changed))
        actions = [s.action for s in changed.history]
        assert [s.action for s in loaded.history][: len(actions)] == actions

    def test_the_same_seed_gives_the_same_network(self, member: Method) -> None:
        """Two runs agree to the bit, whatever the global random state."""
        first = member.apply(self.network(), self.training())
        np.random.seed(99)  # noqa: NPY002 - the global state is just what must not matter
        second = member.apply(self.network(), self.training())
        assert first.to_bytes() == second.to_bytes()

    def test_the_plan_can_be_printed_and_stored(self, member: Method) -> None:
        """It names the method and at least one layer of the network, and fits JSON."""
        model = self.network()
        plan = member.plan(model, self.training())
        assert plan.method == member.spelled()
        assert plan.changes
        assert all(change.layer and change.what for change in plan.changes)
        json.dumps(asdict(plan))

    def test_progress_goes_up_to_the_end(self, member: Method) -> None:
        """Where progress is told at all it is told in order, as a fraction, with words."""
        told: list[tuple[float, str]] = []
        member.apply(self.network(), self.training(), lambda done, what: told.append((done, what)))
        fractions = [done for done, _ in told]
        assert fractions == sorted(fractions)
        assert all(0 <= done <= 1 and what for done, what in told)

    def test_missing_rows_are_asked_for(self, member: Method) -> None:
        """A method that needs rows says so when there are none."""
        if not member.needs_data:
            member.apply(self.network())
            return
        with pytest.raises(DataError):
            member.apply(self.network())

    def test_unknown_options_are_refused(self, member: Method) -> None:
        """By name."""
        with pytest.raises(UnknownNameError, match="no_such_option"):
            type(member)(no_such_option=1)

    def test_it_says_what_it_is(self, member: Method) -> None:
        """Name and summary, under the name it is registered by."""
        assert methods.get(member.name) is type(member)
        assert member.summary


def _answers(model: Model) -> np.ndarray:
    spec = model.inputs[0]
    with Reference(model, level="disable") as reference:
        return reference.run({spec.name: models.images(3, seed=3).astype(spec.dtype)})[model.outputs[0].name]
