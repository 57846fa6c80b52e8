"""What may reach a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from dlas.cli import _shared
from dlas.cli.main import run_command
from dlas.core.errors import DlasError, ModelError
from dlas.core.text import printable

HOSTILE = {
    "escape": "a\x1b[2J\x1b]0;owned\x07b",
    "c1": "a\x9b2J\x90b",
    "carriage": "good\rbad",
    "backspace": "bad\x08\x08\x08good",
    "bidi": "a\u202e\u2066\u2069\u200f\u061cb",
    "invisible": "a\u200b\ufeff\u00adb\U000e0041",
    "separators": "a\u2028b\u2029c",
    "surrogate": "a\udcffb",
    "nul": "a\0b",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_only_visible_characters_remain(text: str) -> None:
    cleaned = printable(text)
    assert all(c.isprintable() for c in cleaned)
    assert cleaned.startswith(text[0])
    cleaned.encode()


def test_ordinary_text_stays() -> None:
    text = "Größe × 3 – naïve 日本語 🙂\n\tnext"
    assert printable(text) == text
    assert printable(text, lines=False) == text.replace("\n\t", "  ")
    assert printable(3.5) == "3.5"


def test_long_text_is_cut_and_counted() -> None:
    assert printable("x" * 10_000_000, 10) == "x" * 10 + "… (9999990 characters more)"


def test_messages_are_short() -> None:
    error = DlasError("x" * 10_000_000, "y" * 10_000_000)
    assert len(str(error)) < 5000


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_nothing_of_it_is_printed(capsys: pytest.CaptureFixture[str], text: str) -> None:
    _shared.say(text)
    _shared.write_text(text)
    _shared.write_table(["name", "[red]head"], [[text, "[bold]x"]], title=f"[link=x]{text}")
    out, err = capsys.readouterr()
    for stream in (out, err):
        assert all(c.isprintable() or c == "\n" for c in stream)
    assert "[bold]x" in out
    assert "[link=x]" in out


def test_json_keeps_every_character(capsys: pytest.CaptureFixture[str]) -> None:
    _shared.write_json(HOSTILE)
    out = capsys.readouterr().out
    assert json.loads(out) == HOSTILE
    assert out.isascii()


@pytest.mark.parametrize("command", [["info"], ["bench"], ["convert"], ["compress"]])
def test_names_in_a_file_do_not_reach_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """Operators, layers and tensors called by escape sequences, in errors and in tables."""
    name = "".join(HOSTILE[k] for k in ("escape", "c1", "bidi", "carriage"))
    for op in ("Relu", f"Fancy{name}"):
        graph = helper.make_graph(
            [helper.make_node(op, ["x"], [name], name=name), helper.make_node("Relu", [name], ["y"])],
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        proto.producer_name = name
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        rest = {
            "convert": [str(tmp_path / "out.onnx")],
            "compress": ["float16"],
            "bench": ["--quick", "--backends", "onnxruntime"],
        }.get(command[0], [])
        assert run_command([*command, str(tmp_path / "m.onnx"), *rest]) in (0, 2)
        out, err = capfd.readouterr()
        assert all(c.isprintable() or c in "\n\t" for c in out + err)


def test_an_error_on_the_command_line_is_one_clean_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m\x1b[2J.onnx").write_bytes(b"\x08junk")
    assert run_command(["info", str(tmp_path / "m\x1b[2J.onnx")]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert err.count("\n") == 1


def test_a_name_of_ten_million_letters_is_no_message() -> None:
    assert len(ModelError(f"tensor {'x' * 10_000_000!r}").message) < 2100
