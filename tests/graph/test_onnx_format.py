"""The ONNX reader and writer: good files round-trip, bad ones are refused with one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dlas.core.errors import DlasError, ModelError, UnsupportedError
from dlas.graph.format import load_model, save_model
from dlas.graph.model import Step
from dlas.graph.reference import predict
from dlas.testing.models import images, residual, residual_quantized


def proto_of(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 18,
    input_shape: Sequence[Any] = ("N", 4),
    output_shape: Sequence[Any] | None = None,
    domains: Sequence[str] = (),
    ir_version: int = 8,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def gemm(**fields: Any) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 3)).astype(np.float32), "b": np.ones(3, np.float32)}
    return proto_of([helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="fc")], weights, **fields)


def write(folder: Path, proto: onnx.ModelProto, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_saved_model_comes_back_the_same(tmp_path: Path) -> None:
    model = residual()
    model = model.with_step(model.editable(), Step("try", {"seed": 3}))
    save_model(model, tmp_path / "residual.onnx")
    back = load_model(tmp_path / "residual.onnx")
    assert back.history == model.history
    assert back.inputs == model.inputs
    np.testing.assert_array_equal(predict(back, images(3)), predict(model, images(3)))
    save_model(back, tmp_path / "again.onnx")
    assert load_model(tmp_path / "again.onnx").hash == back.hash


def test_source_names_the_file_and_its_framework(tmp_path: Path) -> None:
    proto = gemm()
    proto.producer_name, proto.producer_version = "maker", "1.5"
    source = load_model(write(tmp_path, proto, "net.onnx")).source
    assert source["format"] == "onnx"
    assert source["path"] == "net.onnx"
    assert source["framework"] == "maker 1.5"
    assert len(source["sha256"]) == 64


def test_the_first_source_survives_saving(tmp_path: Path) -> None:
    first = load_model(write(tmp_path, gemm(), "first.onnx"))
    save_model(first, tmp_path / "second.onnx")
    second = load_model(tmp_path / "second.onnx")
    assert second.source["path"] == "first.onnx"
    assert (first.name, second.name) == ("first", "first")


def test_nodes_get_unique_names_and_constants_become_initializers(tmp_path: Path) -> None:
    one = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(4, np.float32)))
    nodes = [
        one,
        helper.make_node("Add", ["x", "c"], ["a"], name="n"),
        helper.make_node("Mul", ["a", "c"], ["y"]),
    ]
    nodes.insert(2, helper.make_node("Relu", ["a"], ["unused"], name="n"))
    first = load_model(write(tmp_path, proto_of(nodes)))
    names = [n.name for n in first.ir.graph]
    assert len(set(names)) == len(names) == 3
    assert all(names)
    assert names == [n.name for n in load_model(tmp_path / "m.onnx").ir.graph]
    np.testing.assert_array_equal(first.initializers["c"], np.ones(4))


def test_weights_listed_as_inputs_are_weights(tmp_path: Path) -> None:
    proto = gemm(ir_version=3)
    for name, shape in (("w", (4, 3)), ("b", (3,))):
        proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    model = load_model(write(tmp_path, proto))
    assert [v.name for v in model.ir.graph.inputs] == ["x"]
    assert set(model.initializers) == {"w", "b"}


def test_missing_shapes_are_inferred(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, gemm()))
    assert model.outputs[0].shape == ("N", 3)


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_old_opsets_are_upgraded(tmp_path: Path, opset: int) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="fc"),
        helper.make_node("Softmax", ["h"], ["s"], axis=1),
        helper.make_node("Unsqueeze", ["s"], ["u"], axes=[1]),
        helper.make_node("ReduceSum", ["u"], ["y"], axes=[1], keepdims=0),
    ]
    weights = {"w": np.eye(4, dtype=np.float32)[:, :3].copy(), "b": np.ones(3, np.float32)}
    model = load_model(write(tmp_path, proto_of(nodes, weights, opset=opset, output_shape=["N", 3])))
    assert model.ir.graph.opset_imports[""] >= 13
    x = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    exp = np.exp(x[:, :3] + 1)
    np.testing.assert_allclose(predict(model, x), exp / exp.sum(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("scale", [1.6, 2.0, 2.5, 3.0])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("op", "opset"), [("Upsample", 7), ("Upsample", 9), ("Resize", 10)])
def test_old_resizing_keeps_its_coordinates(
    tmp_path: Path, op: str, opset: int, mode: str, scale: float
) -> None:
    scales = [1.0, 1.0, scale, scale]
    given = {"scales": scales} if opset == 7 else {}
    weights = {} if opset == 7 else {"s": np.array(scales, np.float32)}
    node = helper.make_node(op, ["x", *weights], ["y"], mode=mode, **given)
    proto = proto_of([node], weights, opset=opset, input_shape=[1, 1, 4, 5])
    x = np.random.default_rng(0).standard_normal((1, 1, 4, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"x": x})[0]
    np.testing.assert_allclose(predict(load_model(write(tmp_path, proto)), x), wanted, atol=1e-6)


@pytest.mark.parametrize("opset", [7, 9, 11])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [0, 1, 2, 3, None])
def test_old_softmax_works_over_all_axes_behind(
    tmp_path: Path, op: str, axis: int | None, opset: int
) -> None:
    node = helper.make_node(op, ["x"], ["y"], **({} if axis is None else {"axis": axis}))
    proto = proto_of([node], opset=opset, input_shape=[2, 3, 4, 5])
    if op == "Hardmax" and axis != 3:
        with pytest.raises(UnsupportedError, match="several axes"):
            load_model(write(tmp_path, proto))
        return
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"x": x})[0]
    np.testing.assert_allclose(predict(load_model(write(tmp_path, proto)), x), wanted, atol=1e-6)


def test_unsorted_nodes_are_sorted(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Neg", ["x"], ["h"])]
    assert [n.op_type for n in load_model(write(tmp_path, proto_of(nodes))).ir.graph] == ["Neg", "Relu"]


def test_cycles_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "y"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    with pytest.raises(ModelError, match="cycle"):
        load_model(write(tmp_path, proto_of(nodes)))


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([("Relu", ["x"], ["y"]), ("Neg", ["x"], ["y"])], "'y' is written twice"),
        ([("Add", ["x", "ghost"], ["y"])], "'ghost' is used but nothing produces it"),
        ([("Relu", ["x"], ["z"])], "'y' is used but nothing produces it"),
        ([("Relu", ["x", "x"], ["y"])], "not a valid ONNX model"),
    ],
)
def test_inconsistent_graphs_are_refused(tmp_path: Path, nodes: list[Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        load_model(write(tmp_path, proto_of([helper.make_node(*n) for n in nodes])))


def test_two_weights_of_one_name_are_refused(tmp_path: Path) -> None:
    proto = gemm()
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "b"))
    with pytest.raises(ModelError, match=r"one name: b"):
        load_model(write(tmp_path, proto))


def test_control_flow_is_refused_by_name(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["c"], ["y"], name="pick", then_branch=branch, else_branch=branch)
    with pytest.raises(UnsupportedError, match=r"If \(pick\)"):
        load_model(write(tmp_path, proto_of([node], {"c": np.array(True)})))


def test_custom_operators_are_refused_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Fancy", ["x"], ["h"], domain="vendor"), helper.make_node("Odd", ["h"], ["y"])]
    with pytest.raises(UnsupportedError, match=r"vendor::Fancy.*Odd"):
        load_model(write(tmp_path, proto_of(nodes, domains=["vendor"])))


def test_contributed_operators_pass_only_when_known(tmp_path: Path) -> None:
    known = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft", name="g")
    proto = proto_of([known], domains=["com.microsoft"], output_shape=["N", 4])
    model = load_model(write(tmp_path, proto))
    assert predict(model, np.zeros((2, 4), np.float32)).shape == (2, 4)
    unknown = helper.make_node("NoSuchThing", ["x"], ["y"], domain="com.microsoft")
    with pytest.raises(UnsupportedError, match=r"com\.microsoft::NoSuchThing"):
        load_model(write(tmp_path, proto_of([unknown], domains=["com.microsoft"])))


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    twice = helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    proto = proto_of([helper.make_node("Twice", ["x"], ["y"], domain="own")], domains=["own"])
    proto.functions.append(twice)
    model = load_model(write(tmp_path, proto))
    assert [n.op_type for n in model.ir.graph] == ["Add"]
    np.testing.assert_array_equal(predict(model, np.ones((1, 4), np.float32)), 2 * np.ones((1, 4)))


def test_a_function_that_calls_itself_is_refused(tmp_path: Path) -> None:
    body = [helper.make_node("Again", ["a"], ["b"], domain="own")]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    again = helper.make_function("own", "Again", ["a"], ["b"], body, opsets)
    proto = proto_of([helper.make_node("Again", ["x"], ["y"], domain="own")], domains=["own"])
    proto.functions.append(again)
    with pytest.raises(ModelError):
        load_model(write(tmp_path, proto))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    proto = gemm()
    bad = np.ones((4, 3), np.float32)
    bad[1, 1] = value
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(bad, "w"))
    path = write(tmp_path, proto)
    with pytest.raises(ModelError, match=r"'w' has 1 values of 12"):
        load_model(path)
    assert not np.isfinite(load_model(path, allow_nan=True).initializers["w"]).all()


def test_a_single_infinity_is_a_constant(tmp_path: Path) -> None:
    proto = proto_of([helper.make_node("Min", ["x", "top"], ["y"])], {"top": np.array(np.inf, np.float32)})
    assert load_model(write(tmp_path, proto)).initializers["top"] == np.inf


@pytest.mark.parametrize("dims", [[10**9, 10**9], [5, 3], [3, 3], [-1, 3]])
def test_a_tensor_must_hold_what_it_declares(tmp_path: Path, dims: list[int]) -> None:
    proto = gemm()
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    with pytest.raises(ModelError, match="'w'"):
        load_model(write(tmp_path, proto))


def test_a_constant_node_must_hold_what_it_declares(tmp_path: Path) -> None:
    huge = TensorProto(dims=[10**12], data_type=TensorProto.FLOAT, float_data=[1.0])
    nodes = [helper.make_node("Constant", [], ["c"], value=huge), helper.make_node("Add", ["x", "c"], ["y"])]
    with pytest.raises(ModelError, match=r"holds 1 values instead of 1000000000000"):
        load_model(write(tmp_path, proto_of(nodes)))


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    proto = gemm()
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "s_i"))
    sparse.dims.append(4)
    with pytest.raises(UnsupportedError, match="sparse initializers: s"):
        load_model(write(tmp_path, proto))


@pytest.mark.parametrize(("opset", "reason"), [(6, "opset 6"), (99, "newer than the installed")])
def test_opsets_out_of_range_are_refused(tmp_path: Path, opset: int, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        load_model(write(tmp_path, gemm(opset=opset)))


def test_too_large_a_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="at most 100"):
        load_model(write(tmp_path, gemm()), max_bytes=100)


@pytest.mark.parametrize(
    "content", [b"\x08garbage that is no protobuf", b"\x1a\x02\x00\x00", b"\x80\x02\x03\x04"]
)
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "junk.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        load_model(path)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_never_raise_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(residual_quantized().to_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(1, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.onnx"
    path.write_bytes(bytes(content))
    try:
        load_model(path)
    except DlasError as error:
        assert error.exit_code == 2  # noqa: PT017 - anything else fails the test by itself


# external data


def external(folder: Path, location: str, offset: str = "0", length: str = "48") -> Path:
    proto = gemm()
    tensor = proto.graph.initializer[0]
    content = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    (folder / "w.bin").write_bytes(content)
    return write(folder, proto)


def test_external_data_beside_the_model_are_read(tmp_path: Path) -> None:
    model = load_model(external(tmp_path, "w.bin"))
    np.testing.assert_array_equal(model.initializers["w"], numpy_helper.to_array(gemm().graph.initializer[0]))


@pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin", "", "C:/w.bin", "..\\w.bin"])
def test_external_data_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(b"\0" * 48)
    with pytest.raises(ModelError, match="own folder"):
        load_model(external(folder, location))


def test_absolute_external_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="own folder"):
        load_model(external(tmp_path, str(tmp_path / "w.bin")))


def test_symbolic_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 48)
    (folder / "link.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="own folder"):
        load_model(external(folder, "link.bin"))


@pytest.mark.parametrize(
    ("offset", "length"), [("4", "48"), ("0", "44"), ("0", "9" * 15), ("-4", "48"), ("x", "48")]
)
def test_external_data_must_cover_the_tensor(tmp_path: Path, offset: str, length: str) -> None:
    with pytest.raises(ModelError, match="'w'"):
        load_model(external(tmp_path, "w.bin", offset, length))


def test_missing_external_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.bin"):
        load_model(external(tmp_path, "gone.bin"))


def test_a_device_is_no_external_data(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(ModelError, match="not a file"):
        load_model(external(tmp_path, "d"))


# writing


def test_large_weights_go_beside_the_file(tmp_path: Path) -> None:
    model = residual()
    written = save_model(model, tmp_path / "big.onnx", external_above=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert "big.onnx.data" in written.notes[0]
    back = load_model(tmp_path / "big.onnx")
    np.testing.assert_array_equal(predict(back, images(2)), predict(model, images(2)))
    onnx.checker.check_model(str(tmp_path / "big.onnx"))


def test_an_unwritable_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DlasError, match="does not exist"):
        save_model(residual(), tmp_path / "no" / "m.onnx")
    assert list(tmp_path.iterdir()) == []
