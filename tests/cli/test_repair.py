"""``dlas repair``: what it changes, what it leaves with, what it never touches, and logs that go both ways."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faulty
import numpy as np
import onnx
import pytest

from dlas import api
from dlas.cli.main import run_command
from dlas.core.errors import StorageError
from dlas.verify.localize import report


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source, targets and rows as files."""
    folder = tmp_path_factory.mktemp("nets")
    faulty.write_all(folder)
    return folder


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of the worker in this process, which does not have to start one."""
    monkeypatch.setattr(report, "run_in_worker", faulty.called_here)


@pytest.fixture
def place(nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files in it."""
    for file in nets.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable:
    """Runs the command there; exit code, standard output and standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        code = run_command(["repair", *words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def _files(place: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in place.iterdir() if p.is_file()}


GIVEN = ["source.onnx", "two.onnx", "--data", "rows.npz", "-o", "fixed.onnx"]


def test_a_conversion_is_repaired_and_the_log_goes_both_ways(run: Callable, place: Path) -> None:
    before = _files(place)
    code, out, err = run(*GIVEN)
    assert (code, out) == (0, "")
    assert "walk through" in err  # from the worker, while it works
    assert "repaired: on 20 held-out samples" in err
    assert "wrote fixed.onnx and fixed.onnx.patches.json" in err
    after = _files(place)
    assert after.keys() - before.keys() == {"fixed.onnx", "fixed.onnx.patches.json"}
    assert all(after[name] == before[name] for name in before)  # neither network was changed
    rows = place / "rows.npz"
    wanted, broken = (faulty.answers(place / f"{n}.onnx", rows) for n in ("source", "two"))
    fixed = faulty.answers(place / "fixed.onnx", rows)
    assert not np.allclose(broken, wanted, atol=1e-2)
    np.testing.assert_allclose(fixed, wanted, rtol=1e-4, atol=1e-4)
    graph = onnx.load(place / "fixed.onnx").graph
    read = {name for node in graph.node for name in node.input}
    assert [t.name for t in graph.initializer if t.name not in read] == []  # what was replaced is gone
    log = "fixed.onnx.patches.json"
    assert run("two.onnx", "--apply", log, "-o", "again.onnx")[0] == 0
    np.testing.assert_array_equal(faulty.answers(place / "again.onnx", rows), fixed)
    code, _, err = run("fixed.onnx", "--undo", log, "-o", "back.onnx")
    assert code == 0
    assert "took back 2 changes" in err
    np.testing.assert_array_equal(faulty.answers(place / "back.onnx", rows), broken)
    # A log fits the file it was made for and no other.
    for words in (["--apply", log], ["--undo", log]):
        code, _, err = run("source.onnx", *words, "-o", "wrong.onnx")
        assert code == 2
        assert "does not fit this network" in err
        assert not (place / "wrong.onnx").exists()


@pytest.mark.usefixtures("at_once")
def test_the_repaired_network_knows_what_was_done_to_it(run: Callable, place: Path) -> None:
    assert run(*GIVEN)[0] == 0
    model = api.load(place / "fixed.onnx")
    step = model.history[-1]
    assert step.action == "repair"
    assert step.options["source"] == "source.onnx"
    assert model.preprocessing == faulty.source().preprocessing
    log = json.loads((place / "fixed.onnx.patches.json").read_text())
    assert log["target_hash"] == api.load(place / "two.onnx").hash
    assert (log["source"], log["target"], log["outcome"]) == ("source.onnx", "two.onnx", "repaired")
    assert [p["evidence"]["fault"] for p in log["patches"]] == ["parameter", "graph"]


@pytest.mark.usefixtures("at_once")
def test_json_holds_everything_and_nothing_else(run: Callable) -> None:
    code, out, _ = run(*GIVEN, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["outcome"] == "repaired"
    assert found["written"] == "fixed.onnx"
    assert found["patch_log"] == "fixed.onnx.patches.json"
    assert found["chosen_rows"] == 20
    assert found["before"]["relative_l2"]["value"] > 0.1 > 1e-3 > found["after"]["relative_l2"]["value"]
    assert [p["fault"] for p in found["patches"]] == ["parameter", "graph"]


@pytest.mark.usefixtures("at_once")
def test_nothing_to_repair_writes_nothing_and_leaves_with_0(run: Callable, place: Path) -> None:
    before = _files(place)
    code, _, err = run("source.onnx", "same.onnx", "--data", "rows.npz", "-o", "fixed.onnx")
    assert code == 0
    assert "nothing to repair" in err
    assert "fixed.onnx was not written" in err
    assert _files(place) == before


@pytest.mark.usefixtures("at_once")
def test_what_cannot_be_repaired_leaves_with_1(
    run: Callable, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlas.verify.repair.job import Mended
    from dlas.verify.repair.strategies.replay import Replay

    monkeypatch.setattr(
        Replay, "mend", lambda self, job: Mended(job.target, [], ["not repaired: x"], ["left: x"])
    )
    code, _, err = run(*GIVEN)
    assert code == 1
    assert "unchanged: on 20 held-out samples" in err
    assert not (place / "fixed.onnx").exists()


@pytest.mark.usefixtures("at_once")
def test_minimal_drops_what_is_not_needed(
    run: Callable, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change beside the repair that moves no answer is taken out again."""
    from dlas.verify.localize import edits
    from dlas.verify.repair.job import Job, Mended
    from dlas.verify.repair.patch import Patch
    from dlas.verify.repair.strategies.replay import Replay

    real = Replay.mend

    def mend(self: Replay, job: Job) -> Mended:
        found = real(self, job)
        graph = found.graph.clone()
        edits.insert_after(graph, "relu", "Identity")
        extra = Patch.between(found.graph, graph, "an idle change")
        return Mended(graph, [*found.patches, extra], found.log, found.notes)

    monkeypatch.setattr(Replay, "mend", mend)
    titles = {}
    for name, words in {"all": [], "least": ["--minimal"]}.items():
        code, out, _ = run(*GIVEN[:-1], f"{name}.onnx", *words, "--json")
        assert code == 0
        titles[name] = [p["title"] for p in json.loads(out)["patches"]]
    assert "an idle change" in titles["all"]
    assert titles["least"] == [t for t in titles["all"] if t != "an idle change"]
    rows = place / "rows.npz"
    np.testing.assert_allclose(
        faulty.answers(place / "least.onnx", rows), faulty.answers(place / "all.onnx", rows), atol=1e-5
    )


# --- what is never overwritten, and never half written -------------------------------------------------------------


@pytest.mark.parametrize("name", ["source.onnx", "two.onnx", "./two.onnx", "there.onnx", "link.onnx"])
def test_nothing_is_overwritten(
    run: Callable, place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the networks were read")

    monkeypatch.setattr("dlas.api.repair", never)
    (place / "there.onnx").write_text("kept")
    (place / "link.onnx").symlink_to(place / "source.onnx")
    before = _files(place)
    code, _, err = run("source.onnx", "two.onnx", "--data", "rows.npz", "-o", name)
    assert code == 2
    assert "exists" in err
    assert "--force" not in err  # which this command does not have
    assert _files(place) == before


def test_an_old_log_is_not_overwritten(run: Callable, place: Path) -> None:
    (place / "fixed.onnx.patches.json").write_text("kept")
    code, _, err = run(*GIVEN)
    assert code == 2
    assert "fixed.onnx.patches.json exists" in err
    assert (place / "fixed.onnx.patches.json").read_text() == "kept"


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", ["fixed.onnx", "fixed.onnx.patches.json"])
def test_a_file_that_came_meanwhile_is_kept(
    run: Callable, place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = api.repair

    def slow(*given: Any, **options: Any) -> Any:
        found = real(*given, **options)
        (place / name).write_text("kept")
        return found

    monkeypatch.setattr("dlas.api.repair", slow)
    before = _files(place)
    code, _, err = run(*GIVEN)
    assert code == 2
    assert f"{name} exists" in err
    assert (place / name).read_text() == "kept"
    assert _files(place).keys() - before.keys() == {name}


@pytest.mark.usefixtures("at_once")
def test_a_folder_that_vanishes_leaves_nothing(
    run: Callable, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "out").mkdir()
    real = api.repair

    def slow(*given: Any, **options: Any) -> Any:
        found = real(*given, **options)
        (place / "out").rmdir()
        return found

    monkeypatch.setattr("dlas.api.repair", slow)
    before = _files(place)
    code, _, err = run(*GIVEN[:-1], "out/fixed.onnx")
    assert code == 2
    assert "cannot write" in err
    assert not (place / "out").exists()
    assert _files(place) == before


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("broken", ["dlas.verify.repair.report.write_log", "dlas.api.save"])
def test_network_and_log_are_written_together_or_not_at_all(
    run: Callable, place: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StorageError("cannot write: No space left on device", "make room")

    monkeypatch.setattr(broken, full)
    before = _files(place)
    code, _, err = run(*GIVEN)
    assert code == 2
    assert "No space left" in err
    assert _files(place) == before


def test_a_folder_that_takes_no_files_is_refused_before_the_work(
    run: Callable, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "locked").mkdir(mode=0o555)
    real = os.access
    # The superuser may write anywhere, whatever the mode says.
    monkeypatch.setattr("os.access", lambda p, mode: Path(p).name != "locked" and real(p, mode))
    code, _, err = run(*GIVEN[:-1], "locked/fixed.onnx")
    assert code == 2
    assert "locked is not writable" in err


# --- input that is not what it should be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["source.onnx", "two.onnx"], "-o"),
        (["source.onnx", "-o", "fixed.onnx"], "target"),
        (["source.onnx", "none.onnx", "-o", "fixed.onnx"], "none.onnx"),
        (["source.onnx", "two.onnx", "-o", "none/fixed.onnx"], "none is not a folder"),
        (["source.onnx", "two.onnx", "-o", "fixed.xyz"], "no format has the ending '.xyz'"),
        (["source.onnx", "two.onnx", "-o", "fixed.onnx", "--rows", "1"], "--rows"),
        (["source.onnx", "two.onnx", "-o", "fixed.onnx", "--strategy", "prayer"], "prayer"),
        (["source.onnx", "two.onnx", "-o", "fixed.onnx", "--apply", "log.json"], "--apply"),
        (["two.onnx", "-o", "fixed.onnx", "--apply", "a.json", "--undo", "b.json"], "--undo"),
        (["two.onnx", "-o", "fixed.onnx", "--apply", "none.json"], "none.json"),
        (["two.onnx", "-o", "fixed.onnx", "--apply", "rows.npz"], "no patch log"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_arguments_leave_with_2(run: Callable, place: Path, words: list[str], message: str) -> None:
    before = _files(place)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert _files(place) == before


@pytest.mark.usefixtures("at_once")
def test_one_sample_is_too_few(run: Callable, place: Path) -> None:
    faulty.write_rows(place / "one.npz", 1)
    code, _, err = run("source.onnx", "two.onnx", "--data", "one.npz", "-o", "fixed.onnx")
    assert code == 2
    assert "two samples" in err


@pytest.mark.usefixtures("at_once")
def test_a_target_with_a_batch_of_its_own(run: Callable, place: Path) -> None:
    proto = onnx.load(place / "pads.onnx")
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    del proto.graph.value_info[:]
    onnx.save(proto, place / "four.onnx")
    code, _, err = run("source.onnx", "four.onnx", "--data", "rows.npz", "-o", "fixed.onnx")
    assert code == 2
    assert "4 samples" in err
    assert not (place / "fixed.onnx").exists()


def test_a_network_with_other_classes_is_refused(run: Callable, place: Path) -> None:
    proto = onnx.load(place / "pads.onnx")
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("linear."):
            array = onnx.numpy_helper.to_array(tensor)[:7]
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.copy(), tensor.name))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(proto, place / "seven.onnx")
    code, _, err = run("source.onnx", "seven.onnx", "--data", "rows.npz", "-o", "fixed.onnx")
    assert code == 2
    assert "seven.onnx gives 7 values per sample, source.onnx gives 10" in err


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda log: log.update(patches=[{}]), "damaged"),
        (lambda log: log.pop("dlas_repair"), "no patch log"),
        (
            lambda log: log["patches"][0]["new"]["nodes"].append({"name": "a", "opType": "Nonsense"}),
            "Nonsense",
        ),
        (lambda log: log["patches"].reverse(), ""),
    ],
    ids=["patch", "version", "operator", "order"],
)
def test_a_log_that_was_tampered_with(
    run: Callable, place: Path, spoil: Callable[[dict[str, Any]], object], message: str
) -> None:
    assert run(*GIVEN)[0] == 0
    path = place / "fixed.onnx.patches.json"
    log = json.loads(path.read_text())
    spoil(log)
    path.write_text(json.dumps(log))
    code, _, err = run("two.onnx", "--apply", path.name, "-o", "again.onnx")
    if message:
        assert code == 2
        assert message in err
        assert not (place / "again.onnx").exists()
    else:  # changes at different places may be made in any order
        np.testing.assert_array_equal(
            faulty.answers(place / "again.onnx", place / "rows.npz"),
            faulty.answers(place / "fixed.onnx", place / "rows.npz"),
        )


def test_a_worker_that_is_killed_is_one_line(
    run: Callable, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = report.run_in_worker
    monkeypatch.setattr(report, "run_in_worker", lambda _, *given, **o: real("localize_traps:die", **o))
    before = _files(place)
    code, out, err = run(*GIVEN)
    assert code not in (0, 3)
    assert out == ""
    assert err.splitlines()[-1].startswith("dlas: ")
    assert "killed" in err
    assert _files(place) == before
