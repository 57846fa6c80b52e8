"""The FetaFix procedure: what it repairs, what it takes back, when it stops."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from scipy import stats

from dlas import api
from dlas.core.errors import ModelError, OptionError
from dlas.verify.localize import edits
from dlas.verify.localize.network import named
from dlas.verify.repair.job import Job, Mended, valid
from dlas.verify.repair.strategies import _layers, _segments, _suspicion, _whole
from dlas.verify.repair.strategies._matching import Pairing, constant_of
from dlas.verify.repair.strategies.fetafix import FetaFix
from dlas.verify.repair.strategy import strategies

ROWS = 60


@cache
def digits() -> tuple[ir.Model, np.ndarray]:
    """The network that ships with dlas and the digits it was trained for, ``(60, 1, 8, 8) float32``."""
    from sklearn.datasets import load_digits

    graph = api.load("digits-cnn").editable()
    named(graph)
    return graph, (load_digits().images[:ROWS, None] / 16).astype(np.float32)


def job_of(target: ir.Model, rows: int = ROWS) -> Job:
    source, x = digits()
    return Job(source, target, {"input": x[:rows]})


def faulty() -> ir.Model:
    return digits()[0].clone()


def flips(job: Job, graph: ir.Model) -> int:
    return int(job.flipped(job.output(graph)).sum())


def scaled(graph: ir.Model, node: str, index: int, factor: float) -> None:
    array = constant_of(edits.node_of(graph, node).inputs[index])
    assert array is not None
    edits.set_input(graph, node, index, (array * np.float32(factor)).astype(array.dtype))


def assert_repaired(job: Job, mended: Mended) -> None:
    """No label differs any more, and the patches alone make the same network, and take it back."""
    assert flips(job, job.target) > 0, "the fault must show"
    assert flips(job, mended.graph) == 0
    assert not mended.notes
    assert valid(mended.graph) == ""
    graph = job.target
    for patch in mended.patches:
        graph = patch.apply(graph)
    again, known = job.output(graph), job.output(mended.graph)
    assert again is not None
    assert known is not None
    assert np.array_equal(again, known)
    for patch in reversed(mended.patches):
        graph = patch.undo(graph)
    assert np.array_equal(job.output(graph), job.output(job.target))  # type: ignore[arg-type]


def small(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shapes: dict[str, list[int | str]]
) -> ir.Model:
    """A network whose first tensor of ``shapes`` is its input; the others are outputs."""
    values = [helper.make_tensor_value_info(k, 1, v) for k, v in shapes.items()]
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "small", values[:1], values[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    found = ir.from_proto(proto)
    named(found)
    return found


def two_convolutions(hidden: int = 4, names: tuple[str, str] = ("first", "second")) -> ir.Model:
    rng = np.random.default_rng(5)
    weights = {
        "w1": rng.standard_normal((hidden, 2, 3, 3)).astype(np.float32),
        "w2": rng.standard_normal((3, hidden, 3, 3)).astype(np.float32),
    }
    weights["w2"] -= weights["w2"].mean(axis=(1, 2, 3), keepdims=True)  # else one label has it all
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], names[0]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], names[1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["scores"]),
    ]
    return small(nodes, weights, {"x": ["N", 2, 6, 6], "scores": ["N", 3]})


def small_job(source: ir.Model, target: ir.Model, rows: int = 40) -> Job:
    shape = [int(d) if isinstance(d, int) else rows for d in source.graph.inputs[0].shape or ()]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return Job(source, target, {str(source.graph.inputs[0].name): x})


@pytest.mark.parametrize(("node", "index"), [("conv1", 1), ("conv4", 1), ("bn4", 3), ("linear", 1)])
def test_copies_parameters_of_the_faulty_layer(node: str, index: int) -> None:
    target = faulty()
    array = constant_of(edits.node_of(target, node).inputs[index])
    assert array is not None
    ramp = np.linspace(-3, 3, len(array)).reshape(-1, *[1] * (array.ndim - 1))
    edits.set_input(target, node, index, (array[::-1] + ramp).astype(np.float32))
    job = job_of(target)
    mended = FetaFix().mend(job)
    assert_repaired(job, mended)
    assert [p.evidence["target_node"] for p in mended.patches] == [node]
    assert mended.patches[0].evidence["strategy"] == "params"
    assert job.error(job.output(mended.graph)) == 0


@pytest.mark.parametrize(
    ("node", "attribute", "value", "shifted"),
    [
        ("conv1", "dilations", [2, 2], True),
        ("bn2", "epsilon", 30.0, False),
        ("conv1", "pads", [0, 0, 2, 2], False),
    ],
)
def test_sets_hyper_parameters_as_in_the_source(
    node: str, attribute: str, value: object, shifted: bool
) -> None:
    target = faulty()
    found = edits.node_of(target, node)
    found.attributes[attribute] = ir.convenience.convert_attribute(attribute, value)  # type: ignore[arg-type]
    if shifted:
        found.attributes["pads"] = ir.AttrInt64s("pads", [2, 2, 2, 2])
    job = job_of(target)
    mended = FetaFix().mend(job)
    assert_repaired(job, mended)
    assert [p.evidence["strategy"] for p in mended.patches] == ["hyperparams"]
    assert job.error(job.output(mended.graph)) == 0


def test_bounds_of_clip_are_hyper_parameters() -> None:
    def clipped(low: float, high: float | None) -> ir.Model:
        weights = {"w": np.random.default_rng(2).standard_normal((6, 4)).astype(np.float32)}
        weights |= {"low": np.array(low, np.float32)} | (
            {} if high is None else {"high": np.array(high, np.float32)}
        )
        nodes = [
            helper.make_node("Clip", ["x", "low"] + ([] if high is None else ["high"]), ["a"], "clip"),
            helper.make_node("MatMul", ["a", "w"], ["scores"], "dense"),
        ]
        return small(nodes, weights, {"x": ["N", 6], "scores": ["N", 4]})

    for source, target in ((clipped(0, 3), clipped(0, 0.1)), (clipped(0, 1), clipped(0, None))):
        job = small_job(source, target)
        mended = FetaFix().mend(job)
        assert_repaired(job, mended)
        assert [p.evidence["strategy"] for p in mended.patches] == ["hyperparams"]
    job = small_job(clipped(0, None), clipped(0, 0.1))  # the source has no upper bound: it is taken away
    assert_repaired(job, FetaFix().mend(job))


def _drop(graph: ir.Model) -> None:
    edits.bypass(graph, "relu")  # read by a convolution and by the Add behind it


def _replace(graph: ir.Model) -> None:
    edits.node_of(graph, "add").op_type = "Sub"


def _insert(graph: ir.Model) -> None:
    edits.insert_before(graph, "conv2", 0, "Transpose", {"perm": [0, 1, 3, 2]})


def _tail(graph: ir.Model) -> None:
    edits.insert_after(graph, "linear", "Neg")


@pytest.mark.parametrize("fault", [_drop, _replace, _insert, _tail])
def test_replaces_the_segment_between_two_convolutions(fault) -> None:
    target = faulty()
    fault(target)
    job = job_of(target)
    mended = FetaFix().mend(job)
    assert_repaired(job, mended)
    assert mended.patches[-1].evidence["strategy"] in ("graph", "graph[add]")
    assert job.error(job.output(mended.graph)) == 0
    assert [n.op_type for n in mended.graph.graph] == [n.op_type for n in job.source.graph]


def test_segment_whose_surroundings_have_no_counterpart_is_left() -> None:
    target = faulty()
    edits.bypass(target, "relu")
    edits.node_of(target, "add").op_type = "Sub"  # reads the segment from beside it
    pairing = Pairing(digits()[0], target)
    (_, splice), *_ = _segments.segments(pairing, edits.node_of(target, "conv2"), ends=True)
    with pytest.raises(ModelError, match="no counterpart in the source"):
        splice(target.clone())


def test_unfixable_network_is_rolled_back() -> None:
    source, target = two_convolutions(), two_convolutions(hidden=5)
    job = small_job(source, target)
    before = ir.to_proto(target).SerializeToString(deterministic=True)
    mended = FetaFix().mend(job)
    assert any(line.startswith("rolled back: params: parameters of first") for line in mended.log)
    assert mended.patches == []
    assert ir.to_proto(mended.graph).SerializeToString(deterministic=True) == before
    assert mended.notes
    assert "have another label" in mended.notes[0]


def test_change_that_lowers_tau_is_reverted() -> None:
    """Hidden channels in another order, consistently, are no fault: one side alone would make one."""
    source = two_convolutions()
    target = source.clone()
    order = np.array([2, 0, 3, 1])
    first, second = (constant_of(edits.node_of(source, n).inputs[1]) for n in ("first", "second"))
    assert first is not None
    assert second is not None
    edits.set_input(target, "first", 1, np.ascontiguousarray(first[order]))
    edits.set_input(target, "second", 1, np.ascontiguousarray(second[:, order]))
    assert flips(small_job(source, target), target) == 0
    # A constant as input 0 is none that is copied, so that every image is tried.
    edits.insert_after(source, "second", "Add", constants={0: np.zeros((3, 1, 1), np.float32)})
    edits.insert_after(target, "second", "Add", constants={0: np.float32([[[1.5]], [[0]], [[0]]])})
    job = small_job(source, target)
    mended = FetaFix(rounds=50).mend(job)
    assert any(line.startswith("reverted: params: ") for line in mended.log)
    assert flips(job, mended.graph) <= flips(job, target)


def test_stops_after_six_rounds_without_a_change() -> None:
    target = faulty()
    bias = constant_of(
        edits.node_of(target, "linear").inputs[2]
    )  # input 2 of a Gemm is not among what it copies
    assert bias is not None
    edits.set_input(target, "linear", 2, (bias + np.linspace(-9, 9, 10)).astype(np.float32))
    mended = FetaFix().mend(job_of(target))
    assert mended.patches == []
    assert "stopped: unchanged in 6 rounds" in mended.log
    assert sum(line.startswith("round ") for line in mended.log) == 6
    fewer = FetaFix(rounds=2).mend(job_of(target))
    assert "stopped: unchanged in 2 rounds" in fewer.log
    assert sum(line.startswith("round ") for line in fewer.log) == 2


def test_stops_when_every_image_was_tried() -> None:
    target = faulty()
    edits.rewire(target, "add", 1, "conv3")
    job = job_of(target)
    count = flips(job, target)
    assert 0 < count < 6
    mended = FetaFix().mend(job)
    assert "stopped: every dissimilar image was tried" in mended.log
    assert sum(line.startswith("round ") for line in mended.log) == count


def test_stops_when_the_budget_is_spent() -> None:
    target = faulty()
    edits.node_of(target, "add").op_type = "Sub"
    job = job_of(target)
    job.most_runs = 2
    mended = FetaFix().mend(job)
    assert "stopped: the budget is spent" in mended.log
    assert mended.patches == []
    assert job.runs <= 2 + 1 / ROWS + 1e-9


def test_same_network_is_left_alone() -> None:
    job = job_of(faulty())
    mended = FetaFix().mend(job)
    assert mended.patches == []
    assert mended.notes == []
    assert "stopped: no label differs" in mended.log
    assert job.runs == job.starts == 2


def test_output_without_labels_is_said() -> None:
    weights = {"w": np.ones((4, 1), np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = small(nodes, weights, {"x": ["N", 4], "y": ["N", 1]})
    mended = FetaFix().mend(small_job(graph, graph))
    assert mended.patches == []
    assert "needs labels" in mended.notes[0]


def test_single_images_count_as_their_share_of_a_run() -> None:
    target = faulty()
    scaled(target, "linear", 1, -1.0)
    job = job_of(target)
    mended = FetaFix().mend(job)
    single = next(int(line.split()[-1]) for line in mended.log if line.startswith("runs on a single image"))
    assert single > 0
    ranked = 2 * sum(len(r) for r in [_rows_ranked(job)])
    whole = 3  # the source, the target before and after
    assert job.runs == pytest.approx(whole + (single + ranked) / ROWS)
    assert job.starts >= whole + single


def _rows_ranked(job: Job) -> np.ndarray:
    """The rows that suspiciousness is computed on: none where too few images are right or wrong."""
    wrong = job.flipped(job.output(job.target))
    job.runs -= 1
    if wrong.sum() < 2 or (~wrong).sum() < 2:
        return np.array([])
    rng = np.random.default_rng(0)
    bad = rng.permutation(np.flatnonzero(wrong))[:15]
    return np.unique(np.concatenate([bad, *(rng.permutation(np.flatnonzero(~wrong))[:15] for _ in range(3))]))


def test_same_seed_same_changes() -> None:
    target = faulty()
    edits.insert_before(target, "conv2", 0, "Transpose", {"perm": [0, 1, 3, 2]})
    scaled(target, "conv3", 1, -2.0)
    first, second = (FetaFix(seed=3).mend(job_of(target)) for _ in range(2))
    assert first.log == second.log
    assert [p.to_dict() for p in first.patches] == [p.to_dict() for p in second.patches]


def test_two_faults_at_once() -> None:
    target = faulty()
    scaled(target, "conv2", 1, -3.0)
    edits.node_of(target, "conv4").attributes["pads"] = ir.AttrInt64s("pads", [2, 2, 0, 0])
    job = job_of(target)
    mended = FetaFix().mend(job)
    assert_repaired(job, mended)


def test_outcome_is_the_best_network_of_all_rounds() -> None:
    target = faulty()
    bias = constant_of(edits.node_of(target, "linear").inputs[2])
    assert bias is not None
    edits.set_input(target, "linear", 2, (bias + np.linspace(-3, 3, 10)).astype(np.float32))
    scaled(target, "conv1", 1, -1.0)
    job = job_of(target)
    mended = FetaFix().mend(job)
    shares = [float(s.rstrip("%")) for s in mended.log[-3].removeprefix("dissimilar: ").split(" -> ")]
    assert flips(job, mended.graph) / ROWS * 100 == pytest.approx(min(shares), abs=0.06)


def test_suspicious_layer_comes_first() -> None:
    target = faulty()
    array = constant_of(edits.node_of(target, "conv4").inputs[1])
    assert array is not None
    edits.set_input(
        target, "conv4", 1, np.where(np.arange(len(array))[:, None, None, None] % 2, array, -array)
    )
    job = job_of(target)
    wrong = job.flipped(job.output(target))
    assert 2 <= wrong.sum() <= ROWS - 2
    ranked = _suspicion.ranking(job, Pairing(job.source, target), wrong, np.random.default_rng(0))
    assert ranked == ["conv4", "conv1", "conv2", "conv3"]
    without = _suspicion.ranking(
        job, Pairing(job.source, target), np.ones(ROWS, bool), np.random.default_rng(0)
    )
    assert without == ["conv1", "conv2", "conv3", "conv4"]


def test_share_of_different_elements_is_that_of_kruskal_and_wallis() -> None:
    rng = np.random.default_rng(4)
    bad, good = rng.standard_normal((15, 40)), rng.standard_normal((12, 40))
    bad[:, :9] += 2.0
    bad[:, 30:] = good[0, 30:] = good[:, 30:] = 0.0  # zero in both: no difference
    good[:, 20:25] = 0.0  # constant only where labels agree: a difference whatever the test says
    bad[:, 25:28] = 1.5  # constant only where they do not: for the test to say
    expected = 0
    for a, b in zip(bad.T, good.T, strict=True):
        if np.ptp(b) == 0 and np.ptp(a) != 0:
            expected += 1
        elif np.ptp(np.concatenate([a, b])) != 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected += bool(stats.kruskal(a, b).pvalue < 0.05)
    assert expected >= 14
    assert _suspicion.share_different(bad, good) == expected / 40
    assert _suspicion.share_different(bad[:, :0], good[:, :0]) == 0.0


def test_nodes_without_a_common_name_match_by_their_constants() -> None:
    source, target = two_convolutions(), two_convolutions(names=("alpha", "beta"))
    scaled(target, "alpha", 1, 1.01)
    scaled(target, "beta", 1, 3.0)
    pairing = Pairing(source, target)
    assert pairing.of_target["alpha"].name == "first"
    assert pairing.of_source["first"] == "alpha"
    assert "beta" not in pairing.of_target  # its weights differ by more than 0.2
    edits.node_of(target, "beta").name = "first"  # the name decides then, and weights do not
    assert Pairing(source, target).of_target["first"].name == "first"


def test_same_name_of_another_operator_does_not_match() -> None:
    source, target = two_convolutions(), two_convolutions()
    edits.node_of(target, "Relu_1").op_type = "Sigmoid"
    assert "Relu_1" not in Pairing(source, target).of_target


def test_turns_the_first_weights_of_a_target_that_begins_with_a_transpose() -> None:
    source, target = two_convolutions(), two_convolutions()
    edits.insert_before(target, "first", 0, "Transpose", {"perm": [0, 1, 2, 3]})
    weights = constant_of(edits.node_of(source, "first").inputs[1])
    assert weights is not None
    edits.set_input(target, "first", 1, np.ascontiguousarray(weights.transpose(0, 1, 3, 2)))
    job = small_job(source, target)
    mended = FetaFix().mend(job)
    assert_repaired(job, mended)
    assert mended.patches[0].evidence["strategy"] == "first weights"
    assert "[0, 1, 3, 2]" in mended.patches[0].title


def test_other_input_sizes_are_aligned_and_transposes_taken_away() -> None:
    """Axes 0, 3, 1, 2 would be right behind a channels-last input; the last two are swapped here."""
    source, target = two_convolutions(), two_convolutions()
    edits.insert_before(target, "first", 0, "Transpose", {"perm": [0, 3, 2, 1]})
    target.graph.inputs[0].shape = ir.Shape(["N", 6, 6, 2])
    job = small_job(source, target)
    mended = FetaFix().mend(job)
    assert_repaired(job, mended)
    assert mended.patches[0].evidence["strategy"] == "inputs"
    assert list(mended.graph.graph.inputs[0].shape or ())[1:] == [2, 6, 6]
    assert job.error(job.output(mended.graph)) == 0


def test_right_input_of_another_layout_stays() -> None:
    source, target = two_convolutions(), two_convolutions()
    edits.insert_before(target, "first", 0, "Transpose", {"perm": [0, 3, 1, 2]})
    target.graph.inputs[0].shape = ir.Shape(["N", 6, 6, 2])
    edits.insert_after(target, "second", "Neg")
    job = small_job(source, target)
    mended = FetaFix().mend(job)
    assert flips(job, mended.graph) == 0
    assert any("reverted: inputs" in line for line in mended.log) or not mended.patches[0].old.inputs


def test_drops_surplus_outputs() -> None:
    source, target = two_convolutions(), two_convolutions()
    extra = edits.value_of(target, "d")
    extra.shape, extra.type = ir.Shape(["N", 3, 1, 1]), ir.TensorType(ir.DataType.FLOAT)
    negative = edits.value_of(target, "a")
    negative.shape, negative.type = ir.Shape(["N", 4, 4, 4]), ir.TensorType(ir.DataType.FLOAT)
    target.graph.outputs.insert(0, negative)
    target.graph.outputs.append(extra)
    job = small_job(source, target)
    mended = FetaFix().mend(job)
    assert_repaired(job, mended)
    assert [v.name for v in mended.graph.graph.outputs] == ["scores"]
    (change,) = _whole.proposals(Pairing(source, target))
    assert change.strategy == "outputs"
    assert "a, d" in change.title


def test_flatten_gets_a_transpose_where_axes_come_in_another_order() -> None:
    weights = {"w": np.random.default_rng(3).standard_normal((24, 5)).astype(np.float32)}
    flat = helper.make_node("Flatten", ["x"], ["f"], "flat")
    dense = helper.make_node("MatMul", ["f", "w"], ["scores"], "dense")
    source = small([flat, dense], weights, {"x": ["N", 2, 3, 4], "scores": ["N", 5]})
    target = small([flat, dense], weights, {"x": ["N", 3, 4, 2], "scores": ["N", 5]})
    (change,) = _layers.proposals("flatten", Pairing(source, target), edits.node_of(target, "flat"))
    assert "[0, 3, 1, 2]" in change.title
    job = small_job(source, target)
    mended = FetaFix().mend(job)
    assert flips(job, target) > 0
    assert flips(job, mended.graph) == 0


def test_target_that_does_not_run_counts_as_dissimilar() -> None:
    target = faulty()
    edits.insert_before(target, "linear", 0, "Transpose", {"perm": [1, 0]})
    job = job_of(target)
    assert job.output(target) is None
    mended = FetaFix().mend(job)
    assert len(mended.patches) == 1
    assert mended.patches[0].evidence["tau_before"] is None
    assert flips(job, mended.graph) == 0


def test_options_are_checked() -> None:
    assert strategies.get("fetafix") is FetaFix
    assert FetaFix().options.tau == 0.98
    assert FetaFix().options.rounds == 6
    with pytest.raises(OptionError):
        FetaFix(tau=2.0)
    with pytest.raises(OptionError):
        FetaFix(rounds=0)


def test_rows_as_the_target_prepares_them_are_used_while_they_fit() -> None:
    source, x = digits()
    last = faulty()
    edits.insert_before(last, "conv1", 0, "Transpose", {"perm": [0, 3, 1, 2]})
    last.graph.inputs[0].shape = ir.Shape(["N", 8, 8, 1])
    own = {"input": np.ascontiguousarray(x.transpose(0, 2, 3, 1))[:, ::-1].copy()}
    job = Job(source, last, {"input": x}, own)
    assert np.array_equal(job.fed(last)["input"], own["input"])
    assert np.array_equal(job.fed(last, slice(3, 5))["input"], own["input"][3:5])
    assert np.array_equal(job.fed(source)["input"], x)  # of another shape: the source's own rows
