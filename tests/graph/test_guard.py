"""The front door: whatever a reader does, the caller gets a Model or one line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dlas.core.errors import DlasError, MissingDependencyError, ModelError, OptionError, UnsupportedError
from dlas.graph.format import formats, load_model
from dlas.graph.guard import import_model
from dlas.graph.reference import predict
from dlas.testing import models

PLUGIN = '''
import os, signal, time
from typing import ClassVar
from dlas.core.errors import MissingDependencyError, OptionError, UnsupportedError
from dlas.graph.format import Format


class Trap(Format):
    """Does to its process what the first word of the file says."""

    name = "trap"
    summary = "a reader that misbehaves"
    suffixes: ClassVar = (".trap",)
    load_seconds: ClassVar = 5.0
    load_memory: ClassVar = 600 * 2**20

    def load(self, path):
        word = path.read_text()
        if word == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "hang":
            time.sleep(600)
        if word == "eat":
            held = [b"x" * 2**20 for _ in range(2000)]
            time.sleep(600)
        if word == "defect":
            raise KeyError("nobody thought of it")
        if word == "missing":
            raise MissingDependencyError("nothing", "all", "format trap")
        if word == "option":
            raise OptionError("trap", 3, "something else")
        raise UnsupportedError("operators: A, B", "export it again")
'''


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that makes its reader misbehave; the reader is a plug-in that parent and child both find."""
    site = tmp_path / "site"
    (site / "trap_plugin-1.dist-info").mkdir(parents=True)
    (site / "trap_plugin.py").write_text(PLUGIN)
    (site / "trap_plugin-1.dist-info" / "METADATA").write_text("Name: trap-plugin\nVersion: 1\n")
    (site / "trap_plugin-1.dist-info" / "entry_points.txt").write_text(
        "[dlas.format]\ntrap = trap_plugin:Trap\n"
    )
    monkeypatch.syspath_prepend(str(site))
    # The registry has looked for plug-ins already; it looks again, and forgets the trap afterwards. What it imports
    # meanwhile would be forgotten with it.
    formats.members()
    monkeypatch.setattr(formats, "_places", None)
    monkeypatch.setattr(formats, "_members", dict(formats._members))

    def make(word: str) -> Path:
        path = tmp_path / "file.trap"
        path.write_text(word)
        return path

    return make


def test_the_network_arrives_whole(tmp_path: Path) -> None:
    model = models.residual()
    path = tmp_path / "net.onnx"
    path.write_bytes(model.to_bytes())
    direct, guarded = load_model(path), import_model(path)
    assert guarded.hash == direct.hash
    assert (guarded.name, guarded.source, guarded.history) == (direct.name, direct.source, direct.history)
    assert guarded.preprocessing == direct.preprocessing
    rows = models.images(3)
    np.testing.assert_array_equal(predict(guarded, rows), predict(direct, rows))


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("crash", "failed: killed by SIGSEGV"),
        ("hang", "took too long: no answer within 5 s"),
        ("eat", "failed: used more than 0.586 GiB of memory"),
        ("defect", "failed: KeyError: 'nobody thought of it'"),
    ],
)
def test_what_a_reader_does_to_its_process_becomes_one_line(trap, word: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        import_model(trap(word))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "download or export it again" in caught.value.hint


@pytest.mark.parametrize(
    ("word", "kind", "hint"),
    [
        ("refuse", UnsupportedError, "export it again"),
        ("missing", MissingDependencyError, "pip install 'dlas[all]'"),
        ("option", OptionError, ""),
    ],
)
def test_a_refusal_keeps_its_class_and_hint(trap, word: str, kind: type[DlasError], hint: str) -> None:
    with pytest.raises(kind) as caught:
        import_model(trap(word))
    assert type(caught.value) is kind
    assert caught.value.hint == hint


def test_a_missing_file_is_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        import_model(tmp_path / "none.onnx")


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        import_model(tmp_path / "net.onnx")


def test_a_file_of_a_folder_that_is_a_network_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(ModelError, match="name that folder") as caught:
        import_model(tmp_path / "saved_model.pb")
    assert str(tmp_path) in caught.value.hint
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "frozen.pb").write_bytes(b"\x08\x01")
    with pytest.raises(ModelError, match="the folder of a SavedModel"):
        import_model(other / "frozen.pb")
