"""``dlas profile``: what it prints and writes, and what it refuses with one line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dlas.cli._engine import engine_choice, engine_target
from dlas.cli.main import run_command
from dlas.core.errors import OptionError, UnknownNameError
from dlas.kernels.extension import missing_native

needs_native = pytest.mark.skipif(bool(missing_native()), reason="the native kernels were not built")


@needs_native
def test_a_profile_is_a_table_files_and_a_page(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    page, table = tmp_path / "page.html", tmp_path / "p.csv"
    command = [
        "profile",
        str(net),
        "--policy",
        "rules",
        "--runs",
        "5",
        "-o",
        str(table),
        "--report",
        str(page),
    ]
    assert run_command(command) == 0
    printed = capsys.readouterr()
    assert "kernel" in printed.out.splitlines()[0]
    assert "whole network" in printed.err
    assert "GFLOP/s" in printed.err
    rows = list(csv.DictReader(table.open()))
    assert rows
    assert all(row["name"] in printed.out for row in rows)
    assert "roofline-chart" in page.read_text()
    line = refused(*command)
    assert "p.csv exists" in line
    assert run_command([*command, "--force", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backend"] == "engine"
    assert found["layers"][0]["fraction_of_attainable"] > 0
    assert {level for row in found["layers"] if (level := row["level"])} <= {"L1", "L2", "L3", "DRAM"}


@needs_native
def test_rules_choose_kernels_and_a_trace_is_written(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "p.trace.json"
    command = [
        "profile",
        str(net),
        "--policy",
        "rules",
        "--impl",
        "Conv=im2col-gemm",
        "--runs",
        "2",
        "--json",
    ]
    assert run_command([*command, "-o", str(trace)]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert {row["impl"] for row in layers if row["op"] == "Conv"} == {"im2col-gemm"}
    assert any(e["ph"] == "X" for e in json.loads(trace.read_text())["traceEvents"])


def test_other_back_ends_keep_their_simple_table(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["profile", str(net), "--backend", "onnxruntime"]) == 0
    assert "share" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["NET", "-o", "p.xml"], ".trace.json"),
        (["NET", "-o", "nowhere/p.json"], "nowhere"),
        (["NET", "--report", "nowhere/p.html"], "nowhere"),
        (["NET", "--impl", "Conv=gspk"], "gspc"),
        (["NET", "--impl", "gspc"], "OP=NAME"),
        (["NET", "--policy", "rule"], "rules"),
        (["NET", "--policy", "rules", "--backend", "onnxruntime"], "engine"),
        (["NET", "--backend", "onnxruntime", "-o", "p.json"], "engine"),
        (["NET", "--isa", "x86-64-v3", "--target", "host:isa=x86-64-v2"], "--isa"),
        (["NET", "--runs", "0"], "runs"),
        (["none.onnx"], "none.onnx"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], word: str, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert word in refused("profile", *[str(net) if a == "NET" else a for a in arguments])
    assert list(tmp_path.iterdir()) == []


@needs_native
@pytest.mark.parametrize(
    ("rule", "word"),
    [("node:strem=gspc", "node"), ("Convv=gspc", "operator"), ("Gemm=gspc", "gspc cannot compute Gemm")],
)
def test_a_rule_that_covers_nothing_is_one_line(
    rule: str, word: str, net: Path, refused: Callable[..., str]
) -> None:
    assert word in refused("profile", str(net), "--policy", "rules", "--impl", rule)


def test_options_of_the_command_line_become_options_of_the_engine() -> None:
    assert engine_choice("engine", "rules", ["Conv=gspc", "node:/a=gemm"]) == (
        "engine:impl=Conv=gspc+node:/a=gemm,policy=rules"
    )
    assert engine_choice("engine:exact=true", "measure") == "engine:exact=true,policy=measure"
    assert engine_choice("tvm:opt=O3") == "tvm:opt=O3"
    assert engine_target("host", "x86-64-v3") == "host:isa=x86-64-v3"
    assert engine_target("host", "") == "host"
    with pytest.raises(OptionError):
        engine_choice("tvm", "rules")
    with pytest.raises(UnknownNameError):
        engine_choice("engine", "", ["Conv=nothing"])
