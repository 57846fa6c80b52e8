"""The command line: what a user types, what it prints, and with which exit code it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import dlas
from dlas.cli.main import run_command
from dlas.core.errors import OptionError
from dlas.core.options import split_choices
from dlas.testing import models as networks


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(networks.residual().to_bytes())
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    from dlas.graph.reference import predict

    x = networks.images(80)
    path = tmp_path / "rows.npz"
    np.savez(path, x=x, y=predict(networks.residual(), x).argmax(1))
    return path


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """Run a command that must fail; returns its one line."""
    assert run_command(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("dlas: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0]


def test_import_and_help_are_light() -> None:
    code = (
        "import sys; import dlas, dlas.cli.main;"
        "heavy = {'torch', 'tvm', 'tensorflow', 'onnx', 'onnxruntime', 'sklearn', 'altair', 'pyarrow', 'numpy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_face_is_small_and_whole() -> None:
    names = [n for n in dlas.__all__ if n != "__version__"]
    assert len(names) <= 45
    for name in names:
        assert getattr(dlas, name) is not None
    with pytest.raises(AttributeError):
        _ = dlas.no_such_name  # type: ignore[attr-defined]


def test_list_shows_every_member_with_its_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["list", "--json"]) == 0
    found = {(c["family"], c["name"]): c for c in json.loads(capsys.readouterr().out)}
    for family, name in (
        ("method", "int8"),
        ("backend", "onnxruntime"),
        ("format", "tflite"),
        ("target", "host"),
    ):
        assert found[family, name]["summary"]
    assert found["method", "channel"]["options"]["ratio"]["default"] == 0.5
    assert run_command(["list", "compress"]) == 0
    assert "magnitude" in capsys.readouterr().out


def test_info_tells_sizes_and_layers(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["info", str(net), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    weights = onnx.load(net).graph.initializer
    assert found["figures"]["params"]["value"] <= sum(np.prod(w.dims) for w in weights)
    assert {"Conv", "Gemm"} <= set(found["ops"])
    assert run_command(["info", str(net)]) == 0
    assert "Conv" in capsys.readouterr().out


def test_compress_writes_a_model_that_says_how_it_was_made(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small.onnx"
    command = ["compress", str(net), "magnitude", "--sparsity", "0.8", "-o", str(target), "--json"]
    assert run_command(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["after"]["sparsity"]["value"] > 0.5
    again = dlas.load(target)
    assert again.history[-1].action == "magnitude"
    assert again.history[-1].options["sparsity"] == 0.8
    assert "exists" in fails(capsys, *command[:-1])


def test_compress_plan_changes_nothing(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.iterdir())
    assert run_command(["compress", str(net), "channel:ratio=0.5", "--plan"]) == 0
    assert capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


def test_convert_there_and_back_is_equal(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lite, back = tmp_path / "net.tflite", tmp_path / "back.onnx"
    assert run_command(["convert", str(net), str(lite), "--json"]) == 0
    check = json.loads(capsys.readouterr().out)["check"]
    assert check["paths"][0]["verdict"] == "equal"
    assert check["paths"][0]["comparison"]["sqnr_db"]["value"] > 100
    assert run_command(["convert", str(lite), str(back)]) == 0
    assert "equal" in capsys.readouterr().out


def test_compare_finds_a_changed_weight(
    net: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(net)
    weight = max(model.graph.initializer, key=lambda w: len(w.dims))
    array = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(-array, weight.name))
    broken = tmp_path / "broken.onnx"
    onnx.save(model, broken)
    common = ["--data", str(rows), "--no-time"]
    assert run_command(["compare", str(net), str(broken), *common]) == 1
    assert "label-diff" in capsys.readouterr().out
    assert run_command(["compare", str(net), str(broken), *common, "--fail-on", "none"]) == 0
    assert run_command(["compare", str(net), *common, "--paths", "ort:O1,onnxruntime:level=disable"]) == 0
    assert capsys.readouterr().out.count("equal") >= 2


def test_bench_and_profile_measure(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", str(net), "--backends", "onnxruntime,torch", "--quick", "--json"]
    assert run_command(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["backend"] for r in found] == ["onnxruntime", "torch"]
    assert all(r["figures"]["latency_ms"]["source"] == "measured" for r in found)
    assert found[0]["figures"]["ratio"]["value"] == 1.0
    assert run_command(["profile", str(net), "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert any("Conv" in layer["op"] for layer in layers)


def test_run_on_a_model_with_data_then_show_export_and_report(
    net: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["run", str(net), "--data", str(rows), "--backend", "onnxruntime", "--compress", "int8"]
    command += ["--compress", "magnitude:sparsity=0.5", "--quick", "--out", str(out)]
    assert run_command(command) == 0
    printed = capsys.readouterr()
    assert "Pareto set" in printed.out
    assert "figures of this table: measured" in printed.out
    assert "report.html" in printed.err
    page = (out / "report.html").read_text()
    assert "magnitude:sparsity=0.5" in page
    assert run_command(["study", "show", "--out", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {p["choices"]["compress"] for p in shown["points"]} == {"none", "int8", "magnitude:sparsity=0.5"}
    assert run_command(["study", "export", "--out", str(out), "-o", str(tmp_path / "rows.csv")]) == 0
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 4
    assert run_command(["report", str(out), "-o", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").stat().st_size > 10_000


@pytest.mark.parametrize("command", ["info", "convert", "compress", "compare", "bench", "profile", "run"])
@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "text", "folder"])
def test_a_bad_model_file_is_one_line_and_leaves_nothing(
    command: str, kind: str, net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.onnx"
    if kind == "empty":
        bad.write_bytes(b"")
    elif kind == "truncated":
        bad.write_bytes(net.read_bytes()[: net.stat().st_size // 2])
    elif kind == "text":
        bad.write_text("this is not a model")
    elif kind == "folder":
        bad.mkdir()
    before = sorted(tmp_path.rglob("*"))
    extra = {
        "convert": [str(tmp_path / "out.tflite")],
        "compress": ["magnitude", "-o", str(tmp_path / "out.onnx")],
        "run": ["--out", str(tmp_path / "out")],
    }
    line = fails(capsys, command, str(bad), *extra.get(command, []))
    assert "bad.onnx" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compress", "NET", "magnitud"], "magnitude"),
        (["compress", "NET", "magnitude", "--sparsty", "0.5"], "sparsity"),
        (["compress", "NET", "magnitude", "--sparsity", "1.5"], "< 1"),
        (["compress", "NET", "int8"], "data"),
        (["compress", "NET", "int8", "--data", "none.parquet"], "none.parquet"),
        (["bench", "NET", "--backends", "onnxruntme"], "onnxruntime"),
        (["bench", "NET", "--threads", "0"], "at least 1"),
        (["bench", "NET", "--target", "host:isa=arm"], "isa"),
        (["run", "NET", "--set", "study.desing=grid"], "design"),
        (["run", "NET", "--preprocess", "scal=1"], "scale"),
        (["convert", "NET", "out.xyz"], r"\.onnx"),
        (["report", "nowhere"], "no such study file"),
        (["study", "show", "--out", "nowhere"], "no such study file"),
        (["data", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_one(
    arguments: list[str], words: str, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    import re

    line = fails(capsys, *[str(net) if a == "NET" else a for a in arguments])
    assert re.search(words, line)


def test_an_unwritable_output_folder_is_refused(
    net: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    command = ["run", str(net), "--data", str(rows), "--compress", "none", "--backend", "onnxruntime"]
    line = fails(capsys, *command, "--out", str(tmp_path / "file" / "out"))
    assert "--out" in line


def test_control_characters_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = networks.residual().to_proto()
    model.graph.node[0].name = "evil\x1b[31mname\x07"
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    assert run_command(["info", str(path)]) in (0, 2)
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "\x07" not in captured.out + captured.err


def test_paths_with_options_are_split_where_they_should_be() -> None:
    assert split_choices("onnxruntime, tvm:opt=O3,x=1,torch") == ["onnxruntime", "tvm:opt=O3,x=1", "torch"]


def test_an_unknown_option_to_fail_on_is_refused() -> None:
    from dlas.cli.compare import compare

    with pytest.raises(OptionError):
        compare("a.onnx", fail_on="anything")


def test_a_speed_up_whose_interval_holds_one_is_not_claimed() -> None:
    from dlas.cli.run import speedup_text
    from dlas.core.figure import Figure, Source

    assert speedup_text(Figure(1.01, "ratio", Source.MEASURED, 0.99, 1.03)) == "1.01x ~"
    assert speedup_text(Figure(1.05, "ratio", Source.MEASURED, 1.01, 1.09)) == "1.05x"
    assert speedup_text(None) == ""
