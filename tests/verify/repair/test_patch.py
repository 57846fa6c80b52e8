"""Changes that can be written down, done again and undone, and logs of them that somebody tampered with."""

from __future__ import annotations

import base64
import copy
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dlas import api
from dlas.core.errors import ModelError
from dlas.graph.model import Model
from dlas.graph.reference import answers
from dlas.verify.localize import edits
from dlas.verify.localize.network import named
from dlas.verify.repair.patch import Patch
from dlas.verify.repair.report import read_log

ROWS = {"input": np.random.default_rng(0).random((4, 1, 8, 8), np.float32)}


@pytest.fixture(scope="module")
def original() -> ir.Model:
    found = api.load("digits-cnn").editable()
    named(found)
    return found


@pytest.fixture
def graph(original: ir.Model) -> ir.Model:
    return original.clone()


def _weights(graph: ir.Model) -> None:
    edits.set_input(graph, "conv2", 1, np.full((24, 24, 3, 3), 0.01, np.float32))


def _pads(graph: ir.Model) -> None:
    edits.set_attribute(graph, "conv3", ir.AttrInt64s("pads", [0, 0, 2, 2]), "pads")


def _epsilon(graph: ir.Model) -> None:
    edits.set_attribute(graph, "bn3", ir.AttrFloat32("epsilon", 1e-3), "epsilon")


def _inserted(graph: ir.Model) -> None:
    edits.insert_after(graph, "linear", "Softmax", {"axis": -1})


def _before(graph: ir.Model) -> None:
    constants = {1: np.array([2.0], np.float32)}
    edits.insert_before(graph, "conv1", 0, "Mul", {}, constants)


def _removed(graph: ir.Model) -> None:
    relu = edits.node_of(graph, "relu_2")
    edits.rewire(graph, "conv3", 0, "bn2")
    graph.graph.remove(relu, safe=True)


def _interface(graph: ir.Model) -> None:
    graph.graph.outputs.append(edits.value_of(graph, "relu_3"))


CHANGES: list[Callable[[ir.Model], None]] = [
    _weights,
    _pads,
    _epsilon,
    _inserted,
    _before,
    _removed,
    _interface,
]


def _changed(graph: ir.Model, *changes: Callable[[ir.Model], None]) -> ir.Model:
    copied = graph.clone()
    for change in changes:
        change(copied)
    copied.graph.sort()
    return copied


def _patch(graph: ir.Model, *changes: Callable[[ir.Model], None]) -> Patch:
    return Patch.between(graph, _changed(graph, *changes), "a change", {"fault": "parameter", "error": 0.5})


def _through_json(patch: Patch) -> Patch:
    return Patch.from_dict(json.loads(json.dumps(patch.to_dict())))


def _output(graph: ir.Model) -> np.ndarray:
    return answers(Model(graph), dict(ROWS))["logits"]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__.strip("_"))
@pytest.mark.parametrize("written", [False, True], ids=["kept", "json"])
def test_a_change_is_done_again_and_undone(graph: ir.Model, change: Callable, written: bool) -> None:
    wanted = _changed(graph, change)
    patch = _patch(graph, change)
    assert not patch.empty
    if written:
        patch = _through_json(patch)
    applied = patch.apply(graph)
    assert Patch.between(wanted, applied, "").empty
    assert np.array_equal(_output(applied), _output(wanted))
    undone = patch.undo(applied)
    assert Patch.between(graph, undone, "").empty
    assert np.array_equal(_output(undone), _output(graph))
    onnx.checker.check_model(ir.to_proto(applied))
    assert [v.name for v in undone.graph.outputs] == ["logits"]


def test_changes_are_stacked_and_taken_off_from_the_last(graph: ir.Model) -> None:
    patches, now = [], graph
    for change in (_weights, _pads, _inserted, _removed):
        after = _changed(now, change)
        patches.append(_through_json(Patch.between(now, after, change.__name__)))
        now = after
    again = graph
    for patch in patches:
        again = patch.apply(again)
    assert Patch.between(now, again, "").empty
    for patch in reversed(patches):
        again = patch.undo(again)
    assert Patch.between(graph, again, "").empty


def test_the_graph_itself_stays(graph: ir.Model) -> None:
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    _patch(graph, _weights, _inserted).apply(graph)
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == before


def test_equal_graphs_have_an_empty_patch(graph: ir.Model) -> None:
    assert Patch.between(graph, graph.clone(), "nothing").empty


def test_what_it_says_survives_json(graph: ir.Model) -> None:
    patch = _through_json(_patch(graph, _weights))
    assert patch.title == "a change"
    assert patch.evidence == {"fault": "parameter", "error": 0.5}


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "int8", "uint8", "int64", "float64", "bool", "int4", "float8_e4m3fn"]
)
def test_constants_of_every_type_survive_json(graph: ir.Model, dtype: str) -> None:
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.arange(6).reshape(2, 3).astype(kind)
    after = _changed(graph, lambda g: edits.set_input(g, "conv2", 1, array))
    applied = _through_json(Patch.between(graph, after, "")).apply(graph)
    found = edits.node_of(applied, "conv2").inputs[1].const_value.numpy()  # type: ignore[union-attr]
    assert found.dtype == kind
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_constants_of_odd_shapes_survive_json(graph: ir.Model, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.float32)
    after = _changed(graph, lambda g: edits.set_input(g, "conv2", 1, array))
    applied = _through_json(Patch.between(graph, after, "")).apply(graph)
    found = edits.node_of(applied, "conv2").inputs[1].const_value.numpy()  # type: ignore[union-attr]
    assert found.shape == shape


@pytest.mark.parametrize(
    "spoil",
    [
        _weights,
        lambda g: edits.set_attribute(g, "conv3", ir.AttrInt64s("pads", [1, 1, 1, 2]), "pads"),
    ],
    ids=["other weights", "other attribute"],
)
def test_another_network_is_refused(graph: ir.Model, spoil: Callable[[ir.Model], None]) -> None:
    patch = _patch(
        graph, lambda g: edits.set_input(g, "conv2", 1, np.zeros((24, 24, 3, 3), np.float32)), _pads
    )
    wrong = graph.clone()
    spoil(wrong)
    with pytest.raises(ModelError, match="does not fit this network"):
        patch.apply(wrong)


def test_it_is_not_applied_or_undone_twice(graph: ir.Model) -> None:
    for change in CHANGES:
        if change is _interface:
            continue
        patch = _patch(graph, change)
        once = patch.apply(graph)
        with pytest.raises(ModelError, match="does not fit"):
            patch.apply(once)
        with pytest.raises(ModelError, match="does not fit"):
            patch.undo(graph)


def test_names_that_are_taken_are_refused(graph: ir.Model) -> None:
    patch = _patch(graph, _before)
    taken = graph.clone()
    edits.insert_before(taken, "conv4", 0, "Mul", {}, {1: np.array([1.0], np.float32)})
    node = edits.node_of(taken, "conv4.mul")
    node.name = next(iter(patch.new.nodes))
    with pytest.raises(ModelError, match="is there already"):
        patch.apply(taken)


def test_nodes_without_names_of_their_own_are_refused(graph: ir.Model) -> None:
    double = graph.clone()
    edits.node_of(double, "relu_2").name = "relu"
    with pytest.raises(ModelError, match="two nodes are called 'relu'"):
        Patch.between(graph, double, "")


# --- logs that somebody tampered with ------------------------------------------------------------------------------


def _constant(fields: dict[str, Any]) -> dict[str, Any]:
    return next(iter(fields["new"]["constants"].values()))


def _bomb() -> str:
    return base64.b64encode(zlib.compress(bytes(64 * 2**20), 9)).decode()


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no title": lambda f: f.pop("title"),
    "title is a number": lambda f: f.update(title=5),
    "evidence is a list": lambda f: f.update(evidence=[1]),
    "no new side": lambda f: f.pop("new"),
    "side is a list": lambda f: f.update(old=[]),
    "side is nothing": lambda f: f.update(old=None),
    "nodes is a number": lambda f: f["new"].update(nodes=5),
    "nodes is a text": lambda f: f["new"].update(nodes="abc"),
    "nodes is an object": lambda f: f["new"].update(nodes={"a": 1}),
    "node is a number": lambda f: f["new"].update(nodes=[7]),
    "node of another kind": lambda f: f["new"].update(nodes=[{"opType": 5, "nonsense": {}}]),
    "node with a wrong attribute": lambda f: f["new"].update(nodes=[{"attribute": [{"ints": ["x"]}]}]),
    "inputs is a number": lambda f: f["new"].update(inputs=1),
    "constants is a list": lambda f: f["new"].update(constants=[1, 2]),
    "constant is a number": lambda f: f["new"]["constants"].update(w=3),
    "type is unknown": lambda f: _constant(f).update(dtype="float99"),
    "type is an object": lambda f: _constant(f).update(dtype="object"),
    "type is a record": lambda f: _constant(f).update(dtype=[["a", "f4"]]),
    "type is a text": lambda f: _constant(f).update(dtype="S4"),
    "type is a date": lambda f: _constant(f).update(dtype="datetime64[s]"),
    "type is nothing": lambda f: _constant(f).update(dtype=None),
    "shape is a number": lambda f: _constant(f).update(shape=3),
    "shape is negative": lambda f: _constant(f).update(shape=[-24, -24, 3, 3]),
    "shape is huge": lambda f: _constant(f).update(shape=[2**40]),
    "shape overflows": lambda f: _constant(f).update(shape=[2**32, 2**32]),
    "shape is beyond 64 bits": lambda f: _constant(f).update(shape=[2**70]),
    "shape is infinite": lambda f: _constant(f).update(shape=[float("inf")]),
    "shape is not a number": lambda f: _constant(f).update(shape=[float("nan")]),
    "shape has a hundred axes": lambda f: _constant(f).update(shape=[1] * 100),
    "shape does not fit the bytes": lambda f: _constant(f).update(shape=[2, 2]),
    "bytes are cut": lambda f: _constant(f).update(zlib=_constant(f)["zlib"][:40]),
    "bytes are no base64": lambda f: _constant(f).update(zlib="ä%"),
    "bytes are no zlib": lambda f: _constant(f).update(zlib=base64.b64encode(b"abc").decode()),
    "bytes are a number": lambda f: _constant(f).update(zlib=12),
    "bytes are a bomb": lambda f: _constant(f).update(zlib=_bomb()),
}


@pytest.mark.parametrize("spoil", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_damaged_patch_is_refused(graph: ir.Model, spoil: Callable[[dict[str, Any]], object]) -> None:
    fields = copy.deepcopy(_patch(graph, _weights, _pads).to_dict())
    Patch.from_dict(fields)
    spoil(fields)
    with pytest.raises(ModelError, match="damaged"):
        Patch.from_dict(fields)


@pytest.mark.parametrize("fields", [5, "abc", [], None])
def test_what_is_no_patch_is_refused(fields: Any) -> None:
    with pytest.raises(ModelError, match="damaged"):
        Patch.from_dict(fields)


def test_a_bomb_takes_no_memory(graph: ir.Model) -> None:
    import tracemalloc

    fields = _patch(graph, _weights).to_dict()
    _constant(fields).update(zlib=_bomb())
    tracemalloc.start()
    try:
        with pytest.raises(ModelError):
            Patch.from_dict(fields)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_weights_in_another_file_are_refused(graph: ir.Model, tmp_path: Path) -> None:
    """A log is read by whoever got it by mail: it must not bring files of this machine into the network."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x01\x02\x03\x04" * 4)
    fields = _patch(graph, _pads).to_dict()
    outside = {
        "name": "outside",
        "dims": ["4"],
        "dataType": int(onnx.TensorProto.FLOAT),
        "dataLocation": "EXTERNAL",
        "externalData": [{"key": "location", "value": str(secret)}],
    }
    fields["new"]["nodes"].append(
        {
            "name": "leak",
            "opType": "Constant",
            "output": ["leaked"],
            "attribute": [{"name": "value", "type": "TENSOR", "t": outside}],
        }
    )
    with pytest.raises(ModelError, match="damaged"):
        Patch.from_dict(fields)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no patch log"),
        (b"\x00\xff", "no patch log"),
        (b"[" * 100_000, "no patch log"),
        (b"[]", "no patch log of this version"),
        (b"{}", "no patch log of this version"),
        (b'{"dlas_repair": 99, "patches": []}', "no patch log of this version"),
        (b'{"dlas_repair": 1}', "no list of patches"),
        (b'{"dlas_repair": 1, "patches": {"a": 1}}', "no list of patches"),
        (b'{"dlas_repair": 1, "patches": [1]}', "damaged"),
    ],
    ids=["empty", "bytes", "deep", "list", "object", "version", "no patches", "patches", "patch"],
)
def test_what_is_no_log_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "log.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=words):
        read_log(path)


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.json: No such file"):
        read_log(tmp_path / "none.json")
    with pytest.raises(ModelError, match="Is a directory"):
        read_log(tmp_path)
