"""Several networks under attack at once: the table, the cache, transfer, warnings and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attack_nets import SIDE, linear, network, samples_of
from onnx import helper

from dlas import api
from dlas.core.errors import DataError, DlasError, OptionError
from dlas.core.figure import Figure
from dlas.data.dataset import Dataset
from dlas.graph.format import save_model
from dlas.graph.model import Model
from dlas.graph.reference import Reference
from dlas.verify.attack import AttackReport, attack_networks
from dlas.verify.attack.report import BLACK, TRANSFER, WHITE, AttackResult, warnings_on, worst_case
from dlas.verify.attack.runtimes import Asker
from dlas.verify.running import Subject, Unread


class Heard:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.total, self.done = 0, 0
        self.steps: list[str] = []

    def start(self, total: int) -> None:
        self.total = total

    def step(self, text: str) -> None:
        self.steps.append(text)

    def advance(self, units: int = 1) -> None:
        self.done += units


def saved(model: Model, folder: Path, name: str) -> Subject:
    path = folder / name
    save_model(model, path)
    return Subject.open(path)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    """The shipped network, and two of int8: as ONNX and as TFLite."""
    folder = tmp_path_factory.mktemp("networks")
    whole = api.load("digits-cnn")
    int8 = api.compress(whole, "int8", data="digits", split="train")
    found = [saved(whole, folder, "float.onnx"), saved(int8, folder, "int8.onnx")]
    pytest.importorskip("ai_edge_litert", reason="the extra `tflite` is not installed")
    return [*found, saved(int8, folder, "int8.tflite")]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks answer in this process: where it does not matter who answers, no worker is started."""

    def asker(subject: Subject, *_: Any) -> Any:
        engine, model = Reference(subject.model), subject.model

        class Here(Asker):
            def __init__(self) -> None:
                self.path = "here"

            def __call__(self, fed: np.ndarray) -> np.ndarray:
                return engine.run({model.inputs[0].name: fed})[model.outputs[0].name]

            def __exit__(self, *_: object) -> None:
                engine.close()

        return Here()

    monkeypatch.setattr("dlas.verify.attack.opening.asker_of", asker)


@pytest.fixture
def digits() -> Dataset:
    found = api.dataset("digits", "test")
    assert found is not None
    return found


def share(figure: Figure | None) -> float:
    assert figure is not None
    return figure.value


def test_float_and_compressed_networks_stand_in_one_table(subjects: list[Subject], digits: Dataset) -> None:
    heard = Heard()
    found = attack_networks(
        subjects, digits, attacks="fgsm,pgd:steps=5,square:queries=30", eps="24/255", rows=40, progress=heard
    )
    assert (found.rows, found.source, found.eps) == (40, "float.onnx", 24 / 255)
    assert [m.target for m in found.models] == ["float.onnx", "int8.onnx", "int8.tflite"]
    assert [m.path for m in found.models] == ["onnxruntime", "onnxruntime", "litert"]
    assert found.titles == [
        "fgsm",
        "pgd:steps=5",
        "square:queries=30",
        "transfer fgsm",
        "transfer pgd:steps=5",
    ]
    assert (heard.total, heard.done) == (12, 12)
    for model in found.models:
        clean = model.clean
        assert clean is not None
        assert clean.n == 40
        assert share(clean) >= 0.95
        kinds = [r.kind for r in model.results]
        assert kinds == [WHITE, WHITE, BLACK] + ([TRANSFER] * 2 if model.target != "float.onnx" else [])
        robust = [share(r.robust) for r in model.results]
        assert max(robust) < share(clean)
        assert share(model.worst) <= min(robust)
        assert model.worst is not None
        assert model.worst.low is not None
        assert model.worst.low < model.worst.value < (model.worst.high or 0)
        assert model.size_bytes > 1000
        square = model.results[2]
        assert 1 <= square.queries <= 30
        assert model.results[0].queries == 0
    onnx, tflite = found.models[1:]
    assert share(onnx.worst) == pytest.approx(share(tflite.worst), abs=0.051)  # the same weights and steps
    assert found.pictured == "pgd:steps=5"
    assert found.examples
    example = found.examples[0]
    assert example.before.shape == (8, 8, 1)
    assert np.abs(example.after - example.before).max() == pytest.approx(24 / 255, abs=1e-6)
    assert digits.labels is not None
    original = np.flatnonzero(digits.rows == example.row)[0]
    assert example.label == str(digits.labels[original])
    assert np.array_equal(np.rint(255 * example.before), np.asarray(digits.samples)[original])
    json.dumps(found.to_dict())


def test_what_was_found_is_kept_block_by_block(
    subjects: list[Subject], digits: Dataset, monkeypatch: pytest.MonkeyPatch, here: None
) -> None:
    from dlas.verify.attack import engine
    from dlas.verify.attack.attacks.square import Square

    runs: list[int] = []
    run = Square.run

    def counted(self: Square, victim: Any, job: Any) -> np.ndarray:
        if len(runs) == 1 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        runs.append(len(job.samples))
        return run(self, victim, job)

    stopped: list[bool] = []
    monkeypatch.setattr(Square, "run", counted)
    monkeypatch.setattr(engine, "BLOCK", 8)
    given: dict[str, Any] = {"attacks": "square:queries=10", "eps": 0.1, "rows": 24}
    with pytest.raises(KeyboardInterrupt):
        attack_networks(subjects[:1], digits, **given)
    assert runs == [8]
    first = attack_networks(subjects[:1], digits, **given)
    assert runs == [8, 8, 8]  # the first block was not attacked again
    again = attack_networks(subjects[:1], digits, **given)
    assert runs == [8, 8, 8]
    assert again.to_dict() == first.to_dict()
    attack_networks(subjects[:1], digits, **{**given, "eps": 0.2})
    assert len(runs) == 6


def test_the_size_of_a_block_changes_nothing(
    subjects: list[Subject],
    digits: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    here: None,
) -> None:
    from dlas.verify.attack import engine

    given: dict[str, Any] = {
        "attacks": "pgd:steps=3,square:queries=10,nes:queries=90",
        "rows": 20,
        "eps": 0.1,
    }
    whole = attack_networks(subjects[:1], digits, **given)
    monkeypatch.setattr(engine, "BLOCK", 7)
    monkeypatch.setenv("DLAS_CACHE", str(tmp_path_factory.mktemp("other")))
    assert attack_networks(subjects[:1], digits, **given).to_dict() == whole.to_dict()


def test_a_back_end_can_answer(subjects: list[Subject], digits: Dataset) -> None:
    found = attack_networks(subjects[:1], digits, attacks="square:queries=5", eps=0.1, rows=10, path="ort:O0")
    assert found.models[0].path == "ort:O0"
    assert share(found.models[0].clean) >= 0.9
    with pytest.raises(OptionError, match="path = 'ort:O0,ort:O1'"):
        attack_networks(subjects[:1], digits, path="ort:O0,ort:O1")


def shattered() -> tuple[Model, np.ndarray]:
    """A linear network whose slope is drowned in that of a tiny, quick wave on its input."""

    def waved(name: str) -> list[Any]:
        return [
            helper.make_node("Mul", ["x", "fast"], ["quick"]),
            helper.make_node("Sin", ["quick"], ["wave"]),
            helper.make_node("Mul", ["wave", "small"], ["ripple"]),
            helper.make_node("Add", ["x", "ripple"], [name]),
        ]

    rng = np.random.default_rng(0)
    weight = 0.3 * rng.normal(size=(SIDE**2, 2)).astype(np.float32)
    extra = {"fast": np.float32([1e4]), "small": np.float32([0.002])}
    return network(weight, -0.5 * weight.sum(0), waved, extra), weight  # type: ignore[arg-type]


def test_shattered_gradients_are_called_masked(tmp_path: Path, here: None) -> None:
    model, weight = shattered()
    smooth = network(weight, -0.5 * weight.sum(0))
    data = samples_of(smooth, 60)
    found = attack_networks(
        [saved(smooth, tmp_path, "smooth.onnx"), saved(model, tmp_path, "waved.onnx")],
        data,
        attacks="fgsm,pgd:steps=10,square:queries=200",
        eps=0.05,
    )
    plain, masked = found.models
    assert plain.warnings == ()
    words = " ".join(masked.warnings)
    assert "gradient masking: black box brings down" in words
    assert "gradient masking: transfer brings down" in words
    white = min(share(r.robust) for r in masked.results if r.kind == WHITE)
    assert share(masked.worst) < white


def test_a_network_without_slope_is_left_to_black_boxes(tmp_path: Path, here: None) -> None:
    def cut(name: str) -> list[Any]:
        return [
            helper.make_node("Greater", ["x", "half"], ["over"]),
            helper.make_node("Cast", ["over"], [name], to=1),
        ]

    _, weight = linear()
    hard = network(weight, -0.5 * weight.sum(0), cut, {"half": np.float32([0.5])})  # type: ignore[arg-type]
    found = attack_networks(
        [saved(hard, tmp_path, "hard.onnx"), saved(linear()[0], tmp_path, "soft.onnx")],
        samples_of(hard, 10),
        attacks="fgsm,square:queries=20",
        eps=0.1,
    )
    model, soft = found.models
    assert model.results[0].robust is None
    assert "no gradient reaches the input" in model.results[0].reason
    assert any(note.startswith("black box only: no gradient reaches") for note in model.notes)
    assert model.results[1].robust is not None
    assert share(model.worst) == share(model.results[1].robust)
    assert found.source == ""  # nothing to carry over
    assert [r.kind for r in soft.results] == [WHITE, BLACK]


def test_flat_gradients_are_called_masked(tmp_path: Path, here: None) -> None:
    _, weight = linear()
    sure = network(1000 * weight, -500 * weight.sum(0))
    (model,) = attack_networks(
        [saved(sure, tmp_path, "sure.onnx")], samples_of(sure, 20), attacks="fgsm", eps=0.01
    ).models
    assert any("have a gradient that is 0 everywhere" in warning for warning in model.warnings)


def test_a_network_that_is_never_right_has_nothing_to_lose(tmp_path: Path, here: None) -> None:
    from dataclasses import replace

    model, _ = linear()
    data = samples_of(model, 6)
    assert data.labels is not None
    wrong = replace(data, labels=1 - data.labels)
    heard = Heard()
    given: dict[str, Any] = {"attacks": "fgsm,square:queries=5,nes:queries=50", "eps": 0.1, "progress": heard}
    (found,) = attack_networks([saved(model, tmp_path, "a.onnx")], wrong, **given).models
    assert share(found.clean) == share(found.worst) == 0
    assert [r.queries for r in found.results] == [0, 0, 0]
    assert found.warnings == ()
    assert (heard.total, heard.done) == (4, 4)


def test_all_options_and_seeds_are_told(tmp_path: Path, here: None) -> None:
    model, _ = linear()
    report = attack_networks(
        [saved(model, tmp_path, "a.onnx")], samples_of(model, 4), attacks="pgd:steps=2", seed=5, eps=0.1
    )
    told = report.to_dict()["settings"]["pgd:seed=5,steps=2"]
    assert told == {
        "steps": 2, "step": 0.25, "random_start": True, "restarts": 1, "loss": "cross-entropy", "seed": 5
    }  # fmt: skip


def result(kind: str, survived: list[int], name: str = "one") -> AttackResult:
    return AttackResult(name, kind, survived=np.array(survived, bool))


def test_a_difference_that_chance_explains_is_no_warning() -> None:
    white, black = [1] * 20, [1] * 20
    black[:4] = [0] * 4
    assert warnings_on([result(WHITE, white), result(BLACK, black)], 0, 20) == []
    black[:8] = [0] * 8
    (warning,) = warnings_on([result(WHITE, white), result(BLACK, black)], 0, 20)
    assert "brings down 8 rows that no white box does (0 the other way round)" in warning
    assert warnings_on([result(WHITE, black), result(BLACK, white)], 0, 20) == []


def test_many_steps_that_do_less_than_one_are_a_warning() -> None:
    one, many = [0] * 8 + [1] * 8, [1] * 16
    (warning,) = warnings_on([result(WHITE, one, "fgsm"), result(WHITE, many, "pgd:steps=5")], 0, 16)
    assert "one step (fgsm) brings down 8 rows" in warning


def test_the_minimum_is_over_rows_and_not_over_averages() -> None:
    figure = worst_case([result(WHITE, [1, 1, 0, 0]), result(BLACK, [0, 1, 1, 1])])
    assert share(figure) == 0.25
    assert worst_case([AttackResult("one", WHITE, reason="none")]) is None


def test_what_cannot_be_attacked_is_a_row_among_others(
    subjects: list[Subject], tmp_path: Path, here: None
) -> None:
    digits = api.dataset("digits", "test")
    assert digits is not None
    other = saved(linear(channels=3)[0], tmp_path, "colour.onnx")
    lost = Unread(tmp_path / "lost.onnx", DlasError("it is no network"))
    found = attack_networks([subjects[0], other, lost], digits, attacks="fgsm", rows=8)
    assert found.models[0].worst is not None
    assert found.models[1].reason == "labels go from 0 to 9, but there are 2 scores per sample"
    assert found.models[2].reason == "it is no network"
    with pytest.raises(DlasError, match="it is no network"):
        attack_networks([lost], digits, attacks="fgsm", rows=8)


def test_networks_of_another_kind_of_sample_get_nothing_carried_over(tmp_path: Path, here: None) -> None:
    from dataclasses import replace

    from dlas.graph.preprocessing import Preprocessing

    rng = np.random.default_rng(0)
    data = Dataset("pixels", rng.integers(0, 256, (12, 6, 6, 3), np.uint8), rng.integers(0, 2, 12))
    three, grey = linear(channels=3)[0], linear(channels=1)[0]
    steps = Preprocessing(height=6, width=6, scale=1 / 255)
    first = Subject(tmp_path / "a.onnx", replace(three, preprocessing=steps))
    second = Subject(tmp_path / "b.onnx", replace(grey, preprocessing=replace(steps, colour="L")))
    for subject in (first, second):
        save_model(subject.model, subject.path)
    found = attack_networks([first, second], data, attacks="fgsm", eps=0.1)
    (carried,) = [r for r in found.models[1].results if r.kind == TRANSFER]
    assert carried.robust is None
    assert carried.reason == "b.onnx takes samples of another kind than a.onnx"


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"labels": None}, DataError, "has no labels"),
        ({"samples": np.full((4, 1, 6, 6), 3.0, np.float32)}, DataError, "go from 3 to 3, outside of 0 to 1"),
        ({"samples": np.full((4, 1, 6, 6), np.nan, np.float32)}, DataError, "NaN or infinite"),
        ({"samples": np.zeros((4, 1, 5, 6), np.float32)}, DataError, "are \\[1, 5, 6\\], but"),
        ({"labels": np.array([0, 1, 2, 7])}, DataError, "labels go from 0 to 7"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    tmp_path: Path, here: None, fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    given = {"samples": np.full((4, 1, 6, 6), 0.5, np.float32), "labels": np.array([0, 1, 1, 0]), **fields}
    with pytest.raises(error, match=words):
        attack_networks([saved(linear()[0], tmp_path, "a.onnx")], Dataset("bad", **given))


def test_arrays_have_a_range_of_their_own(tmp_path: Path, here: None) -> None:
    _, weight = linear()
    model = network(weight, np.zeros(2))
    rng = np.random.default_rng(3)
    x = rng.uniform(-1.5, 1.5, (10, 1, SIDE, SIDE)).astype(np.float32)
    data = Dataset("features", x, rng.integers(0, 2, 10))
    subject = saved(model, tmp_path, "a.onnx")
    found: AttackReport = attack_networks([subject], data, attacks="fgsm", eps=0.1, value_range=(-2, 2))
    assert found.value_range == (-2, 2)
    before, after = found.examples[0].before, found.examples[0].after
    assert np.abs(after - before).max() == pytest.approx(0.1, abs=1e-6)
    assert before * 4 - 2 == pytest.approx(x[found.examples[0].row], abs=1e-5)
    with pytest.raises(OptionError, match="range = '2:-2'"):
        attack_networks([subject], data, value_range=(2, -2))
    with pytest.raises(OptionError, match="rows = 0"):
        attack_networks([subject], data, rows=0)


def test_an_attack_that_is_not_installed_is_a_reason(
    subjects: list[Subject], digits: Dataset, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlas.core.lazy import installed

    monkeypatch.setattr("dlas.core.lazy.installed", lambda module: module != "art" and installed(module))
    found = attack_networks(subjects[:1], digits, attacks="fgsm,boundary", rows=6)
    assert found.models[0].results[1].robust is None
    assert "dlas[attack]" in found.models[0].results[1].reason
