from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dlas.core.errors import DataError, UnknownNameError
from dlas.data.find import find_datasets, load_dataset


@pytest.fixture
def shelf(tmp_path):
    """``tiny-train.npz`` (20 rows), ``tiny-test.npz`` (10 rows), ``whole.npz`` (200 rows), a folder, a broken file."""
    rng = np.random.default_rng(0)
    for name, rows in (("tiny-train", 20), ("tiny-test", 10), ("whole", 200)):
        np.savez(
            tmp_path / f"{name}.npz", x=rng.integers(0, 255, (rows, 4, 4), np.uint8), y=np.arange(rows) % 2
        )
    (tmp_path / "deep" / "pictures").mkdir(parents=True)
    (tmp_path / "deep" / "pictures" / "a.png").write_bytes(b"a")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / ".hidden.npz").write_bytes(b"")
    return tmp_path


def test_paths_are_found_as_given_below_a_folder_and_below_dlas_data(shelf, monkeypatch):
    assert len(load_dataset(shelf / "tiny-test.npz")) == 10
    assert len(load_dataset("tiny-test.npz", folder=shelf)) == 10
    with pytest.raises(DataError, match=r"data set 'tiny-test.npz' not found; looked for"):
        load_dataset("tiny-test.npz")
    monkeypatch.setenv("DLAS_DATA", str(shelf))
    assert len(load_dataset("tiny-test.npz")) == 10
    monkeypatch.chdir(shelf)
    assert len(load_dataset(Path("deep/../tiny-test.npz"))) == 10


def test_splits_by_name_of_the_file(shelf):
    assert len(load_dataset(shelf / "tiny", "train")) == 20
    assert len(load_dataset(shelf / "tiny-test.npz", "test")) == 10
    with pytest.raises(DataError, match="is the test split, but 'train' was asked for"):
        load_dataset(shelf / "tiny-test.npz", "train")
    with pytest.raises(DataError, match="not found"):
        load_dataset(shelf / "tiny")
    with pytest.raises(UnknownNameError, match="did you mean 'train'"):
        load_dataset(shelf / "tiny", "trian")


def test_split_of_a_whole_set(shelf):
    train, test = (load_dataset(shelf / "whole.npz", name) for name in ("train", "test"))
    assert sorted([*train.rows, *test.rows]) == list(range(200))
    assert 140 < len(train) < 180


def test_split_folders(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        (tmp_path / "set" / split).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "set" / split / f"{i}.png").write_bytes(b"x")
    assert len(load_dataset(tmp_path / "set", "train")) == 3
    assert len(load_dataset(tmp_path / "set", "test")) == 1
    with pytest.raises(DataError, match="holds the splits test, train"):
        load_dataset(tmp_path / "set")


def test_digits_have_a_fixed_test_part():
    test = load_dataset("digits", "test")
    assert len(load_dataset("digits")) == 1797
    assert len(test) + len(load_dataset("digits", "train")) == 1797
    assert test.rows[:5].tolist() == DIGITS_TEST_BEGINS
    assert np.bincount(test.labels).min() > 20


# The accuracy of the embedded model is stated for this very part, so it must not move.
DIGITS_TEST_BEGINS = [0, 1, 4, 7, 14]


def test_what_no_loader_reads(shelf):
    with pytest.raises(DataError, match=r"readme.txt is not a data set that dlas reads.*Parquet"):
        load_dataset(shelf / "readme.txt")


def test_finding_lists_everything_with_its_problem(shelf):
    found = {facts.name: facts for facts in find_datasets(shelf)}
    assert sorted(found) == ["broken", "digits", "pictures", "tiny-test", "tiny-train", "whole"]
    assert "cannot be read" in found["broken"].problem
    assert (found["tiny-test"].rows, found["tiny-test"].kind, found["tiny-test"].split) == (10, "npz", "test")
    assert found["pictures"].kind == "image-folder"
    assert not found["pictures"].problem


def test_finding_without_and_with_a_wrong_folder(monkeypatch, shelf):
    monkeypatch.delenv("DLAS_DATA", raising=False)
    assert [facts.name for facts in find_datasets()] == ["digits"]
    monkeypatch.setenv("DLAS_DATA", str(shelf))
    assert len(find_datasets()) == 6
    with pytest.raises(DataError, match="is not a folder"):
        find_datasets(Path(os.devnull))
