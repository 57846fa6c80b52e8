"""``dlas hw``: networks on accelerators, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dlas.cli.main import run_command
from dlas.kernels.extension import native

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped network in int8, as TFLite."""
    path = tmp_path_factory.mktemp("hw") / "digits-int8.tflite"
    assert run_command(["compress", "digits-cnn", "int8", "--data", "digits", "-o", str(path)]) == 0
    return path


def test_run_tells_layers_cycles_and_that_nothing_changed(
    quantised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    command = ["hw", "run", str(quantised), "--accel", "vm:units=2", "--data", "digits", "--rows", "12"]
    capsys.readouterr()
    assert run_command([*command, "--report", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["identical_rows"]["value"] == 1.0
    assert found["figures"]["top1"]["value"] == found["figures"]["top1_cpu"]["value"] > 0.8
    assert {f["source"] for f in found["figures"].values()} == {"measured", "simulated", "estimated"}
    terms = [found["figures"][f"{name}_ms"]["value"] for name in ("accelerator", "dma", "cpu")]
    assert found["figures"]["latency_ms"]["value"] == pytest.approx(sum(terms))
    assert found["figures"]["latency_ms"]["source"] == "estimated"
    on = [layer for layer in found["layers"] if layer["on"] == "accelerator"]
    assert sum(layer["cycles"]["total"] for layer in on) == found["cycles"]["total"] > 0
    assert all(0 < layer["utilisation"] <= 1 for layer in on)
    text = page.read_text()
    assert text.count("<rect") >= 4 * len(on)
    assert all(layer["name"] in text for layer in found["layers"])
    assert "<script" not in text


def test_run_prints_a_table(quantised: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["hw", "run", str(quantised), "--accel", "sa"]) == 0
    told = capsys.readouterr()
    assert "accelerator" in told.out
    assert "100.0 % of" in told.err
    assert "not compared with its RTL" in told.err


def test_list_and_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["hw", "list", "--json"]) == 0
    assert {"vm", "sa", "vm-shift"} <= {c["name"] for c in json.loads(capsys.readouterr().out)}
    assert run_command(["hw", "new", "my-array", "--folder", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my_array.py", "test_my_array.py"]
    compile((tmp_path / "my_array.py").read_text(), "my_array.py", "exec")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "digits-cnn"], "not quantised"),
        (["run", "NET", "--accel", "vn"], "vm"),
        (["run", "NET", "--accel", "vm:units=3"], "units"),
        (["run", "NET", "--level", "gate"], "tlm"),
        (["run", "NET", "--accel", "vm-shift"], "not on the levels"),
        (["run", "NET", "--report", "nowhere/page.html"], "nowhere"),
        (["run", "none.tflite"], "none.tflite"),
        (["verify", "vm:rounding=half"], "rounding"),
        (["new", "vm"], "name that no accelerator has"),
        (["new", "My Array"], "lower-case"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], word: str, quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert word in refused("hw", *[str(quantised) if a == "NET" else a for a in arguments])
    assert list(tmp_path.iterdir()) == []
