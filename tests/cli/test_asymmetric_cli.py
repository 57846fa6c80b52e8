"""``dlas asymmetric``: overflows and gains of a network, each figure with its source, and one line for bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dlas import api
from dlas.cli.asymmetric import distances
from dlas.cli.main import run_command
from dlas.core.errors import OptionError
from dlas.kernels.asymmetric.survey import SurveyOptions
from dlas.testing import models as networks

DIGITS = ("asymmetric", "digits-cnn", "--data", "digits", "--rows", "6", "--pixels", "40")


@pytest.mark.slow
def test_two_tables_and_what_they_come_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(list(DIGITS)) == 0
    printed = capsys.readouterr()
    assert "(simulated)" in printed.out
    assert "(estimated)" in printed.out
    assert "64 x 24 x 216" in printed.out
    for word in ("spill none: 0 of", "spill 32: 0 of", "with the instruction", "array of 16 x 16"):
        assert word in printed.err


def test_json_has_a_source_for_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    command = [*DIGITS, "--spill", "none,64,none", "--accumulator", "wrap", "--json"]
    assert run_command(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["network"], found["samples"], found["accumulator"]) == ("digits-cnn", 6, "wrap")
    assert list(found["overflow"]) == ["none", "64"]
    for layer in found["layers"]:
        assert layer["speedup"]["source"] == layer["array_speedup"]["source"] == "estimated"
        assert all(
            f["source"] == "simulated" for f in layer["overflow"]["64"].values() if isinstance(f, dict)
        )
    conv1, linear = found["layers"][0], found["layers"][-1]
    assert (conv1["m"], conv1["n"], conv1["k"]) == (64, 24, 9)
    assert (linear["m"], linear["n"], linear["k"]) == (1, 10, 192)
    assert conv1["overflow"]["none"]["of_additions"]["n"] == 40 * 24 * 2
    assert 1.5 < found["speedup"]["value"] < 2


def test_the_machine_and_the_array_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    def speedups(*more: str) -> tuple[float, float]:
        assert run_command([*DIGITS, "--json", *more]) == 0
        found = json.loads(capsys.readouterr().out)
        return found["speedup"]["value"], found["array_speedup"]["value"]

    plain = speedups()
    wide = speedups("--machine", "vector-bits=512", "--array", "columns=64")
    assert wide[0] < plain[0]  # 24 columns fill less of a wider tile
    assert wide[1] < plain[1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--spill", "none,12"), "multiples of 8"),
        (("--spill", "64,-8"), "--spill"),
        (("--spill", ""), "--spill"),
        (("--accumulator", "int32"), "wrap or sat"),
        (("--tolerance", "nan"), "tolerance"),
        (("--machine", "spill=8"), "--spill"),
        (("--machine", "vector_bits=100"), "vector_bits"),
        (("--machine", "speed=2"), "speed"),
        (("--array", "rows=0"), "rows"),
        (("--array", "rows"), "KEY=VALUE"),
    ],
)
def test_wrong_options_are_one_line(
    arguments: tuple[str, str], word: str, refused: Callable[..., str]
) -> None:
    assert word in refused(*DIGITS, *arguments)


def test_networks_and_data_that_do_not_do(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "--data" in refused("asymmetric", "digits-cnn")
    assert "no-such" in refused("asymmetric", "digits-cnn", "--data", "no-such")
    assert "no-such.onnx" in refused("asymmetric", str(tmp_path / "no-such.onnx"), "--data", "digits")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(networks.residual().to_bytes()[:500])
    refused("asymmetric", str(cut), "--data", "digits")
    wide = tmp_path / "wide.npz"
    np.savez(wide, x=np.zeros((3, 7), np.float32))
    refused("asymmetric", "digits-cnn", "--data", str(wide))
    broken = tmp_path / "nan.npz"
    np.savez(broken, x=np.full((3, 1, 8, 8), np.nan, np.float32))
    refused("asymmetric", "digits-cnn", "--data", str(broken))


def test_distances() -> None:
    assert distances("none, 64,none,8") == (None, 64, 8)
    for text in ("", "none,", "1e3", "²", "64;32"):
        with pytest.raises(OptionError, match="--spill"):
            distances(text)


def test_from_python() -> None:
    found = api.asymmetric("digits-cnn", "digits", rows=5, options=SurveyOptions(rows=30, spills=(None,)))
    assert found.samples == 5
    assert found.overflow(None).outputs == sum(s.found.stats[None].outputs for s in found.layers)
    with pytest.raises(OptionError, match="data"):
        api.asymmetric("digits-cnn", "")
