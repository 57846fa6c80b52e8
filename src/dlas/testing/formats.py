"""Conformance suite of file formats that can be read and written.

Inherit :class:`FormatSuite` in a test module and set ``format``; the tests write the tiny networks of
``dlas.testing.models`` and read them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from dlas.core.errors import ModelError
from dlas.graph.format import Format, formats, load_model, save_model
from dlas.graph.model import Model
from dlas.graph.reference import Reference
from dlas.testing import models
from dlas.testing.backends import FORMS, sqnr_db


class FormatSuite:
    """What every format that can be written must do.

    Class attributes:
        format: Registered name under test.
        floors_db: Least SQNR of the network read back, by network form.
    """

    format: ClassVar[str]
    floors_db: ClassVar[Mapping[str, float]] = {"float": 100, "nhwc": 100, "half": 50, "quantized": 30}

    @pytest.fixture
    def member(self) -> type[Format]:
        """The format; skips where its library is missing."""
        kind = formats.get(self.format)
        if kind.missing():
            pytest.skip(f"{self.format} {kind.missing()}")
        return kind

    @pytest.fixture
    def written(self, member: type[Format], tmp_path: Path) -> Path:
        """A file with the float network."""
        return save_model(models.residual(), tmp_path / f"net{member.suffixes[0]}").path

    @pytest.mark.parametrize("form", list(FORMS))
    def test_what_is_read_back_computes_the_same(
        self, member: type[Format], form: str, tmp_path: Path
    ) -> None:
        """Every form of the network, up to the axis order of the file's inputs."""
        model = FORMS[form]()
        save_model(model, tmp_path / f"net{member.suffixes[0]}")
        loaded = load_model(tmp_path / f"net{member.suffixes[0]}")
        image = models.images(1, seed=5, nhwc=form == "nhwc")
        found = _answers(loaded, image if _same_axes(model, loaded) else image.transpose(0, 2, 3, 1))
        assert sqnr_db(_answers(model, image), found) >= self.floors_db[form]

    def test_it_is_recognised_by_its_head(self, member: type[Format], written: Path) -> None:
        """And another file of the same ending is refused."""
        assert member.recognises(written.read_bytes()[:64])
        written.write_bytes(b"this is no network at all, only a text of sixty-four characters.")
        with pytest.raises(ModelError):
            load_model(written)

    @pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
    def test_a_truncated_file_is_one_line(self, written: Path, kept: float) -> None:
        """At any length."""
        content = written.read_bytes()
        written.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(ModelError) as caught:
            load_model(written)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_is_one_line(self, member: type[Format], tmp_path: Path) -> None:
        """With what to do."""
        with pytest.raises(ModelError, match="no such file"):
            load_model(tmp_path / f"none{member.suffixes[0]}")

    def test_writing_twice_gives_the_same_bytes(self, member: type[Format], tmp_path: Path) -> None:
        """A file can be told by its hash."""
        first, second = (tmp_path / f"{n}{member.suffixes[0]}" for n in "ab")
        save_model(models.residual(), first)
        save_model(models.residual(), second)
        assert first.read_bytes() == second.read_bytes()

    def test_it_knows_where_it_came_from(self, member: type[Format], written: Path) -> None:
        """Source names the format and carries the hash of the file, but no folder of this machine."""
        source = load_model(written).source
        assert source["format"] == member.name
        assert len(source["sha256"]) == 64
        assert "/" not in source["path"]


def _same_axes(model: Model, loaded: Model) -> bool:
    return model.inputs[0].shape[1:] == loaded.inputs[0].shape[1:]


def _answers(model: Model, image: np.ndarray) -> np.ndarray:
    with Reference(model, level="disable") as reference:
        found = reference.run({model.inputs[0].name: np.ascontiguousarray(image)})
    return found[model.outputs[0].name]
