"""``dlas info`` on an architecture: what it would be made of, without a file."""

from __future__ import annotations

import json

import pytest

from dlas.cli.main import run_command


def test_an_architecture_is_shown_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["info", "digits-cnn:width=4", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["figures"]["params"]["value"] < 2000


def test_an_option_out_of_range_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["info", "vit:width=97"]) == 2
    told = capsys.readouterr().err
    assert "multiple of the number of heads (3)" in told
    assert told.count("\n") <= 2


def test_bad_options_of_the_search_end_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["compress", "digits-cnn", "cptv", "--bits", "5", "--plan"]) == 2
    assert "bits" in capsys.readouterr().err
    assert run_command(["compress", "digits-cnn", "cptv:unit=attention", "--plan"]) == 2
    assert "unit=layer" in capsys.readouterr().err
