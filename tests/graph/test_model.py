"""Model: immutable, self-describing, hashed by what it computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from dlas.core.errors import ModelError, OptionError, ShapeError
from dlas.graph.model import Model, Step, TensorSpec, step_versions
from dlas.graph.preprocessing import Preprocessing
from dlas.testing.models import images, residual

TEXT = st.text(max_size=20)


def round_trip(model: Model) -> Model:
    return Model.from_proto(onnx.ModelProto.FromString(model.to_bytes()))


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(
        st.builds(
            Step,
            TEXT,
            st.dictionaries(TEXT, st.one_of(st.integers(), st.booleans(), st.none(), TEXT), max_size=3),
            st.dictionaries(TEXT, TEXT, max_size=2),
            st.lists(TEXT, max_size=2).map(tuple),
        ),
        max_size=3,
    ),
    source=st.dictionaries(TEXT, TEXT, max_size=3),
)
def test_history_and_source_survive_a_file(steps: list[Step], source: dict[str, str]) -> None:
    plain = residual()
    model = Model(plain.ir, "net", Preprocessing(8, 8, mean=(0.5,), std=(0.25,)), source, tuple(steps))
    back = round_trip(model)
    assert (back.name, back.preprocessing, back.source, back.history) == (
        "net",
        model.preprocessing,
        source,
        tuple(steps),
    )
    assert back.to_bytes() == model.to_bytes()
    assert back.hash == model.hash
    # what dlas keeps for itself does not pile up in the graph
    assert not [k for k in back.ir.metadata_props if k.startswith("dlas.")]


def test_foreign_metadata_are_kept() -> None:
    proto = residual().to_proto()
    onnx.helper.set_model_props(proto, {"author": "someone"})
    assert round_trip(Model.from_proto(proto)).ir.metadata_props["author"] == "someone"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("history", "[{}]"),
        ("history", "not json"),
        ("history", '{"a": 1}'),
        ("source", "[1"),
        ("source", "7"),
        ("preprocessing", "[]"),
    ],
)
def test_spoilt_metadata_are_refused(key: str, text: str) -> None:
    proto = residual().to_proto()
    onnx.helper.set_model_props(proto, {f"dlas.{key}": text})
    with pytest.raises(ModelError, match="metadata"):
        Model.from_proto(proto)


def test_preprocessing_out_of_range_is_refused() -> None:
    proto = residual().to_proto()
    onnx.helper.set_model_props(proto, {"dlas.preprocessing": '{"colour": "CMYK"}'})
    with pytest.raises((ModelError, OptionError), match="CMYK"):
        Model.from_proto(proto)


def test_a_step_leaves_the_original_alone() -> None:
    model = residual()
    hash_before, names = model.hash, [n.name for n in model.ir.graph]
    graph = model.editable()
    for node in list(graph.graph)[-1:]:
        node.name = "renamed"
    graph.graph.initializers["w1"].const_value = None
    changed = model.with_step(graph, Step("rename"))
    assert changed.history == (Step("rename"),)
    assert model.history == ()
    assert [n.name for n in model.ir.graph] == names
    assert residual().hash == hash_before == model.hash


def test_a_step_drops_the_torch_module_unless_told() -> None:
    from dataclasses import replace

    model = replace(residual(), torch_module="module")
    assert model.with_step(model.editable(), Step("a")).torch_module is None
    assert model.with_step(model.editable(), Step("a"), torch_module="other").torch_module == "other"


def test_the_hash_is_of_what_is_computed() -> None:
    model = residual()
    assert model.renamed("other").hash == model.hash
    assert model.with_step(model.editable(), Step("nothing")).hash == model.hash
    assert residual(seed=1).hash != model.hash
    assert Model(model.ir, preprocessing=Preprocessing(4, 4)).hash != model.hash


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [("a b/c", "a-b-c"), ("ok_1.2+x=3", "ok_1.2+x=3"), ("///", "model"), ("", "model")],
)
def test_names_fit_files(given_name: str, expected: str) -> None:
    assert residual().renamed(given_name).name == expected


def test_the_signature() -> None:
    model = residual()
    assert model.inputs == (TensorSpec("image", ("N", 3, 12, 12), "float32"),)
    assert [s.name for s in model.outputs] == ["logits"]
    assert model.inputs[0].is_dynamic
    assert model.inputs[0].bound(5) == (5, 3, 12, 12)
    assert TensorSpec("x", (2, 3), "int8").bound(9) == (2, 3)
    with pytest.raises(ShapeError, match="beyond the batch"):
        TensorSpec("x", ("N", 3, "H"), "float32").bound(1)


def test_unnamed_dimensions_get_a_name() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])],
    )
    assert Model.from_proto(helper.make_model(graph)).inputs[0].shape == ("dim0", 4)


def test_a_tensor_without_a_shape_is_an_error() -> None:
    proto = residual().to_proto()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="'logits' has no shape"):
        _ = Model.from_proto(proto).outputs


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"picture": images(1)},
        {"image": images(1), "more": images(1)},
        {"image": images(1).astype(np.float16)},
        {"image": images(1)[0]},
        {"image": images(1)[:, :, :5]},
    ],
)
def test_inputs_that_do_not_fit(inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(ShapeError):
        residual().check_inputs(inputs)


def test_inputs_that_fit() -> None:
    residual().check_inputs({"image": images(3)})


def test_versions_name_dlas() -> None:
    versions = step_versions("numpy", "surely-not-installed")
    assert versions["dlas"]
    assert versions["numpy"] == np.__version__
    assert versions["surely-not-installed"] == ""
