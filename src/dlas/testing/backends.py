"""Conformance suite of back ends.

Inherit :class:`BackendSuite` in a test module and set ``backend``; the tests run on the tiny networks of
``dlas.testing.models`` and are skipped, with the reason, where the library is not installed. What an engine really
cannot do is declared in ``cannot`` (network form to a part of the reason it must give), so a silent failure still
fails the test.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from dlas.core.errors import DlasError, ModelError, ShapeError, UnknownNameError, UnsupportedError
from dlas.core.options import Choice
from dlas.graph.model import Model
from dlas.graph.reference import Reference
from dlas.hardware.target import target_for
from dlas.runtime.backend import Backend, Executable, backends
from dlas.testing import models

FORMS = {
    "float": models.residual,
    "nhwc": models.residual_nhwc,
    "half": models.residual_half,
    "quantized": models.residual_quantized,
}


class BackendSuite:
    """What every back end must do.

    Class attributes:
        backend: Choice under test (``onnxruntime:level=basic``).
        floors_db: Least SQNR against the reference by network form: 100 for float32 arithmetic; an int8 engine may
            round each layer otherwise, which moves some values by one step.
        cannot: Network form to what the reason for refusing it must contain.
    """

    backend: ClassVar[str]
    floors_db: ClassVar[Mapping[str, float]] = {"float": 100, "nhwc": 100, "half": 50, "quantized": 30}
    cannot: ClassVar[Mapping[str, str]] = {}
    _artifact: ClassVar[Path]

    @pytest.fixture
    def member(self) -> Backend:
        """The back end; skips where its library is missing or the choice cannot be had on this machine."""
        choice = Choice.parse(self.backend)
        kind = backends.get(choice.name)
        if kind.missing():
            pytest.skip(f"{choice.name} {kind.missing()}")
        made = kind(**choice.as_dict())
        reason = made.supports(models.residual(), target_for("host"))
        if reason:
            pytest.skip(f"{choice.name}: {reason}")
        return made

    @pytest.fixture
    def artifact(self, member: Backend, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The float network built with batch 1; built once per class."""
        if "_artifact" not in vars(type(self)):
            folder = tmp_path_factory.mktemp("artifact")
            member.build(models.residual(), target_for("host"), folder)
            type(self)._artifact = folder
        return type(self)._artifact

    @pytest.fixture
    def executable(self, member: Backend, artifact: Path) -> Iterator[Executable]:
        """The float network, loaded with one thread."""
        with member.load(artifact, target_for("host"), threads=1) as loaded:
            yield loaded

    @pytest.mark.parametrize("form", list(FORMS))
    def test_answers_are_those_of_the_reference(self, member: Backend, form: str) -> None:
        """Every form of the network computes what the reference computes."""
        model = FORMS[form]()
        with self._refusal(form), member.compile(model) as loaded:
            for seed in (1, 2):
                inputs = _inputs(model, seed=seed)
                with Reference(model, level="disable") as reference:
                    expected = reference.run(inputs)
                found = loaded.run(inputs)
                assert list(found) == [s.name for s in model.outputs]
                for name, want in expected.items():
                    got = found[name]
                    assert got.shape == want.shape
                    assert got.dtype == want.dtype
                    assert sqnr_db(want, got) >= self.floors_db[form], (form, seed, want, got)

    def test_two_runs_are_equal_to_the_bit(self, executable: Executable) -> None:
        """Nothing is left over from one run to the next, and nothing is random."""
        first = executable.run({"image": models.images(seed=3)})
        executable.run({"image": models.images(seed=4)})
        again = executable.run({"image": models.images(seed=3)})
        assert first["logits"].tobytes() == again["logits"].tobytes()

    def test_outputs_belong_to_the_caller(self, executable: Executable) -> None:
        """A later run, or closing, leaves earlier results alone; they can be written to."""
        first = executable.run({"image": models.images(seed=3)})["logits"]
        kept = first.copy()
        other = executable.run({"image": models.images(seed=4)})["logits"]
        assert not np.array_equal(other, kept)
        np.testing.assert_array_equal(first, kept)
        executable.close()
        first += 1
        np.testing.assert_array_equal(first, kept + 1)

    def test_inputs_are_left_alone(self, executable: Executable) -> None:
        """The caller's array is neither changed nor kept."""
        image = models.images(seed=3)
        kept = image.copy()
        first = executable.run({"image": image})["logits"]
        np.testing.assert_array_equal(image, kept)
        image[:] = 0
        np.testing.assert_array_equal(executable.run({"image": kept})["logits"], first)

    def test_any_memory_layout_is_taken(self, executable: Executable) -> None:
        """A reversed, transposed or read-only array counts by its values."""
        image = models.images(seed=3)
        expected = executable.run({"image": image})["logits"]
        strided = np.ascontiguousarray(image[:, :, ::-1, :].transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)[
            :, :, ::-1, :
        ]
        strided.flags.writeable = False
        np.testing.assert_array_equal(executable.run({"image": strided})["logits"], expected)

    @pytest.mark.parametrize(
        ("inputs", "told"),
        [
            ({"image": np.zeros((1, 3, 12, 13), np.float32)}, "13"),
            ({"image": np.zeros((3, 12, 12), np.float32)}, "[3, 12, 12]"),
            ({"image": np.zeros((1, 3, 12, 12), np.float64)}, "float64"),
            ({"picture": np.zeros((1, 3, 12, 12), np.float32)}, "picture"),
            ({}, "image"),
        ],
        ids=["shape", "rank", "dtype", "name", "none"],
    )
    def test_wrong_inputs_are_refused(
        self, executable: Executable, inputs: dict[str, np.ndarray], told: str
    ) -> None:
        """By run and by runner, saying what was given and what is expected."""
        for call in (executable.run, executable.runner):
            with pytest.raises(ShapeError) as caught:
                call(inputs)
            assert told in str(caught.value)
            assert "image" in str(caught.value)

    def test_a_batch_is_the_sum_of_its_rows(self, member: Backend, executable: Executable) -> None:
        """Built for four rows it answers four; another number of rows is refused where the batch is fixed."""
        images = models.images(4, seed=5)
        one_by_one = np.concatenate(
            [executable.run({"image": images[i : i + 1]})["logits"] for i in range(4)]
        )
        with member.compile(models.residual(), batch=4) as loaded:
            assert sqnr_db(one_by_one, loaded.run({"image": images})["logits"]) >= self.floors_db["float"]
            if member.fixed_batch:
                with pytest.raises(ShapeError):
                    loaded.run({"image": images[:3]})
            else:
                assert len(loaded.run({"image": images[:3]})["logits"]) == 3

    def test_threads_do_not_change_the_answer(
        self, member: Backend, artifact: Path, executable: Executable
    ) -> None:
        """One artifact serves both thread counts."""
        inputs = {"image": models.images(seed=6)}
        with member.load(artifact, target_for("host"), threads=2) as two:
            assert (
                sqnr_db(executable.run(inputs)["logits"], two.run(inputs)["logits"])
                >= self.floors_db["float"]
            )

    def test_an_artifact_can_be_moved(self, member: Backend, artifact: Path, tmp_path: Path) -> None:
        """It is self-contained: copied elsewhere, it answers the same."""
        inputs = {"image": models.images(seed=7)}
        moved = tmp_path / "else where"
        shutil.copytree(artifact, moved)
        with (
            member.load(moved, target_for("host")) as here,
            member.load(artifact, target_for("host")) as there,
        ):
            np.testing.assert_array_equal(here.run(inputs)["logits"], there.run(inputs)["logits"])

    def test_a_damaged_artifact_is_one_line(self, member: Backend, artifact: Path, tmp_path: Path) -> None:
        """Empty folder, truncated or missing file: an error that says to build again."""
        with pytest.raises(ModelError, match="build the artifact again"):
            member.load(tmp_path, target_for("host"))
        for name in (f.name for f in artifact.iterdir()):
            broken = tmp_path / name
            shutil.copytree(artifact, broken)
            (broken / name).write_bytes((artifact / name).read_bytes()[:20])
            with pytest.raises(DlasError) as caught:
                member.load(broken, target_for("host"))
            assert "\n" not in str(caught.value)

    def test_runner_does_one_inference(self, executable: Executable) -> None:
        """It may be called often and leaves run alone."""
        inputs = {"image": models.images(seed=8)}
        before = executable.run(inputs)["logits"]
        runner = executable.runner(inputs)
        for _ in range(3):
            runner()
        np.testing.assert_array_equal(executable.run(inputs)["logits"], before)

    def test_profile_names_every_layer_or_says_why_not(self, executable: Executable) -> None:
        """Rows with names, operators and positive times, no name twice; or UnsupportedError and nothing else."""
        try:
            rows = executable.profile({"image": models.images()}, repeats=3)
        except UnsupportedError:
            return
        assert len(rows) >= 4
        assert len({r.name for r in rows}) == len(rows)
        assert all(r.name and r.op and r.milliseconds >= 0 for r in rows)
        assert sum(r.milliseconds for r in rows) > 0

    def test_weights_that_are_not_numbers_run(self, member: Backend) -> None:
        """A damaged network is judged by its answers, not by a crash: one class is not a number, nine are."""
        with member.compile(models.residual(nan=True)) as loaded:
            logits = loaded.run({"image": models.images()})["logits"]
        assert np.isnan(logits).sum() == 1

    def test_building_leaves_the_model_alone(self, member: Backend, tmp_path: Path) -> None:
        """The Model is the same before and after."""
        model = models.residual()
        before = model.to_bytes()
        member.build(model, target_for("host"), tmp_path)
        assert model.to_bytes() == before

    def test_closing_twice_is_fine_and_running_then_is_refused(self, member: Backend, artifact: Path) -> None:
        """close() is idempotent; a closed executable says so."""
        loaded = member.load(artifact, target_for("host"))
        loaded.close()
        loaded.close()
        with pytest.raises(DlasError, match="closed"):
            loaded.run({"image": models.images()})

    def test_unknown_options_are_refused(self, member: Backend) -> None:
        """By name, with the accepted ones near."""
        with pytest.raises(UnknownNameError, match="no_such_option"):
            type(member)(no_such_option=1)

    def test_it_says_what_it_is(self, member: Backend) -> None:
        """Name, summary and the distribution that identifies its version."""
        assert backends.get(member.name) is type(member)
        assert member.summary
        assert member.distribution

    @contextlib.contextmanager
    def _refusal(self, form: str) -> Iterator[None]:
        """Expects the declared refusal of a form, or nothing special."""
        if form not in self.cannot:
            yield
            return
        with pytest.raises(UnsupportedError, match=self.cannot[form]):
            yield


def sqnr_db(wanted: np.ndarray, got: np.ndarray) -> float:
    """Signal to difference in dB, ``10 log10(sum w^2 / sum (w - g)^2)``.

    Infinite when equal; -inf when the answers are not finite, or differ from a ``wanted`` that is zero everywhere.
    """
    signal = np.square(wanted.astype(np.float64)).sum()
    difference = np.square(wanted.astype(np.float64) - got.astype(np.float64)).sum()
    if difference == 0:
        return np.inf
    return 10 * np.log10(signal / difference) if signal and np.isfinite(difference) else -np.inf


def _inputs(model: Model, seed: int) -> dict[str, np.ndarray]:
    return {"image": models.images(seed=seed, nhwc=model.inputs[0].shape[-1] == 3)}
