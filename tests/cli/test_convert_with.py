"""``dlas convert --with`` and the side environments of ``dlas doctor``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlas.cli.main import run_command
from dlas.core.environments import BuildError, SideEnvironment
from dlas.core.figure import Outcome
from dlas.runtime.converter import Converted
from dlas.runtime.converters.onnx2tf import Onnx2tf
from dlas.testing import models


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(models.residual().to_bytes())
    return path


def stand_in(monkeypatch: pytest.MonkeyPatch, make: object, **facts: object) -> None:
    """onnx2tf as far as the command line can see it."""

    def convert(self: Onnx2tf, source: Path, target: Path, **_: object) -> Converted:
        if callable(make):
            make(source, target)
        return Converted(**{"status": Outcome.OK, "versions": {"onnx2tf": "1.29.24"}, **facts})  # type: ignore[arg-type]

    monkeypatch.setattr(Onnx2tf, "convert", convert)


def ours(source: Path, target: Path) -> None:
    from dlas.graph.format import load_model, save_model

    save_model(load_model(source), target)


def spoilt(source: Path, target: Path) -> None:
    """A file whose weights are others."""
    import onnx

    from dlas.graph.format import save_model
    from dlas.graph.model import Model

    proto = onnx.load(source)
    for weight in proto.graph.initializer:
        if len(weight.dims) == 4:
            array = onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(-3 * array[::-1].copy(), weight.name))
    save_model(Model.from_proto(proto), target)


def test_a_right_file(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, ours)
    target = tmp_path / "net.tflite"
    assert run_command(["convert", str(net), str(target), "--with", "onnx2tf", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["made_by"]["versions"] == {"onnx2tf": "1.29.24"}
    assert found["check"]["paths"][0]["verdict"] == "equal"
    assert any("made by onnx2tf" in note for note in found["notes"])


def test_a_wrong_file_leaves_with_one(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, spoilt)
    assert run_command(["convert", str(net), str(tmp_path / "net.tflite"), "--with", "onnx2tf"]) == 1


def test_a_failure_is_one_line(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(
        monkeypatch, None, status=Outcome.CRASH, reason="killed by SIGSEGV", stderr_tail="first\nlast words"
    )
    code = run_command(["convert", str(net), str(tmp_path / "net.tflite"), "--with", "onnx2tf"])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 1
    assert last == "dlas: onnx2tf 1.29.24: crash: killed by SIGSEGV (last words)"
    assert not (tmp_path / "net.tflite").exists()


def test_an_ending_that_dlas_does_not_read_is_not_checked(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, lambda source, target: target.write_text("net"))
    assert run_command(["convert", str(net), str(tmp_path / "net.param"), "--with", "onnx2tf"]) == 0
    assert "not checked: net.param" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--with", "onnx2tv"], "did you mean 'onnx2tf'"),
        (["--with", "onnx2tf:version=2"], "1.29, 1.28"),
        (["--with", "onnx2tf"], "--make-env onnx2tf"),
        (["--with", "onnx2tf", "--write", "batch=2"], "behind its name"),
        (["--with", "onnx-legacy"], "reads .th"),
    ],
)
def test_refusals(
    net: Path, tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_command(["convert", str(net), str(tmp_path / "net.tflite"), *arguments])
    error = capsys.readouterr().err
    assert code == 2
    assert words in error
    assert "Traceback" not in error


def test_a_target_that_exists_is_refused_first(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, ours)
    target = tmp_path / "net.tflite"
    target.write_bytes(b"old")
    assert run_command(["convert", str(net), str(target), "--with", "onnx2tf"]) == 2
    assert "exists" in capsys.readouterr().err
    assert target.read_bytes() == b"old"
    assert run_command(["convert", str(net), str(target), "--with", "onnx2tf", "--force"]) == 0


def test_the_second_file_of_a_converter_is_not_replaced_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.bin").write_bytes(b"old")
    (tmp_path / "net.pt2").write_bytes(b"PK")
    assert (
        run_command(["convert", str(tmp_path / "net.pt2"), str(tmp_path / "net.param"), "--with", "pnnx"])
        == 2
    )
    assert "net.bin exists" in capsys.readouterr().err


def test_doctor_lists_side_environments(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", "--quick", "--json"]) == 0
    found = {e["name"]: e for e in json.loads(capsys.readouterr().out)["environments"]}
    assert {"onnx2tf", "onnx2tf-1.28", "litert-torch", "ncnn", "tflite2onnx"} == set(found)
    assert {e["state"] for e in found.values()} == {"not built"}
    assert found["onnx2tf"]["versions"]["tensorflow"] == "2.19.0"
    assert run_command(["doctor", "--quick"]) == 0
    assert "not built" in capsys.readouterr().out


def test_doctor_builds_what_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[str] = []

    def build(self: SideEnvironment, tell: object = None) -> Path:
        built.append(self.name)
        if self.name == "litert-torch":
            raise BuildError(
                "the environment litert-torch cannot install its packages: none", "see the network"
            )
        return self.folder

    monkeypatch.setattr(SideEnvironment, "build", build)
    assert run_command(["doctor", "--make-env", "onnx2tf", "--make-env", "ncnn"]) == 0
    assert built == ["onnx2tf", "ncnn"]
    assert "onnx2tf is built" in capsys.readouterr().err
    assert run_command(["doctor", "--make-env", "ncnn", "--make-env", "nothing"]) == 2
    assert built == ["onnx2tf", "ncnn"]  # all names are looked up first
    assert "unknown environment 'nothing'" in capsys.readouterr().err
    assert run_command(["doctor", "--make-env", "litert-torch"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
