"""``dlas bench``: limits, layers, the page, and the roofline of this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dlas.cli.main import run_command
from dlas.kernels.extension import missing_native

needs_native = pytest.mark.skipif(bool(missing_native()), reason="the native kernels were not built")


@needs_native
def test_bench_explains_layer_by_layer_and_writes_a_page(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    page = tmp_path / "bench.html"
    command = [
        "bench",
        str(net),
        "--backends",
        "engine,onnxruntime,litert",
        "--policy",
        "rules",
        "--quick",
        "--explain",
    ]
    assert run_command([*command, "--report", str(page)]) == 0
    printed = capsys.readouterr()
    assert "of the limit" in printed.out
    assert "engine:policy=rules ms" in printed.out
    assert printed.err.count("mislead") == 1
    assert "loses" in printed.err
    assert "litert: no per-layer times" in printed.err
    text = page.read_text()
    assert "ratios-0" in text
    assert "Layer by layer" in text
    assert "exists" in refused(*command, "--report", str(page))
    assert run_command([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    engine = next(row for row in found["rows"] if row["backend"].startswith("engine"))
    assert engine["figures"]["gflops"]["value"] > 0
    assert engine["figures"]["limit_fraction"]["unit"] == "fraction"
    assert min(row["figures"]["to_fastest"]["value"] for row in found["rows"]) == 1.0
    (explanation,) = found["explanations"]
    assert any(len(line["milliseconds"]) == 2 for line in explanation["lines"])


@needs_native
def test_the_limits_of_the_machine_are_measured_and_remembered(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", "roofline", "--json"]) == 0
    (first,) = json.loads(capsys.readouterr().out)
    assert first["peaks"]["fp32"]["value"] > 1
    assert first["bandwidths"]["l1"]["value"] > first["bandwidths"]["dram"]["value"]
    assert run_command(["bench", "roofline", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [first]
    assert run_command(["bench", "roofline", "--fresh", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) != [first]
    assert run_command(["bench", "roofline"]) == 0
    assert "float32 multiply-add" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["NET", "--impl", "Conv=gspc", "--backends", "onnxruntime"], "engine"),
        (["NET", "--policy", "fast"], "portfolio"),
        (["NET", "--impl", "Conv=gspk"], "gspc"),
        (["NET", "--report", "nowhere/b.html"], "nowhere"),
        (["none.onnx", "--explain"], "none.onnx"),
        (["roofline", "--threads", "x"], "--threads"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], word: str, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert word in refused("bench", *[str(net) if a == "NET" else a for a in arguments])
    assert list(tmp_path.iterdir()) == []
