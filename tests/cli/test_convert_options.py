"""Options of the two formats in ``dlas convert``."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlas.cli.main import run_command
from dlas.core.errors import DlasError
from dlas.core.files import only_new
from dlas.graph.format import load_model, save_model
from dlas.testing import models


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(models.residual().to_bytes())
    return path


def test_an_option_reaches_the_writer(net: Path, tmp_path: Path) -> None:
    assert (
        run_command(["convert", str(net), str(tmp_path / "net.tflite"), "--write", "batch=3", "--no-check"])
        == 0
    )
    loaded = load_model(tmp_path / "net.tflite", dynamic_batch=False)
    assert loaded.inputs[0].shape[0] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--write", "batch=0"], ">= 1"),
        (["--write", "bach=2"], "did you mean 'batch'"),
        (["--write", "batch"], "KEY=VALUE"),
        (["--read", "max_nodes=3"], "nodes"),
        (["--read", "allow_nan=perhaps"], "bool"),
        (["--read", "external_above=0"], "options for reading it, which are allow_nan, max_bytes, max_nodes"),
        (["--write", "dynamic_batch=false"], "options for writing it, which are batch"),
        (["--read", "batch=2"], "unknown option of onnx 'batch'"),
        (["--architecture", "digits-cnn"], "unknown option of onnx 'architecture'"),
        (["--split", "test"], "without the path or name of a data set"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], words: str
) -> None:
    assert run_command(["convert", str(net), str(tmp_path / "net.tflite"), *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dlas: ")]
    assert words in line
    assert not (tmp_path / "net.tflite").exists()


def test_an_option_for_other_files_of_the_format_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "net.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    target = tmp_path / "net.onnx"
    arguments = ["convert", str(tmp_path / "net.h5"), str(target), "--read", "signature=serving"]
    assert run_command(arguments) == 2
    assert "which are allow_nan, max_bytes (this one says nothing about it)" in capsys.readouterr().err


def test_an_array_is_named_for_reading_only(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_command(["convert", str(net), str(tmp_path / "net.c"), "--write", "array=b"]) == 2
    assert "options for writing it, which are batch (this one is for reading)" in capsys.readouterr().err


def test_the_check_reads_the_array_that_was_converted(net: Path, tmp_path: Path) -> None:
    one, both = tmp_path / "one.c", tmp_path / "both.c"
    assert run_command(["convert", str(net), str(one), "--no-check"]) == 0
    text = one.read_text()
    both.write_text(text + text.replace("net_model", "other_model"))
    assert run_command(["convert", str(both), str(tmp_path / "a.onnx")]) == 2
    assert run_command(["convert", str(both), str(tmp_path / "a.onnx"), "--read", "array=other_model"]) == 0


def test_the_list_says_what_an_option_is_for(capsys: pytest.CaptureFixture) -> None:
    assert run_command(["list", "formats"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "batch=1 (writing); dynamic_batch=True (reading)" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "--architecture", "digits-cnn"], "unknown option of onnx 'architecture'"),
        (["bench", "--architecture", "digits-cnn"], "unknown option of onnx 'architecture'"),
        (["compare", "--architecture", "digits-cnn"], "no file here is a bare checkpoint"),
        (["compare", "--split", "test"], "without the path or name of a data set"),
        (["compress", "float16", "--split", "test"], "without the path or name of a data set"),
        (["compress", "float16", "--rows", "9"], "none without --data"),
    ],
)
def test_what_would_be_ignored_is_refused(
    net: Path, capsys: pytest.CaptureFixture, arguments: list[str], words: str
) -> None:
    command, *rest = arguments
    assert run_command([command, str(net), *rest]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dlas: ")]
    assert words in line


@pytest.mark.parametrize("command", [["convert", "NET", "T"], ["compress", "NET", "float16", "-o", "T"]])
def test_a_target_that_appears_meanwhile_is_kept(
    net: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    target = tmp_path / "new.tflite"
    import dlas.graph.format

    make = dlas.graph.format.format_for

    def raced(path: Path) -> object:
        member = make(path)
        if path == target:
            save = member.save
            monkeypatch.setattr(
                member, "save", lambda *given: (target.write_text("another's"), save(*given))[1]
            )
        return member

    monkeypatch.setattr(dlas.graph.format, "format_for", raced)
    words = [str(net) if w == "NET" else str(target) if w == "T" else w for w in command]
    assert run_command(words) == 2
    assert "new.tflite exists" in capsys.readouterr().err
    assert target.read_text() == "another's"
    monkeypatch.undo()
    assert run_command([*words, "--force"]) == 0


def test_weights_beside_a_target_that_appears_meanwhile_are_kept(net: Path, tmp_path: Path) -> None:
    target, beside = tmp_path / "new.onnx", tmp_path / "new.onnx.data"
    target.write_text("another's")
    beside.write_text("another's")
    with only_new(target), pytest.raises(DlasError, match=r"new\.onnx exists"):
        save_model(load_model(net), target, external_above=0)
    assert beside.read_text() == "another's"
