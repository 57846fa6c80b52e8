"""What a worker process offers for one artifact."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dlas.core.errors import DlasError, ModelError, ShapeError, UnsupportedError
from dlas.core.worker import Worker, WorkerFailure
from dlas.graph.reference import predict
from dlas.runtime import session
from dlas.runtime.artifact import Signature
from dlas.testing import models


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(models.residual().to_bytes())
    return path


@pytest.fixture(autouse=True)
def _closed():
    yield
    session.close()


def _build(model_path: Path, tmp_path: Path, backend: str = "onnxruntime", batch: int = 1) -> str:
    folder = tmp_path / "artifact"
    folder.mkdir()
    session.build(backend, str(model_path), "host", str(folder), batch)
    return str(folder)


def test_a_worker_builds_answers_and_times(model_path, tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    images = models.images(7)
    with Worker(threads=1) as worker:
        built = worker.call("dlas.runtime.session:build", "onnxruntime", model_path, "host", folder, 1)
        assert built["artifact_bytes"] == sum(f.stat().st_size for f in folder.iterdir())
        opened = worker.call("dlas.runtime.session:open", "onnxruntime", folder, "host", 1)
        assert opened["notes"] == []
        assert opened["inputs"][0]["name"] == "image"
        answers = worker.call("dlas.runtime.session:outputs", images)
        np.testing.assert_allclose(
            answers, predict(models.residual(), images, batch_size=1), rtol=1e-5, atol=1e-5
        )
        worker.call("dlas.runtime.session:warm_up", {"warmup_s": 0.01})
        samples = worker.call("dlas.runtime.session:sample", 0.01, 5, math.inf)
        assert len(samples) >= 5
        assert all(0 < s < 1000 for s in samples)
        memory = worker.call("dlas.runtime.session:memory")
        assert 0 < memory["peak_bytes"] < memory["process_bytes"]
        assert memory["source"] == "measured"
        rows = worker.call("dlas.runtime.session:profile", 3)
        assert {"name", "op", "milliseconds", "source"} == set(rows[0])


def test_memory_does_not_count_the_data_set(model_path, tmp_path):
    session.open("onnxruntime", _build(model_path, tmp_path))
    before = session.memory()["peak_bytes"]
    session.outputs(models.images(20000))  # 35 MB of input alone
    assert session.memory()["peak_bytes"] == before


def test_rows_go_through_in_batches_as_built(model_path, tmp_path):
    folder = _build(model_path, tmp_path, "openvino", batch=4)
    session.open("openvino", folder)
    images = models.images(10)
    answers = session.outputs(images)
    assert answers.shape == (10, models.CLASSES)
    np.testing.assert_allclose(answers, predict(models.residual(), images), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(session.all_outputs({"image": images})["logits"], answers)


def test_timed_runs_use_the_first_real_rows_unless_told(model_path, tmp_path):
    session.open("onnxruntime", _build(model_path, tmp_path))
    images = models.images(3)
    session.outputs(images)
    np.testing.assert_array_equal(session._opened().feed["image"], images[:1])
    session.feed(images[2:])
    np.testing.assert_array_equal(session._opened().feed["image"], images[2:])
    with pytest.raises(ShapeError):
        session.feed(images[0])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (np.zeros((0, 3, 12, 12), np.float32), "at least 1"),
        (np.float32(1), "at least 1"),
        (np.zeros((2, 3, 12, 11), np.float32), "11"),
        (np.zeros((2, 3, 12, 12), np.float64), "float64"),
        ({"picture": np.zeros((2, 3, 12, 12), np.float32)}, "picture"),
    ],
)
def test_rows_that_do_not_fit_are_refused(model_path, tmp_path, rows, told):
    session.open("onnxruntime", _build(model_path, tmp_path))
    with pytest.raises(ShapeError, match=told):
        session.all_outputs(rows if isinstance(rows, dict) else np.asarray(rows))


def test_nothing_works_before_open_and_after_close(model_path, tmp_path):
    for call in (session.memory, session.profile, session.energy, lambda: session.sample(0.1)):
        with pytest.raises(DlasError, match="no artifact is open"):
            call()
    session.open("onnxruntime", _build(model_path, tmp_path))
    session.close()
    session.close()
    with pytest.raises(DlasError, match="no artifact is open"):
        session.memory()


def test_energy_is_absent_where_no_counter_can_be_read(model_path, tmp_path, monkeypatch):
    session.open("onnxruntime", _build(model_path, tmp_path))
    monkeypatch.setattr(type(session._opened().target), "energy_reader", lambda self: None)
    assert session.energy(0.01) == {}


def test_energy_is_what_the_counter_says(model_path, tmp_path, monkeypatch):
    class Reader:
        calls = 0

        def read_joules(self) -> float:
            self.calls += 1
            return 10.0 if self.calls == 1 else 12.0

    session.open("onnxruntime", _build(model_path, tmp_path))
    monkeypatch.setattr(type(session._opened().target), "energy_reader", lambda self: Reader())
    found = session.energy(0.01)
    assert found["mj_per_run"] == pytest.approx(2000 / found["runs"])


def test_an_unusable_target_is_unsupported(model_path, tmp_path, monkeypatch):
    from dlas.hardware.targets import host

    monkeypatch.setattr(host, "x86_level", lambda: "x86-64-v2")
    with pytest.raises(UnsupportedError, match="x86-64-v2"):
        session.build("onnxruntime", str(model_path), "host:isa=x86-64-v4", str(tmp_path))


def test_a_worker_reports_a_refusal_as_unsupported(model_path, tmp_path):
    with Worker() as worker, pytest.raises(WorkerFailure) as caught:
        worker.call("dlas.runtime.session:open", "onnxruntime", tmp_path, "host", 1)
    assert "build the artifact again" in caught.value.reason


def test_a_damaged_signature_is_one_line(tmp_path):
    for content in ("", "[]", '{"batch": 1}', '{"batch": "x", "inputs": [], "outputs": [], "notes": []}'):
        (tmp_path / "signature.json").write_text(content)
        with pytest.raises(ModelError, match="build the artifact again"):
            Signature.read(tmp_path)


def test_a_fixed_batch_is_not_silently_kept(tmp_path):
    from dlas.graph.passes import bind_batch

    with pytest.raises(ShapeError, match="fixed batch of 2"):
        Signature.of(bind_batch(models.residual(), 2), 1)


def test_random_inputs_fit_the_signature():
    signature = Signature.of(models.residual_nhwc(), 3)
    inputs = signature.random_inputs()
    signature.check(inputs)
    assert inputs["image"].shape == (3, 12, 12, 3)
    np.testing.assert_array_equal(signature.random_inputs()["image"], inputs["image"])
