"""ONNX files that lie about sizes, multiply themselves, reach for other files or bring instructions to a runtime."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.graph.format import load_model
from dlas.graph.passes import simplified

node = helper.make_node
HUGE = 25_000_000_000  # elements: 100 GB of float32
SMALL = 200 * 2**20
GROWTH = 400 * 2**20


def network(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Any] | None = None,
    *,
    domains: Sequence[str] = (),
    output: Sequence[Any] = ("N", 4),
    values: Sequence[onnx.ValueInfoProto] = (),
    opset: int = 18,
    **fields: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()],
        value_info=list(values),
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **fields)


def write(folder: Path, proto: onnx.ModelProto, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


ONE = np.ones(1, np.float32)
GROW: dict[str, tuple[onnx.NodeProto, dict[str, Any]]] = {
    "ConstantOfShape": (node("ConstantOfShape", ["s"], ["k"]), {"s": ints(HUGE)}),
    "Expand": (node("Expand", ["c", "s"], ["k"]), {"c": ONE, "s": ints(HUGE)}),
    "Tile": (node("Tile", ["c", "s"], ["k"]), {"c": ONE, "s": ints(HUGE)}),
    "Pad": (node("Pad", ["c", "s"], ["k"]), {"c": ONE, "s": ints(0, HUGE)}),
    "Range": (
        node("Range", ["z", "s", "c"], ["k"]),
        {"z": np.float32(0), "s": np.float32(HUGE), "c": np.float32(1)},
    ),
    "OneHot": (
        node("OneHot", ["i", "s", "v"], ["k"]),
        {"i": ints(1), "s": ints(HUGE), "v": np.array([0, 1], np.float32)},
    ),
    "Resize": (
        node("Resize", ["c", "", "", "s"], ["k"]),
        {"c": np.ones((1, 1, 1, 1), np.float32), "s": ints(1, 1, 1, HUGE)},
    ),
    "Einsum": (
        node("Einsum", ["c", "c", "c"], ["k"], equation="i,j,k->"),
        {"c": np.ones(8000, np.float32)},
    ),
    "MatMul": (
        node("MatMul", ["c", "d"], ["k"]),
        {"c": np.ones((8000, 1), np.float32), "d": np.ones((1, 8000), np.float32)},
    ),
}


@pytest.mark.parametrize("lie", [False, True], ids=["plain", "claims-to-be-small"])
@pytest.mark.parametrize("op", list(GROW))
def test_constants_that_compute_to_much_are_not_computed(
    attempt: Any, tmp_path: Path, op: str, lie: bool
) -> None:
    grow, weights = GROW[op]
    tail = [node("ReduceSum", ["k"], ["r"], keepdims=0), node("Add", ["x", "r"], ["y"])]
    shape = [1] if lie else None
    values = [helper.make_tensor_value_info("k", TensorProto.FLOAT, shape)] if lie else []
    attempt("simplify", write(tmp_path, network([grow, *tail], weights, values=values)), growth=GROWTH)


def test_small_constants_still_fold(tmp_path: Path) -> None:
    nodes = [node("Expand", ["c", "s"], ["k"]), node("Add", ["x", "k"], ["y"])]
    model = simplified(load_model(write(tmp_path, network(nodes, {"c": ONE, "s": ints(4)}))))
    assert [n.op_type for n in model.ir.graph] == ["Add"]


@pytest.mark.parametrize("kind", [np.float32, np.int64])
@pytest.mark.parametrize("op", ["Concat", "Tile"])
def test_chains_that_multiply_constants_are_not_followed(
    attempt: Any, tmp_path: Path, op: str, kind: type
) -> None:
    nodes = []
    for i in range(12):
        inputs = [f"c{i}"] * 16 if op == "Concat" else [f"c{i}", "t"]
        nodes.append(node(op, inputs, [f"c{i + 1}"], **({"axis": 0} if op == "Concat" else {})))
    nodes += (
        [node("Reshape", ["x", "c12"], ["y"])] if kind is np.int64 else [node("Add", ["x", "c12"], ["y"])]
    )
    weights = {"c0": np.ones(1, kind), "t": ints(16)}
    attempt("simplify", write(tmp_path, network(nodes, weights)), growth=GROWTH)


def doubling(levels: int) -> onnx.ModelProto:
    functions = []
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    for i in range(levels):
        body = [node("Relu", ["a"], ["b"])]
        if i:
            body = [
                node(f"F{i - 1}", ["a"], ["m"], domain="own"),
                node(f"F{i - 1}", ["m"], ["b"], domain="own"),
            ]
        functions.append(helper.make_function("own", f"F{i}", ["a"], ["b"], body, opsets))
    call = [node(f"F{levels - 1}", ["x"], ["y"], domain="own")]
    return network(call, domains=["own"], functions=functions)


def test_functions_that_double_are_not_expanded(refused: Any, tmp_path: Path) -> None:
    assert "536870912 nodes" in refused("load", write(tmp_path, doubling(30)), growth=SMALL)
    assert "more than 64 deep" in refused("load", write(tmp_path, doubling(100)), growth=SMALL)
    assert load_model(write(tmp_path, doubling(5))).ir.graph.num_nodes() == 16


def test_functions_that_repeat_weights_are_not_expanded(refused: Any, tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.ones(250_000, np.float32))
    body = [node("Constant", [], ["c"], value=value), node("ReduceMax", ["c"], ["m"], keepdims=0)]
    body.append(node("Add", ["a", "m"], ["b"]))
    own = helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    calls = [node("F", ["x" if i == 0 else f"t{i}"], [f"t{i + 1}"], domain="own") for i in range(2000)]
    proto = network([*calls, node("Relu", ["t2000"], ["y"])], domains=["own"], functions=[own])
    assert "expand to 2000" in refused("load", write(tmp_path, proto), growth=SMALL)


@pytest.mark.parametrize("what", ["nodes", "initializers", "connections", "inputs and outputs"])
def test_graphs_beyond_the_limit_are_refused_at_once(refused: Any, tmp_path: Path, what: str) -> None:
    proto = network([node("Relu", ["x"], ["y"])])
    if what == "nodes":
        proto.graph.node.extend(node("Relu", ["x"], [f"t{i}"]) for i in range(200_000))
    elif what == "initializers":
        one = numpy_helper.from_array(ONE, "w")
        for i in range(200_000):
            one.name = f"w{i}"
            proto.graph.initializer.append(one)
    elif what == "connections":
        proto.graph.node.append(node("Concat", ["x"] * 1_000_000, ["t"], axis=0))
    else:
        proto.graph.input.extend(
            helper.make_tensor_value_info(f"i{i}", TensorProto.FLOAT, [1]) for i in range(100_000)
        )
    assert f"{what}; at most" in refused("load", write(tmp_path, proto), growth=GROWTH)


def test_the_limit_can_be_raised(tmp_path: Path) -> None:
    path = write(tmp_path, network([node("Relu", ["x"], ["h"]), node("Relu", ["h"], ["y"])]))
    with pytest.raises(Exception, match="max_nodes"):
        load_model(path, max_nodes=1)
    assert load_model(path, max_nodes=2).ir.graph.num_nodes() == 2


@pytest.mark.parametrize(
    "dims",
    [[HUGE], [2**62, 4], [2**32, 2**32], [-1], [-4, -4], [2**63 - 1], [0, HUGE], [10**6] * 20],
    ids=str,
)
def test_tensors_that_claim_more_than_they_hold(attempt: Any, tmp_path: Path, dims: list[int]) -> None:
    proto = network([node("Add", ["x", "w"], ["y"])], {"w": np.ones(4, np.float32)})
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    found = attempt("load", write(tmp_path, proto), growth=SMALL)
    assert found["error"] == "ModelError"


@pytest.mark.parametrize("op", ["If", "Loop", "Scan"])
def test_control_flow_is_named(refused: Any, tmp_path: Path, op: str) -> None:
    inner = helper.make_graph(
        [node("Identity", ["a"], ["b"])],
        "body",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    bodies = {"then_branch": inner, "else_branch": inner} if op == "If" else {"body": inner}
    if op == "Scan":
        bodies["num_scan_inputs"] = 1  # type: ignore[assignment]
    proto = network([node(op, ["x"], ["y"], name="flow", **bodies)])
    assert f"{op} (flow)" in refused("load", write(tmp_path, proto))


def test_contributed_control_flow_is_refused_too(refused: Any, tmp_path: Path) -> None:
    inner = helper.make_graph([node("Relu", ["a"], ["b"])], "body", [], [])
    proto = network(
        [node("GreedySearch", ["x"], ["y"], domain="com.microsoft", name="search", decoder=inner)],
        domains=["com.microsoft"],
    )
    assert "control flow" in refused("load", write(tmp_path, proto))


def test_subgraphs_nested_without_end_are_refused(refused: Any, tmp_path: Path) -> None:
    inner = helper.make_graph([node("Relu", ["a"], ["b"])], "g", [], [])
    for _ in range(10):
        inner = helper.make_graph([node("If", ["a"], ["b"], then_branch=inner)], "g", [], [])
    refused("load", write(tmp_path, network([node("If", ["x"], ["y"], then_branch=inner)])), growth=SMALL)
    # Deeper than protobuf itself writes: lengths by hand.
    data = b""
    for _ in range(20_000):
        length, head = len(data), bytearray()
        while length > 127:
            head.append(length & 127 | 128)
            length >>= 7
        data = b"\x3a" + bytes([*head, length]) + data
    (tmp_path / "deep.onnx").write_bytes(data)
    refused("load", tmp_path / "deep.onnx", growth=SMALL)


def test_compiled_parts_for_one_device_are_refused(refused: Any, tmp_path: Path) -> None:
    context = node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="/etc/passwd"
    )
    message = refused("load", write(tmp_path, network([context], domains=["com.microsoft"])))
    assert "compiled for one device" in message


def test_libraries_of_custom_operators_are_not_loaded(refused: Any, tmp_path: Path) -> None:
    library = tmp_path / "own.so"
    library.write_bytes(b"\x7fELF")
    own = node("Own", ["x"], ["y"], domain="own", library=str(library))
    assert "own::Own" in refused("load", write(tmp_path, network([own], domains=["own"])))


def test_instructions_to_a_runtime_are_dropped(tmp_path: Path) -> None:
    proto = network([node("Relu", ["x"], ["y"])])
    profile = tmp_path / "profile"
    config = json.dumps({"session_options": {"enable_profiling": str(profile)}})
    for key in ("ort_config", "session.load_model_format", "ep.context_file_path", "ORT_config", "licence"):
        proto.metadata_props.add(key=key, value=config)
    model = load_model(write(tmp_path, proto))
    assert set(model.ir.metadata_props) == {"licence"}
    proto.training_info.add().initialization.name = "t"
    assert not load_model(write(tmp_path, proto)).to_proto().training_info


@pytest.mark.parametrize(
    "value",
    ["{", "[" * 100_000, '{"action": 1}', "[1]", '[{"action": "a", "options": 3}]', '[{"action": "a", "notes": [1]}]',
     '"' + "x" * 1_000_000, "null", "1e999", "\ud800".encode("utf-8", "surrogatepass").decode("latin1")],
    ids=range(10),
)  # fmt: skip
@pytest.mark.parametrize("key", ["history", "source", "preprocessing"])
def test_metadata_of_dlas_are_not_believed(refused: Any, tmp_path: Path, key: str, value: str) -> None:
    if (key, value) == ("source", '{"action": 1}'):
        value = '{"action": 1'  # whole, it is what a source looks like
    proto = network([node("Relu", ["x"], ["y"])])
    proto.metadata_props.add(key=f"dlas.{key}", value=value)
    refused("load", write(tmp_path, proto), growth=SMALL)


def test_a_name_in_the_metadata_is_no_path(tmp_path: Path) -> None:
    proto = network([node("Relu", ["x"], ["y"])])
    proto.metadata_props.add(key="dlas.name", value="../../\x1b[2J/etc/passwd" + "x" * 10_000)
    proto.metadata_props.add(key="dlas.source", value='{"path": "a.onnx"}')
    model = load_model(write(tmp_path, proto))
    assert "/" not in model.name
    assert "\x1b" not in model.name
    assert len(model.name) <= 100


NAMES = {
    "escape": "a\x1b[2J\x1b]0;title\x07b", "bidi": "a\u202eb\u2066c", "c1": "a\x9b2Jb", "lines": "a\nb\r\nc",
    "markup": "</script><img src=x onerror=alert(1)>", "path": "../../../etc/passwd", "nul": "a\0b",
    "long": "x" * 10_000_000, "vega": "datum.x]['constructor']",
}  # fmt: skip


@pytest.mark.parametrize("name", list(NAMES))
def test_names_of_any_kind_are_names(attempt: Any, tmp_path: Path, name: str) -> None:
    """They pass, or are refused in one short line; where they meet a terminal or a page is tested elsewhere."""
    text = NAMES[name]
    proto = network([node("Relu", ["x"], [text], name=text), node("Relu", [text], ["y"])])
    attempt("simplify", write(tmp_path, proto), growth=1500 * 2**20)
    broken = network([node("Fancy", [text], ["y"], name=text, domain=text)], domains=[text])
    assert attempt("load", write(tmp_path, broken))["error"]


# external data


def external(folder: Path, location: str, fields: dict[str, str] | None = None) -> Path:
    proto = network([node("Add", ["x", "w"], ["y"])], {"w": np.ones(4, np.float32)})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **(fields or {})}.items():
        tensor.external_data.add(key=key, value=value)
    return write(folder, proto)


def planted(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(np.full(4, 7, np.float32).tobytes())


def upwards(folder: Path) -> str:
    planted(folder.parent / "secret")
    return "../secret"


def absolute(folder: Path) -> str:
    planted(folder.parent / "secret")
    return str(folder.parent / "secret")


def linked(folder: Path) -> str:
    planted(folder.parent / "secret")
    (folder / "w").symlink_to(folder.parent / "secret")
    return "w"


def linked_inside(folder: Path) -> str:
    planted(folder / "real")
    (folder / "w").symlink_to("real")
    return "w"


def linked_on_the_way(folder: Path) -> str:
    planted(folder.parent / "other" / "w")
    (folder / "sub").symlink_to(folder.parent / "other")
    return "sub/w"


def hard_linked(folder: Path) -> str:
    planted(folder.parent / "secret")
    (folder / "w").hardlink_to(folder.parent / "secret")
    return "w"


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "w")
    return "w"


def a_folder(folder: Path) -> str:
    (folder / "w").mkdir()
    return "w"


def link_to_a_device(folder: Path) -> str:
    (folder / "w").symlink_to("/dev/zero")
    return "w"


def mixed_separators(folder: Path) -> str:
    planted(folder.parent / "secret")
    return "sub\\..\\..\\secret"


def with_nul(folder: Path) -> str:
    planted(folder / "w")
    return "w\0.txt"


def a_drive(folder: Path) -> str:
    return "C:/w"


def nothing(folder: Path) -> str:
    return ""


def very_long(folder: Path) -> str:
    return "w" * 1_000_000


def many_parts(folder: Path) -> str:
    return "a/" * 100_000 + "w"


PLACES: list[Callable[[Path], str]] = [
    upwards, absolute, linked, linked_inside, linked_on_the_way, hard_linked, pipe, a_folder, link_to_a_device,
    mixed_separators, with_nul, a_drive, nothing, very_long, many_parts,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda p: p.__name__)
def test_external_data_come_from_plain_files_beside_the_model(
    refused: Any, tmp_path: Path, place: Callable[[Path], str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert "external data" in refused("load", external(folder, place(folder)), growth=SMALL)


@pytest.mark.parametrize(
    "fields",
    [{"offset": "16"}, {"offset": str(2**62)}, {"offset": "9" * 5000}, {"length": "0"}, {"length": str(2**63)},
     {"offset": "-1"}, {"offset": "1e3"}, {"length": "\u0664"}],
    ids=range(8),
)  # fmt: skip
def test_external_ranges_stay_inside_the_file(refused: Any, tmp_path: Path, fields: dict[str, str]) -> None:
    planted(tmp_path / "w")
    refused("load", external(tmp_path, "w", fields), growth=SMALL)


def test_external_data_in_a_folder_below_are_read(tmp_path: Path) -> None:
    planted(tmp_path / "sub" / "w")
    assert load_model(external(tmp_path, "./sub/w")).initializers["w"][0] == 7


def test_external_data_hide_nowhere(refused: Any, tmp_path: Path) -> None:
    """Sparse tensors in attributes, and weights in parts of the file that are not the graph."""
    planted(tmp_path / "w")
    proto = onnx.load(external(tmp_path, "w"), load_external_data=False)
    hidden = proto.graph.initializer[0]
    sparse = onnx.SparseTensorProto(values=hidden, dims=[4])
    sparse.indices.CopyFrom(numpy_helper.from_array(ints(0, 1, 2, 3), "i"))
    nodes = [helper.make_node("Constant", [], ["k"], sparse_value=sparse), node("Add", ["x", "k"], ["y"])]
    assert "sparse" in refused("load", write(tmp_path, network(nodes)))
    other = network([node("Relu", ["x"], ["y"])])
    other.training_info.add().algorithm.initializer.append(hidden)
    assert not load_model(write(tmp_path, other)).initializers


def test_a_pipe_is_no_model(refused: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    refused("load", tmp_path / "m.onnx")
    (tmp_path / "zero.onnx").symlink_to("/dev/zero")
    refused("load", tmp_path / "zero.onnx")
