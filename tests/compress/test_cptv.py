"""cptv: units by structure, losses with a kept prefix, the network that comes out, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dlas import api
from dlas.compress.checkpoint import checkpoints_in
from dlas.compress.method import compress_model, methods
from dlas.compress.quantize._search.evolution import State
from dlas.compress.quantize._search.network import FewBitNetwork
from dlas.compress.quantize._search.suffix import Rows
from dlas.compress.quantize._search.trial import Trial
from dlas.compress.quantize.cptv import Cptv
from dlas.core.errors import DataError, DlasError, OptionError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.graph.model import Model
from dlas.graph.reference import predict
from dlas.graph.torch_module import to_torch
from dlas.testing.methods import MethodSuite

VIT = "vit:depth=2,width=8,heads=2,expansion=1,patch=8"
SMALL = {"rows": 24, "batch_size": 8, "passes": 2, "cycles": 2, "bits": 3, "threads": 1}


class TestCptv(MethodSuite):
    method = "cptv:rows=16,batch_size=8,passes=1,cycles=2,bits=3"


@pytest.fixture(scope="module")
def vit() -> Model:
    """With larger weights than at the start of training, so that what attention adds is not rounded away."""
    model = api.untrained(VIT)
    graph = model.editable()
    for value in graph.graph.initializers.values():
        stored = value.const_value
        assert stored is not None
        if stored.shape.rank() == 2:
            value.const_value = ir.tensor(stored.numpy() * np.float32(25), name=value.name)
    return dataclasses.replace(model, ir=graph, torch_module=None)


def images(model: Model, count: int = 24, seed: int = 0) -> Dataset:
    shape = tuple(int(d) for d in model.inputs[0].shape[1:])
    return Dataset("r", np.random.default_rng(seed).normal(0, 1, (count, *shape)).astype(np.float32))


def cptv(model: Model, data: Dataset | None, **changed: object) -> Model:
    made = methods.get("cptv")(**SMALL | changed).apply(model, data)
    onnx.checker.check_model(made.to_proto(), full_check=True)
    return made


def found_units(model: Model, unit: str) -> list[tuple[str, list[str]]]:
    network = FewBitNetwork(model, Cptv(unit=unit).options)
    return [(u.kind, [network.names[i] for i in u.layers]) for u in network.units]


def branches(outputs: int = 1) -> Model:
    """Two convolutions side by side, joined by a Concat, behind another one: no residual block, two parallel layers.

    With two outputs, the second one is that of a layer that the first one does not need.
    """
    rng = np.random.default_rng(0)
    weights = {
        n: rng.normal(0, 0.3, s).astype(np.float32)
        for n, s in {"w0": (4, 3, 3, 3), "w1": (4, 4, 1, 1), "w2": (4, 4, 3, 3), "w3": (5, 8, 1, 1)}.items()
    }
    node = onnx.helper.make_node
    same = {"pads": [1, 1, 1, 1]}
    graph = onnx.helper.make_graph(
        [
            node("Conv", ["x", "w0"], ["a"], "stem", **same),
            node("Conv", ["a", "w1"], ["b"], "left"),
            node("Conv", ["a", "w2"], ["c"], "right", **same),
            node("Concat", ["b", "c"], ["d"], "join", axis=1),
            node("Conv", ["d", "w3"], ["e"], "last"),
            node("GlobalAveragePool", ["e"], ["f"], "pool"),
            node("Flatten", ["f"], ["y"], "flat"),
            *[node("Conv", ["d", "w3"], ["z"], "aside")] * (outputs - 1),
        ],
        "branches",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", 3, 6, 6])],
        [
            onnx.helper.make_tensor_value_info("y", 1, ["N", 5]),
            onnx.helper.make_tensor_value_info("z", 1, ["N", 5, 6, 6]),
        ][:outputs],
        [onnx.numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    return Model.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), "branches")


def test_attention_blocks_are_found_by_structure(vit: Model) -> None:
    expected = [
        ("attention", [f"blocks.{b}.attention.{part}.matmul" for part in ("qkv", "proj")]) for b in (0, 1)
    ]
    assert found_units(vit, "auto") == found_units(vit, "attention") == expected
    both = found_units(vit, "residual")
    assert [kind for kind, _ in both] == ["attention", "residual"] * 2
    assert both[1][1] == ["blocks.0.perceptron.0.matmul", "blocks.0.perceptron.2.matmul"]


def test_names_play_no_part(vit: Model) -> None:
    graph = vit.editable()
    for i, node in enumerate(graph.graph):
        node.name = f"n{i}"
        for j, out in enumerate(node.outputs):
            if not out.is_graph_output():
                out.name = f"v{i}_{j}"
    renamed = dataclasses.replace(vit, ir=graph)
    assert [k for k, _ in found_units(renamed, "auto")] == ["attention", "attention"]
    assert [len(layers) for _, layers in found_units(renamed, "auto")] == [2, 2]


def test_residual_blocks_of_a_cnn() -> None:
    found = found_units(api.untrained("cifar-resnet"), "auto")
    assert [kind for kind, _ in found] == ["residual"] * 9
    assert found[3][1] == ["layer2.0.conv1", "layer2.0.conv2"]


def test_a_network_without_blocks_is_searched_layer_by_layer() -> None:
    assert [layers for _, layers in found_units(branches(), "auto")] == [
        ["stem"],
        ["left"],
        ["right"],
        ["last"],
    ]
    with pytest.raises(UnsupportedError, match="no attention block"):
        found_units(branches(), "attention")
    with pytest.raises(UnsupportedError, match="no residual block"):
        found_units(branches(), "residual")


def test_only_layers_that_the_judged_answers_need_are_searched() -> None:
    model = branches(outputs=2)
    assert found_units(model, "auto") == found_units(branches(), "auto")
    made = cptv(model, images(model))
    assert made.history[-1].options["units"] == ["stem", "left", "right", "last"]
    plan = methods.get("cptv")(**SMALL).plan(model)
    assert [c.layer for c in plan.changes if c.what.endswith("not searched")] == ["aside"]


@pytest.mark.parametrize("room", [1, 1 << 30])
@pytest.mark.parametrize("case", ["vit", "residual", "branches"])
def test_a_kept_prefix_changes_no_loss(case: str, room: int, vit: Model) -> None:
    """In the order of the search, with scales adopted on the way, also where branches run side by side."""
    model = {"vit": vit, "residual": TestCptv().network(), "branches": branches()}[case]
    network = FewBitNetwork(model, Cptv(bits=3, unit="layer" if case == "branches" else "auto").options)
    rows = Rows(model.inputs[0].name, images(model, 11).samples, 4)  # type: ignore[arg-type]
    network.calibrate(rows, lambda f: None)
    trial = Trial(network, rows, "mse", 4, room)
    scales = {i: network.grid(i).scale for unit in network.units for i in unit.layers}
    state = State(scales, trial.loss({}), np.random.default_rng(0))
    rng = np.random.default_rng(1)
    losses = set()
    for unit in [*reversed(range(len(network.units)))] * 2:
        fitness = trial.fitness(unit, state)
        child = {
            i: (state.scales[i] * rng.uniform(0.8, 1.2, len(state.scales[i]))).astype(np.float32)
            for i in network.units[unit].layers
        }
        found = fitness(child)
        state.scales |= child
        assert found == pytest.approx(trial.loss(state.scales), rel=1e-4)
        losses.add(found)
    assert len(losses) > len(network.units)


def test_prefixes_are_run_once_per_pass_where_memory_allows(
    vit: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    plain = Trial._computed

    def counted(self: Trial, values: list[ir.Value], rows: Rows):
        computed.append(len(rows))
        return plain(self, values, rows)

    monkeypatch.setattr(Trial, "_computed", counted)
    cptv(vit, images(vit), passes=3)
    assert computed == [8, 24, 24, 24]  # sizes of one part, then once per pass


def test_the_search_lowers_the_loss_of_three_bits() -> None:
    model, data = api.load("digits-cnn"), api.dataset("digits", "train")
    made = cptv(model, data, rows=100, batch_size=50, unit="layer", edge_bits=3, passes=3)
    options = made.history[-1].options
    losses = [options["loss_before"], *(line["loss"] for line in options["search"])]
    assert losses == sorted(losses, reverse=True)
    assert options["loss_after"] < options["loss_before"]
    assert options["evaluations"] == 3 * 5 * 2
    assert predict(made, np.zeros((1, 1, 8, 8), np.float32)).shape == (1, 10)


def test_codes_are_packed_and_come_with_their_grid(vit: Model) -> None:
    made = cptv(vit, images(vit), pack=True)
    graph = made.ir.graph
    assert graph.opset_imports[""] == 21
    kinds = {
        str(v.const_value.dtype) for n, v in graph.initializers.items() if v.const_value and "weight_q" in n
    }
    assert kinds == {"UINT4", "UINT8"}
    options = made.history[-1].options
    weights = sum(8 * 8 * n for n in (3, 1, 1, 1)) * 2 + 8 * 192 + 8 * 10
    channels = [8 * n for n in (3, 1, 1, 1)] * 2
    inner = 3 * (weights - 8 * 192 - 8 * 10) + 35 * sum(channels)
    packed = -(-(inner + 8 * (8 * 192 + 8 * 10) + 40 * 18) // 8)
    assert options["packed_weight_bytes"] == packed
    assert options["bits_per_weight"] == pytest.approx(8 * packed / weights)
    plan = methods.get("cptv")(**SMALL, pack=True).plan(vit)
    assert plan.expected["bits_per_weight"].value == pytest.approx(options["bits_per_weight"])
    assert plan.expected["evaluations"].value == options["evaluations"] == 8
    stored = sum(
        v.const_value.nbytes
        for n, v in graph.initializers.items()
        if v.const_value is not None and "_weight_" in n and "bias" not in n
    )
    assert stored == options["weight_bytes"]


def test_what_is_stored_is_what_was_searched(vit: Model) -> None:
    """Answers of the file, by ONNX Runtime and by torch, against those of the network with rounded weights."""
    data = images(vit)
    made = cptv(vit, data, passes=0, bias_correction=False)
    network = FewBitNetwork(vit, Cptv(**SMALL | {"bias_correction": False}).options)
    rows = Rows(vit.inputs[0].name, data.samples, 8)  # type: ignore[arg-type]
    network.calibrate(rows, lambda f: None)
    rounded, _ = network.rounded()
    x = images(vit, 5, seed=1).samples
    expected = predict(dataclasses.replace(vit, ir=rounded), x, level="disable")  # type: ignore[arg-type]
    step = float(np.abs(expected).max()) / 50
    np.testing.assert_allclose(predict(made, x, level="disable"), expected, atol=step)  # type: ignore[arg-type]
    import torch

    with torch.no_grad():
        by_torch = to_torch(made)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(by_torch, expected, atol=step)


def test_a_byte_per_code_keeps_the_opset(vit: Model) -> None:
    packed, plain = (cptv(vit, images(vit), pack=pack, passes=1) for pack in (True, False))
    assert plain.ir.graph.opset_imports[""] == vit.ir.graph.opset_imports[""]
    x = images(vit, 5, seed=1).samples
    np.testing.assert_array_equal(
        predict(packed, x, level="disable"),
        predict(plain, x, level="disable"),  # type: ignore[arg-type]
    )
    assert plain.history[-1].options["weight_bytes"] > packed.history[-1].options["weight_bytes"]


def test_packed_codes_are_refused_where_a_file_cannot_hold_them(tmp_path: Path) -> None:
    model = api.load("digits-cnn")
    data = images(model)
    with pytest.raises(UnsupportedError, match="uint4"):
        api.save(cptv(model, data, pack=True, passes=0), tmp_path / "packed.tflite")
    assert not list(tmp_path.iterdir())


def test_biases_make_up_for_the_mean_error() -> None:
    model, data = api.load("digits-cnn"), api.dataset("digits", "train")
    losses = [
        cptv(
            model,
            data,
            rows=200,
            batch_size=100,
            edge_bits=3,
            passes=0,
            loss="mse",
            bias_correction=corrected,
        )
        .history[-1]
        .options["loss_before"]
        for corrected in (True, False)
    ]
    assert losses[0] < losses[1]


def test_threads_do_not_change_the_result(vit: Model) -> None:
    first, second = (cptv(vit, images(vit), threads=n).ir for n in (1, 3))
    assert ir.to_proto(first).SerializeToString(deterministic=True) == ir.to_proto(second).SerializeToString(
        deterministic=True
    )


def test_seeds_differ_and_budgets_hold() -> None:
    model = TestCptv().network()
    data = images(model)
    first, other = (cptv(model, data, seed=s, passes=6) for s in (0, 1))
    assert first.history[-1].options["search"] != other.history[-1].options["search"]
    for budget in (1, 5):
        assert cptv(model, data, budget_evals=budget, passes=6).history[-1].options["evaluations"] == budget


def test_a_killed_search_goes_on(vit: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLAS_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr("dlas.compress.checkpoint._SHARE", 0)
    whole = cptv(vit, images(vit))
    told: list[str] = []

    def stop(fraction: float, text: str) -> None:
        if text.startswith("evaluation 6"):
            raise KeyboardInterrupt

    member = methods.get("cptv")(**SMALL)
    with checkpoints_in(tmp_path), pytest.raises(KeyboardInterrupt):
        member.apply(vit, images(vit), stop)
    with checkpoints_in(tmp_path):
        again = member.apply(vit, images(vit), lambda f, text: told.append(text))
    assert any(text.startswith("resumed after 4 of 8") for text in told)
    assert again.to_bytes() == whole.to_bytes()


def test_a_fixed_batch_is_kept(vit: Model) -> None:
    model = api.untrained("digits-cnn:width=4")
    graph = model.editable()
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        assert value.shape is not None
        value.shape[0] = 5
    fixed = dataclasses.replace(model, ir=graph)
    made = cptv(fixed, images(model, 13), unit="layer")
    assert made.inputs[0].shape[0] == 5
    assert np.isfinite(made.history[-1].options["loss_after"])


def test_an_already_quantised_network_is_refused(vit: Model) -> None:
    with pytest.raises(UnsupportedError, match="already quantised"):
        cptv(cptv(vit, images(vit), passes=0), images(vit))


@pytest.mark.parametrize(
    "bad", [{"bits": 5}, {"passes": -1}, {"radius": 1.5}, {"unit": "head"}, {"loss": "l1"}]
)
def test_options_out_of_range_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        methods.get("cptv")(**bad)


def test_bad_rows_and_weights_are_refused(vit: Model) -> None:
    with pytest.raises(DataError, match="too little"):
        cptv(vit, images(vit, 7))
    broken = images(vit)
    assert isinstance(broken.samples, np.ndarray)
    broken.samples[3] = np.nan
    with pytest.raises(DlasError, match="finite"):
        cptv(vit, broken)
    graph = vit.editable()
    value = next(
        v for n, v in graph.graph.initializers.items() if v.const_value and v.const_value.shape.rank() == 2
    )
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32("nan"), name=value.name)
    with pytest.raises(DlasError, match=r"NaN|finite"):
        cptv(dataclasses.replace(vit, ir=graph), images(vit))


def test_it_works_from_the_name_in_a_stack(vit: Model) -> None:
    made = compress_model(vit, "cptv:bits=8,passes=1,rows=16,batch_size=8", images(vit))
    assert made.history[-1].options["bits"] == 8
    assert made.ir.graph.opset_imports[""] == 18
