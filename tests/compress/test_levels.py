"""The methods that put weights on 4-bit levels: int4, po2, apot and msq."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.compress.method import Method, compress_model, methods
from dlas.compress.quantize._int8.scheme import attribute, constant
from dlas.core.errors import DataError, ModelError, OptionError, UnknownNameError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.graph.format import load_model, save_model
from dlas.graph.model import Model
from dlas.graph.passes import simplify
from dlas.graph.reference import Reference, predict
from dlas.kernels.formats.grids import by_name
from dlas.kernels.formats.recovery import recover
from dlas.testing import models
from dlas.testing.methods import MethodSuite

NAMES = ("int4", "po2", "apot", "msq")


class TestInt4(MethodSuite):
    method = "int4:rows=16"


class TestPo2(MethodSuite):
    method = "po2:rows=16,rounding=log"


class TestApot(MethodSuite):
    method = "apot:rows=16,per_channel=false"


class TestMsq(MethodSuite):
    method = "msq:rows=16"


def rows(count: int = 64) -> Dataset:
    """Inputs in the network's own layout, labelled by the network itself, so that training has something to keep."""
    x = models.images(count, seed=7)
    return Dataset("rows", x, answers(models.residual(), x).argmax(1).astype(np.int64))


def answers(model: Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(predict(model, x))


def stored(model: Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Codes and scales of every layer with int8 weights, by operator and place."""
    found = {}
    for node in model.ir.graph:
        source = node.inputs[1].producer() if node.op_type in ("Conv", "Gemm") and node.inputs[1] else None
        if source is not None and source.op_type == "DequantizeLinear":
            codes, scale = constant(source.inputs[0]), constant(source.inputs[1])
            assert codes is not None
            assert scale is not None
            found[str(node.name)] = codes, scale
    return found


def error(model: Model, x: np.ndarray) -> float:
    exact = answers(models.residual(), x)
    return float(np.square(answers(model, x) - exact).mean() / exact.var())


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_nearest_levels(name: str) -> None:
    model = models.residual()
    small = compress_model(model, f"{name}:repair=none")
    weights, grid = model.initializers, by_name(name)
    layers = stored(small)
    assert len(layers) == 4
    inner = list(layers.items())[1:-1]
    assert len(inner) == 2
    for layer, (codes, scale) in inner:
        node = next(n for n in model.ir.graph if n.name == layer)
        weight = weights[str(node.inputs[1].name)]
        _, expected = grid.project(weight, grid.scales_of(weight, 0), 0)
        assert scale.shape == (len(weight),)
        found = codes * scale.reshape(-1, 1, 1, 1)
        # Levels of up to 127 are stored as they are; 1 to 128 as 127ths, half a code off at most.
        slack = 1e-6 if grid.top <= 127 else 0.501 * scale.max()
        assert np.abs(found - expected).max() <= slack
        assert set(np.unique(np.abs(codes))) <= set(
            (grid.magnitudes if grid.top <= 127 else grid.int8_levels).tolist()
        )
    for codes, scale in (list(layers.values())[i] for i in (0, -1)):
        assert np.abs(codes).max() == 127
        assert scale.ndim == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options", ["repair=none,per_channel=false", "repair=none,alpha=mse", "repair=none,codes=int8"]
)
def test_variants_hold_only_levels(name: str, options: str) -> None:
    small, grid = compress_model(models.residual(), f"{name}:{options}"), by_name(name)
    inner = list(stored(small).values())[1:-1]
    allowed = grid.int8_levels if "codes" in options or grid.top > 127 else grid.integers
    for codes, scale in inner:
        assert set(np.unique(codes)) <= set(allowed.tolist())
        assert scale.size == (1 if "per_channel" in options else len(codes))
    assert error(small, models.images(32)) < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_repair_brings_answers_back(name: str) -> None:
    x = models.images(64, seed=9)  # not those of the repair
    plain, biased, repaired = (
        error(compress_model(models.residual(), f"{name}:repair={how}", rows()), x)
        for how in ("none", "bias", "stats")
    )
    assert biased < plain
    assert repaired < 0.5 * plain


@pytest.mark.parametrize("how", ["stats", "bias"])
@pytest.mark.parametrize("folded", [False, True])
def test_repaired_layers_have_the_moments_of_the_float_network(how: str, folded: bool) -> None:
    """Layer by layer in order, on the rows of the repair; where batch norms were folded scales and biases do it."""
    model = models.residual()
    if folded:
        graph = model.editable()
        simplify(graph)
        model = Model(graph, "folded")
    data = rows()
    small = compress_model(model, f"po2:repair={how}", data)
    note = next(n for n in small.history[-1].notes if n.startswith(f"{how} repaired"))
    assert "64 rows of rows" in note
    assert any("scales and biases took up the repair" in n for n in small.history[-1].notes)
    convs = [n for n in model.ir.graph if n.op_type == "Conv"]
    norms = [next(iter(n.outputs[0].uses())).node for n in convs]
    last = [b if b.op_type == "BatchNormalization" else n for n, b in zip(convs, norms, strict=True)]
    names = [str(n.outputs[0].name) for n in last]
    exact, found = (_values(m, names, data.samples) for m in (model, small))
    for name in names:
        a, b = exact[name], found[name]
        scale = np.sqrt(a.var(axis=(0, 2, 3)))
        assert np.abs((a.mean(axis=(0, 2, 3)) - b.mean(axis=(0, 2, 3))) / scale).max() < 1e-3
        spread = np.abs(np.sqrt(b.var(axis=(0, 2, 3))) / scale - 1).max()
        assert (spread < 1e-3) if how == "stats" else spread > 1e-3


def _values(model: Model, names: list[str], x: np.ndarray) -> dict[str, np.ndarray]:
    graph = model.editable()
    by_name = {str(v.name): v for n in graph.graph for v in n.outputs}
    for name in names:
        graph.graph.outputs.append(by_name[name])
    with Reference(Model(graph, "observed"), level="disable") as reference:
        return reference.run({model.inputs[0].name: x})


def test_the_report_counts_side_information() -> None:
    model = models.residual()
    plan = methods.get("msq")().plan(model)
    layers = stored(compress_model(model, "msq:repair=none"))
    sizes = [(c.size, s.size) for c, s in layers.values()]
    bits = [8, 4, 4, 8]
    packed = sum(-(-n * b // 8) + 4 * s for (n, s), b in zip(sizes, bits, strict=True))
    assert plan.expected["packed_weight_bytes"].value == packed
    assert plan.expected["bits_per_weight"].value == pytest.approx(8 * packed / sum(n for n, _ in sizes))
    assert plan.expected["weight_bytes"].value == sum(n + 5 * s for n, s in sizes)
    assert [("8 bits" in c.what, "13 levels in 4 bits" in c.what) for c in plan.changes] == [
        (True, False), (False, True), (False, True), (True, False)
    ]  # fmt: skip
    note = compress_model(model, "msq:repair=none").history[-1].notes[0]
    assert note.startswith("2 of 4 layers on 13 levels")
    assert f"({packed} bytes" in note


def test_which_layers_keep_more_bits() -> None:
    model = models.residual()
    everything = stored(compress_model(model, "apot:repair=none,ends=same"))
    assert [np.abs(c).max() <= 10 for c, _ in everything.values()] == [True] * 4
    inner = stored(compress_model(model, "apot:repair=none,ends=float"))
    assert list(inner) == list(everything)[1:-1]
    grouped = [n for n in model.ir.graph if n.op_type == "Conv" and attribute(n, "group", 1) > 1]
    depthwise = str(grouped[0].name)
    wide = stored(compress_model(model, "apot:repair=none,depthwise=int8"))
    assert np.abs(wide[depthwise][0]).max() == 127
    kept = compress_model(model, f"apot:repair=none,ends=same,keep_float={depthwise}")
    assert depthwise not in stored(kept)
    assert any(f"{depthwise} stays float: as asked" in n for n in kept.history[-1].notes)


def test_ends_stay_float_where_activations_become_int8() -> None:
    small = compress_model(models.residual(), "int4:ends=float,activations=int8,rows=16", rows(16))
    kept = [n.removesuffix(" stays float: ends=float") for n in small.history[0].notes if "ends=float" in n]
    weighted = [str(n.name) for n in small.ir.graph if n.op_type in ("Conv", "Gemm")]
    assert kept == [weighted[0], weighted[-1]]
    assert list(stored(small)) == weighted[1:-1]


def test_repair_leaves_a_computed_bias_alone() -> None:
    """A Gemm that adds what another node computes, and one that halves its bias, cannot take up a correction."""
    rng = np.random.default_rng(0)
    arrays = {
        "k": np.full(4, 3),
        **{n: rng.standard_normal((4, 4)) for n in "vuw"},
        "b": rng.standard_normal(4),
    }
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["c"], name="times"),
        helper.make_node("Gemm", ["x", "v", "c"], ["h"], name="adds"),
        helper.make_node("Tanh", ["h"], ["r"], name="tanh"),
        helper.make_node("Gemm", ["r", "u", "b"], ["s"], name="halves", beta=0.5),
        helper.make_node("Gemm", ["s", "w"], ["y"], name="plain"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "xy"]
    stored_arrays = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored_arrays)
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    model = Model.from_proto(onnx.shape_inference.infer_shapes(proto), "adding")
    x = rng.standard_normal((40, 4)).astype(np.float32)
    small = compress_model(model, "int4:ends=same", Dataset("x", x, None))
    assert "not repaired: adds, halves" in small.history[-1].notes
    exact = answers(model, x)
    assert np.square(answers(small, x) - exact).mean() < 0.05 * exact.var()


@pytest.mark.parametrize("bits", [3, 5])
def test_apot_of_other_bits(bits: int) -> None:
    small = compress_model(models.residual(), f"apot:repair=none,bits={bits}")
    from dlas.kernels.formats.grids import apot

    for codes, _ in list(stored(small).values())[1:-1]:
        assert set(np.unique(codes)) <= set(apot(bits).integers.tolist())
    assert len(np.unique(list(stored(small).values())[1][0])) > 2 ** (bits - 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("codes", ["levels", "int8"])
def test_int8_files_are_read_back(name: str, codes: str, tmp_path: Path) -> None:
    """To TFLite and back: every code of every inner layer, from the file alone."""
    model, data = models.residual(), rows()
    small = compress_model(model, f"{name}:codes={codes},activations=int8", data)
    assert [s.action for s in small.history] == [name, "int8"]
    target = tmp_path / "small.tflite"
    save_model(small, target)
    back = recover(load_model(target))
    assert back.method == name
    assert (len(back.layers), back.filters, len(back.eight_bit)) == (2, 16, 2)
    float_weights = stored(compress_model(model, f"{name}:codes={codes}", data))
    for layer, (integers, _) in zip(back.layers, list(float_weights.values())[1:-1], strict=True):
        grid = back.grid
        as_levels = grid.integers if codes == "levels" and grid.top <= 127 else grid.int8_levels
        wanted = grid.integers[np.searchsorted(as_levels, integers)]
        # Folding the batch norm may turn the sign of a channel around; factors may divide all levels of a channel.
        found = layer.integers.astype(np.int64).reshape(len(wanted), -1)
        wanted = wanted.reshape(len(wanted), -1)
        same = np.all(np.sign(found) == np.sign(wanted), axis=1) | np.all(
            np.sign(found) == -np.sign(wanted), axis=1
        )
        assert same.all()
        ratio = np.abs(found).max(1) / np.abs(wanted).max(1)
        assert np.allclose(np.abs(found), ratio[:, None] * np.abs(wanted))
        assert layer.distance <= (0.0 if codes == "levels" and grid.top <= 127 else 0.5)


@pytest.mark.parametrize("choice", ["apot", "po2:per_channel=false"])
def test_training_keeps_weights_on_levels_and_learns(choice: str) -> None:
    data, name = rows(32), choice.partition(":")[0]
    small = compress_model(
        models.residual(), f"{choice}{',' if ':' in choice else ':'}epochs=3,lr=0.05,batch_size=16", data
    )
    note = next(n for n in small.history[-1].notes if n.startswith("trained on 32 rows"))
    losses = [float(v) for v in re.findall(r"[\d.]+(?=,|$)", note.split("epochs:")[1])]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert not any("repaired" in n for n in small.history[-1].notes)
    grid = by_name(name)
    allowed = grid.int8_levels if grid.top > 127 else grid.integers
    for codes, scale in list(stored(small).values())[1:-1]:
        assert set(np.unique(codes)) <= set(allowed.tolist())
        assert scale.size == (len(codes) if choice == "apot" else 1)


def test_the_trained_network_is_the_one_that_was_trained() -> None:
    """What the rounding in torch computes is what is stored, to rounding errors."""
    torch = pytest.importorskip("torch")
    from dlas.compress.quantize._few_bits.fake import StraightThrough, TrainedClip
    from dlas.compress.quantize._few_bits.layers import layers_of

    model = models.residual()
    graph = model.editable()
    for name in NAMES:
        method: Method = methods.get(name)(ends="same")
        layers, _ = layers_of(model, graph, by_name(name), method.options)
        for layer in layers:
            fake = method.fake(layer)  # type: ignore[attr-defined]
            assert isinstance(fake, TrainedClip if name == "apot" else StraightThrough)
            shown = fake(torch.from_numpy(layer.weight.copy())).detach().numpy()
            layer.learned(*fake.learned(layer.weight))
            layer.quantize("max")
            far = np.abs(shown - layer.values())
            # A weight on the boundary may fall to either side.
            assert np.mean(far < 1e-5 * np.abs(shown).max()) > 0.99


def test_gradients_of_the_trained_bound() -> None:
    torch = pytest.importorskip("torch")
    from dlas.compress.quantize._few_bits.fake import StraightThrough, TrainedClip

    grid = by_name("apot")
    w = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    g = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    for axis, start in ((None, np.float32(1.5)), (0, np.array([0.5, 1.0, 1.5, 2.0], np.float32))):
        fake = TrainedClip(grid.levels[grid.integers >= 0], grid.boundaries, start, axis)
        w.grad = None
        (fake(w) * g).sum().backward()
        n = ((w - w.mean()) / w.std()).detach().numpy()
        alpha = np.broadcast_to(np.reshape(start, (-1, 1, 1, 1)), n.shape)
        rounded = alpha * grid.round(np.clip(n / alpha, -1, 1)) / grid.top
        slope = np.where(np.abs(n) > alpha, np.sign(n), (rounded - n) / alpha)
        each = (g.numpy() * float(w.detach().std()) * slope).sum(axis=None if axis is None else (1, 2, 3))
        assert fake.alpha.grad is not None
        np.testing.assert_allclose(fake.alpha.grad.numpy(), each, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(w.grad.numpy(), g.numpy(), rtol=1e-5, atol=1e-6)  # not clipped
    w.grad = None
    (StraightThrough(grid.levels[grid.integers >= 0], grid.boundaries, 0)(w) * g).sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), g.numpy(), rtol=1e-6)


def test_bad_input_is_refused() -> None:
    model, data = models.residual(), rows(8)
    with pytest.raises(DataError, match="needs training rows"):
        compress_model(model, "apot")
    with pytest.raises(DataError, match="needs training rows"):
        compress_model(model, "apot:repair=none,epochs=1")
    with pytest.raises(DataError, match="labels"):
        compress_model(model, "apot:epochs=1", Dataset("bare", models.images(8), None))
    with pytest.raises(UnknownNameError, match="no_such_layer"):
        compress_model(model, "apot:repair=none,keep_float=no_such_layer")
    with pytest.raises(UnsupportedError, match="already quantised"):
        compress_model(models.residual_quantized(), "apot", data)
    with pytest.raises(ModelError, match="NaN or infinity"):
        compress_model(models.residual(nan=True), "apot:repair=none")
    for wrong in (
        "apot:bits=2",
        "apot:bits=7",
        "po2:bits=5",
        "msq:alpha=mean",
        "int4:repair=all",
        "int4:rows=0",
    ):
        with pytest.raises(OptionError):
            compress_model(model, wrong, data)
    with pytest.raises(UnknownNameError, match="bits"):
        compress_model(model, "int4:bits=4", data)
    hostile = models.images(8)
    hostile[0] = 3e38
    with pytest.raises(DataError, match="not finite"):
        compress_model(model, "int4", Dataset("hostile", hostile, data.labels))


def _one_layer(weight: np.ndarray) -> Model:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", weight.shape[1], 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", weight.shape[0], 4, 4])
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="only")
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    return Model.from_proto(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), "one"
    )


def test_a_single_layer_and_dead_channels() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 5, 1, 1)).astype(np.float32)
    weight[3] = 0
    model = _one_layer(weight)
    with pytest.raises(UnsupportedError, match="ends=same"):
        compress_model(model, "po2:repair=none")
    x = np.random.default_rng(1).standard_normal((16, 5, 4, 4)).astype(np.float32)
    for options in ("po2:ends=same,repair=none", "po2:ends=same"):
        small = compress_model(model, options, Dataset("x", x, None))
        found = answers(small, x)
        assert not found[:, 3].any()  # po2 has no zero, yet nothing appears where nothing was
        assert np.square(found - answers(model, x)).mean() < 0.05


def test_shared_weights_are_rounded_once() -> None:
    graph = models.residual().editable()
    convs = [n for n in graph.graph if n.op_type == "Conv"]
    same = [n for n in convs if n.inputs[1].shape == convs[1].inputs[1].shape]  # type: ignore[union-attr]
    copy = ir.node("Conv", [same[0].inputs[0], same[0].inputs[1]], dict(same[0].attributes), name="twin")
    copy.outputs[0].name = "twin_out"
    copy.outputs[0].type, copy.outputs[0].shape = same[0].outputs[0].type, same[0].outputs[0].shape
    graph.graph.insert_after(same[0], copy)
    both = ir.node("Add", [same[0].outputs[0], copy.outputs[0]], name="both")
    both.outputs[0].name = "both_out"
    for use in list(same[0].outputs[0].uses()):
        use.node.replace_input_with(use.idx, both.outputs[0])
    both.replace_input_with(0, same[0].outputs[0])
    graph.graph.insert_after(copy, both)
    small = compress_model(Model(graph, "shared"), "int4:ends=same,repair=none")
    onnx.checker.check_model(small.to_proto())
    sources = {n.name: n.inputs[1] for n in small.ir.graph if n.op_type == "Conv"}
    assert sources["twin"] is sources[str(same[0].name)]
    assert sources["twin"].producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]


def test_a_network_is_prepared_before_it_is_trained() -> None:
    """What ``fine_tune`` returns are the weights behind a change, not what it hands on."""
    from dlas.compress.training import fine_tune

    model, data = models.residual(), rows(16)
    name = next(
        str(n.inputs[1].name) for n in model.ir.graph if n.op_type == "Conv" and n.inputs[1] is not None
    )
    seen: list[tuple[int, ...]] = []

    def put(module: Any) -> None:
        module.on_weight(name, lambda w: seen.append(tuple(w.shape)) or w * 0)

    trained = fine_tune(model, data, epochs=1, batch_size=16, weight_decay=0.0, momentum=0.0, prepared=put)
    assert seen == [model.initializers[name].shape]
    assert np.array_equal(
        trained.initializers[name], model.initializers[name]
    )  # no gradient passes a factor of 0
    assert model.initializers[name].any()
