"""What ``dlas data`` says about one data set."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlas.cli.main import run_command
from dlas.core.errors import DataError
from dlas.data.details import described


def picture(height: int, width: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, sizes in (("cat", [(8, 9), (10, 7)]), ("dog", [(4, 5)])):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i, size in enumerate(sizes):
            (tmp_path / "pets" / name / f"{i}.png").write_bytes(picture(*size))
    return tmp_path / "pets"


def test_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.zeros((5, 3, 2), np.float32), y=np.array([0, 2, 2, 0, 2]))
    found = described(tmp_path / "rows.npz")
    assert found is not None
    assert (found.facts.rows, found.samples, found.class_rows) == (5, "3x2 float32", (2, 0, 3))


def test_a_folder_of_images_is_described_itself(folder: Path) -> None:
    found = described(folder)
    assert found is not None
    assert found.facts.classes == ("cat", "dog")
    assert found.class_rows == (2, 1)
    assert found.samples == "PNG images, 4x5 to 8x9 (height x width), RGB"


def test_a_folder_of_data_sets_is_none_itself(folder: Path) -> None:
    assert described(folder.parent) is None


def test_a_file_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", x=np.full((2, 2), np.nan, np.float32))
    found = described(tmp_path / "odd.npz")
    assert found is not None
    assert found.facts.rows == 2
    assert found.facts.problem
    assert found.samples == ""


def test_what_no_loader_reads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="is not a data set"):
        described(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="not found"):
        described(tmp_path / "none.npz")


def test_the_command_describes_one_and_lists_several(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLAS_DATA", str(folder.parent.parent))
    for place in (folder, f"{folder.parent.name}/pets"):
        assert run_command(["data", str(place)]) == 0
        assert "2: cat (2), dog (1)" in capsys.readouterr().out
    assert run_command(["data", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == "8x8x1 uint8"
    assert sum(found["class_rows"]) == found["rows"] == 1797
    assert run_command(["data", folder.parent.name, "--json"]) == 0
    assert {f["name"] for f in json.loads(capsys.readouterr().out)} == {"digits", "pets"}
