"""Profiles: what every step does, that it adds up, and what the files hold."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from networks import model_of, residual
from onnx import helper

from dlas.core.errors import OptionError, StorageError
from dlas.core.figure import Figure, Source
from dlas.hardware.cpu.roofline import Roofline
from dlas.kernels.extension import missing_native
from dlas.kernels.kernel import Node, Operand
from dlas.runtime.backend import backend_for
from dlas.runtime.bench import BenchRow, Outcome, with_limits
from dlas.runtime.engine.explain import LAYOUT, OTHER, explain
from dlas.runtime.engine.portfolio import Whole
from dlas.runtime.engine.profile import Profile, Row, measure_steps, profile_of
from dlas.runtime.engine.profile_files import as_csv, as_json, as_trace, write_profile, writer_for
from dlas.runtime.engine.work import (
    Work,
    attainable,
    bound_of,
    least_ms,
    level_of,
    peak_of,
    together,
    work_of,
)

needs_native = pytest.mark.skipif(bool(missing_native()), reason="the native kernels were not built")


def figure(value: float, unit: str) -> Figure:
    return Figure(value, unit, Source.MEASURED)


ROOF = Roofline(
    "x86-64-v4",
    1,
    {"fp32": figure(100.0, "GFLOP/s"), "int8": figure(400.0, "GOP/s")},
    {name: figure(v, "GB/s") for name, v in (("l1", 200.0), ("l2", 100.0), ("l3", 50.0), ("dram", 10.0))},
    {"l1": 32 * 1024, "l2": 2**20, "l3": 2**25},
)


def node(op: str, *shapes: tuple[int, ...], out: tuple[int, ...], weights: int = 1, **attributes) -> Node:
    """A float32 node; the operands after the first ``weights`` are constants."""
    inputs = tuple(
        Operand(s) if i < weights else Operand.of(np.ones(s, np.float32)) for i, s in enumerate(shapes)
    )
    return Node(op, op.lower(), attributes, inputs, (Operand(out),))


@pytest.mark.parametrize(
    ("made", "macs"),
    [
        (node("Conv", (1, 8, 5, 5), (16, 8, 3, 3), out=(1, 16, 5, 5)), 16 * 25 * 72),
        (node("Conv", (1, 8, 5, 5), (8, 1, 3, 3), out=(1, 8, 5, 5), group=8), 8 * 25 * 9),
        (node("ConvTranspose", (1, 8, 5, 5), (8, 4, 2, 2), out=(1, 4, 10, 10)), 200 * 16),
        (node("Gemm", (3, 7), (5, 7), out=(3, 5), transB=1), 105),
        (node("Gemm", (7, 3), (7, 5), out=(3, 5), transA=1), 105),
        (node("MatMul", (2, 3, 7), (7, 5), out=(2, 3, 5)), 210),
        (node("LSTM", (4, 1, 6), (1, 20, 6), (1, 20, 5), out=(4, 1, 1, 5)), 4 * (120 + 100)),
        (node("Relu", (4, 4), out=(4, 4)), 0),
    ],
)
def test_multiply_accumulates_are_those_of_the_shapes(made, macs):
    assert made.macs == macs
    assert work_of(made).operations == (2 * macs or 16)


def test_bytes_are_what_is_read_and_written_once():
    work = work_of(node("Conv", (1, 8, 5, 5), (16, 8, 3, 3), out=(1, 16, 5, 5)))
    assert (work.bytes_in, work.bytes_out, work.bytes_weights) == (800, 1600, 16 * 72 * 4)
    assert work.intensity == work.operations / work.bytes
    blocked = work_of(node("Conv", (1, 8, 5, 5), (16, 8, 3, 3), out=(1, 16, 5, 5)), [1600, 1600])
    assert blocked.bytes_in == 1600
    assert work_of(node("Transpose", (4, 8), out=(8, 4))).operations == 0
    assert work_of(node("MaxPool", (1, 2, 4, 4), out=(1, 2, 2, 2), kernel_shape=(2, 2))).operations == 32


def test_the_roofline_is_the_peak_or_the_bytes_of_the_smallest_memory_that_holds_them():
    near = Work(500, 1000, 1000, 1000, 0)
    assert (level_of(near, ROOF), attainable(near, ROOF)) == ("L1", 100.0)  # half an operation per byte
    far = Work(500, 1000, 10**9, 0, 0)
    assert level_of(far, ROOF) == "DRAM"
    assert attainable(far, ROOF) == pytest.approx(1e-6 * 10)
    assert least_ms(far, ROOF) == pytest.approx(100.0)
    assert bound_of(far, ROOF) == "DRAM bytes"
    dense = Work(10**6, 2 * 10**6, 1000, 1000, 0, "int8")
    assert attainable(dense, ROOF) == 400.0
    assert bound_of(dense, ROOF) == "products"
    assert peak_of(dense, ROOF) == "int8"
    assert least_ms(Work(0, 0, 10**6, 0, 0), ROOF) == pytest.approx(1e6 / (1e6 * 100.0))


def test_pieces_of_work_add_up_and_the_larger_part_names_the_arithmetic():
    both = together([Work(1, 2, 3, 4, 5, "int8"), Work(10, 20, 30, 40, 50)])
    assert both == Work(11, 22, 33, 44, 55, "fp32")
    assert together([]).operations == 0


def made_profile() -> Profile:
    rows = [
        {"name": "a", "op": "Conv", "impl": "winograd", "layout": "blocked", "milliseconds": 0.75,
         "work": {"macs": 10**6, "operations": 2 * 10**6, "bytes_in": 10, "bytes_out": 20, "bytes_weights": 30}},
        {"name": "b, \"quoted\"", "op": "Reorder", "impl": "reorder", "layout": "plain", "milliseconds": 0.25,
         "work": {"macs": 0, "operations": 0, "bytes_in": 10, "bytes_out": 10, "bytes_weights": 0}},
    ]  # fmt: skip
    measured = {
        "backend": "engine", "threads": 1, "isa": "x86-64-v4", "policy": "rules", "runs": 7, "rows": rows,
        "whole_ms": 1.01, "cpu_ms": 1.0, "call_ms": 0.001, "clocked_ms": 1.02, "notes": ["note"],
        "candidates": {"rules": 1.0, "onnxruntime": 2.0},
    }  # fmt: skip
    return profile_of("net", measured, ROOF)


def test_shares_speeds_and_the_sum():
    profile = made_profile()
    first, second = profile.rows
    assert (first.share, second.share) == (0.75, 0.25)
    assert first.gflops == pytest.approx(2e6 / 0.75e6)
    assert second.gflops is None
    assert first.attainable == 100.0
    assert first.fraction == pytest.approx(first.gflops / 100.0)
    assert profile.difference == pytest.approx(1.001 / 1.01 - 1)
    assert profile.adds_up
    assert profile.clock_cost == pytest.approx(1.02 / 1.01 - 1)


def test_where_the_processor_was_taken_away_its_own_time_is_the_whole():
    from dataclasses import replace

    disturbed = replace(made_profile(), whole_ms=5.0)
    assert disturbed.interrupted
    assert disturbed.adds_up
    assert not replace(disturbed, cpu_ms=0.0).adds_up


def test_files_hold_every_row(tmp_path: Path):
    profile = made_profile()
    stored = json.loads(as_json(profile))
    assert [row["name"] for row in stored["layers"]] == [row.name for row in profile.rows]
    assert stored["layers"][0]["attainable_gflops"] == 100.0
    rows = list(csv.DictReader(io.StringIO(as_csv(profile))))
    assert rows[1]["name"] == 'b, "quoted"'
    assert float(rows[0]["milliseconds"]) == 0.75
    events = [e for e in json.loads(as_trace(profile))["traceEvents"] if e["ph"] == "X"]
    assert [(e["ts"], e["dur"]) for e in events] == [(0.0, 750.0), (750.0, 250.0)]
    for name, writer in (("p.json", as_json), ("p.csv", as_csv), ("p.trace.json", as_trace)):
        (tmp_path / name).write_text("old")
        write_profile(profile, tmp_path / name)
        assert (tmp_path / name).read_text() == writer(profile)


def test_an_ending_that_nothing_writes_is_refused(tmp_path: Path):
    with pytest.raises(OptionError, match=r"\.trace\.json"):
        writer_for(tmp_path / "p.xml")
    with pytest.raises(StorageError):
        write_profile(made_profile(), tmp_path / "none" / "p.json")


@needs_native
def test_the_engine_tells_every_step_with_its_work():
    with backend_for("engine:policy=rules").compile(residual()) as executable:
        found = measure_steps(executable, executable.signature.random_inputs(), 5)
        steps = [s.name for s in executable.program.steps]
    profile = profile_of("net", found)
    assert [row.name for row in profile.rows] == steps
    assert profile.runs == 5
    assert sum(row.share for row in profile.rows) == pytest.approx(1.0)
    conv = next(row for row in profile.rows if row.name == "third")
    assert conv.work is not None
    assert conv.work.macs == 32 * 36 * 16 * 9
    assert conv.work.bytes_weights >= 32 * 16 * 9 * 4
    assert "blocked" in conv.layout or "plain" in conv.layout
    assert 0 < profile.steps_ms < 50


@needs_native
def test_another_kernel_for_one_layer_changes_that_row_alone():
    def kernels(impl: str) -> dict[str, str]:
        with backend_for(f"engine:policy=rules,impl={impl}").compile(residual()) as executable:
            found = measure_steps(executable, executable.signature.random_inputs(), 1)
        return {row["name"]: row["impl"] for row in found["rows"] if row["op"] != "Reorder"}

    before = kernels("Gemm=gemm")
    after = kernels("Gemm=gemm+node:third=im2col-gemm")
    assert {name for name in before if before[name] != after[name]} == {"third"}


@needs_native
def test_a_part_by_another_engine_says_which_nodes_it_holds():
    with backend_for("engine:policy=rules,impl=node:second=onnxruntime").compile(residual()) as executable:
        found = measure_steps(executable, executable.signature.random_inputs(), 2)
    part = next(row for row in found["rows"] if row["impl"] == "onnxruntime")
    assert part["nodes"] == ["second"]
    assert part["work"]["macs"] == 16 * 144 * 16 * 9


@needs_native
def test_a_whole_network_elsewhere_is_told_by_that_back_end_or_not_at_all():
    inner = backend_for("onnxruntime").compile(residual())
    with Whole("onnxruntime", inner) as executable:
        found = measure_steps(executable, executable.signature.random_inputs(), 3)
    assert found["backend"] == "onnxruntime"
    assert any("Conv" in row["op"] for row in found["rows"])
    assert found["whole_ms"] > 0


@needs_native
def test_where_the_faster_back_end_cannot_tell_own_kernels_are_profiled_and_that_is_said(monkeypatch):
    from dlas.runtime import profiling

    asked: list[str] = []

    def measured(model, choice, *_):
        asked.append(choice)
        own = made_profile()
        rows = [{"name": "a", "op": "Conv", "impl": "gspc", "layout": "", "milliseconds": 1.0}]
        fields = {"threads": 1, "isa": "", "policy": "", "runs": 1, "whole_ms": own.whole_ms, "notes": []}
        first = len(asked) == 1
        return {**fields, "backend": "litert" if first else "engine", "rows": [] if first else rows}

    monkeypatch.setattr(profiling, "_measured", measured)
    monkeypatch.setattr(profiling, "roof_for", lambda *_: None)
    found = profiling.profile(residual(), choice="engine:exact=true")
    assert asked == ["engine:exact=true", "engine:exact=true,policy=measure"]
    assert "litert is faster" in found.notes[-1]
    assert [row.impl for row in found.rows] == ["gspc"]


# --- layer by layer ---------------------------------------------------------------------------------------


def rows_of(**times: float) -> list[dict]:
    return [{"name": name, "op": "Conv", "milliseconds": ms} for name, ms in times.items()]


def test_layers_are_aligned_by_node_and_by_value_and_the_rest_is_other():
    own = [*rows_of(stem=1.0, second=2.0), {"name": "x to blocked", "op": "Reorder", "milliseconds": 0.5}]
    other = [
        {"name": "a_nchwc", "op": "Conv", "milliseconds": 0.5},  # the value that stem, with its Relu, makes
        {"name": "second/WithoutBiases", "op": "Convolution", "milliseconds": 2.0},
        {"name": "sum_relu", "op": "Relu", "milliseconds": 1.0},  # is fused into second
        {"name": "fused_conv2d", "op": "conv2d", "milliseconds": 0.25},
        {"name": "ReorderOutput_token_3", "op": "ReorderOutput", "milliseconds": 0.125},
    ]
    found = explain(residual(), {"engine": own, "other": other}, 1, {"litert": "cannot tell"})
    lines = {line.name: line for line in found.lines}
    assert lines["stem"].milliseconds == {"engine": 1.0, "other": 0.5}
    assert lines["second"].milliseconds == {"engine": 2.0, "other": 3.0}
    assert lines[OTHER].milliseconds == {"other": 0.25}
    assert lines[LAYOUT].milliseconds == {"engine": 0.5, "other": 0.125}
    assert [(line.name, best, lost) for line, best, lost in found.losses("engine")] == [
        ("stem", "other", 0.5)
    ]
    said = found.sentences()
    assert said[0].startswith("engine loses 0.5 of 3.5 ms on 1 of 2 layers: stem (1 against 0.5 ms of other)")
    assert said[1].startswith("other loses 1 of 3.88 ms on 1 of 2 layers: second")
    assert json.loads(json.dumps(found.to_dict()))["silent"] == {"litert": "cannot tell"}


def test_a_back_end_whose_names_say_nothing_is_called_so_and_one_alone_has_nothing_to_lose():
    found = explain(residual(), {"engine": rows_of(stem=1.0), "tvm": rows_of(fused_conv2d=1.0)}, 1, {})
    assert "cannot be aligned" in found.sentences()[1]
    assert found.sentences()[0] == "engine loses on no layer"
    assert "nothing to compare" in explain(residual(), {"engine": rows_of(stem=1.0)}, 1, {}).sentences()[0]


def test_a_network_that_the_engine_cannot_lower_is_aligned_by_its_nodes():
    nodes = [
        helper.make_node("NonZero", ["x"], ["i"], "where"),
        helper.make_node("Cast", ["i"], ["y"], "cast", to=1),
    ]
    model = model_of(nodes, {"x": [2, 2]}, {"y": [2, None]}, {})
    found = explain(model, {"a": rows_of(where=1.0), "b": rows_of(where=2.0, cast=1.0)}, 1, {})
    assert [line.name for line in found.lines] == ["where", "cast"]


def test_limits_of_a_network_are_those_of_its_layers():
    rows = [
        BenchRow("engine", 1, Outcome.OK, "", {"latency_ms": figure(1.0, "ms")}),
        BenchRow("tvm", 1, Outcome.CRASH, "x"),
    ]
    first, second = with_limits(rows, residual(), lambda threads: ROOF)
    assert 0 < first.figures["limit_fraction"].value < 1
    assert first.figures["gflops"].value == pytest.approx(2 * 1_223_744 / 1e6, rel=0.05)
    assert second.figures == {}
    assert "limit_fraction" not in with_limits(rows, residual(), lambda threads: None)[0].figures


def test_a_row_without_work_has_no_speed():
    row = Row("a", "Conv", "onnxruntime", "", 1.0)
    assert row.gflops is None
    assert row.to_dict()["macs"] is None
