"""tflite files that lie about themselves: a clear refusal, soon and in little memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tflite_maker import File, feeds_of, run_onnx

from dlas.core.errors import DlasError, ModelError, UnsupportedError
from dlas.graph.formats.tflite import from_bytes, to_bytes
from dlas.graph.formats.tflite.flat import pack, schema
from dlas.graph.reference import predict
from dlas.testing.models import images, residual


def network() -> File:
    f = File(1)
    x, a, b = f.input((1, 8, 8, 3)), f.tensor((1, 4, 4, 5)), f.tensor((1, 80))
    o = f.options("Conv2D", padding=0, strideH=2, strideW=2, dilationHFactor=1, dilationWFactor=1)
    f.add("CONV_2D", [x, f.weights(5, 3, 3, 3), f.weights(5)], [a], o)
    f.add("RESHAPE", [a, f.ints(1, 80)], [b], f.options("Reshape"))
    f.add("FULLY_CONNECTED", [b, f.weights(4, 80), -1], [f.output((1, 4))], f.options("FullyConnected"))
    return f


def refused(data: bytes, match: str, kind: type[DlasError] = ModelError) -> str:
    """The message; the refusal takes little time and memory."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(kind, match=match) as caught:
            from_bytes(data, "net")
        assert time.monotonic() - start < 10
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()
    return str(caught.value)


def test_truncation_says_what_is_missing_and_what_to_do() -> None:
    data = network().bytes()
    text = refused(data[: len(data) // 2], "truncated or damaged")
    assert f"it has {len(data) // 2} bytes" in text
    assert "again" in text
    assert "unpack_from" not in text
    assert "error" not in text.lower()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda g, m: setattr(g.tensors[1], "shape", np.array([2**15, 2**15, 5], np.int32)), "has shape"),
        (lambda g, m: setattr(g.tensors[1], "shape", np.array([-1, 4, 4, 5], np.int32)), "has shape"),
        (lambda g, m: setattr(g.tensors[1], "shape", np.ones(40, np.int32)), "has shape"),
        (lambda g, m: setattr(g.tensors[3], "buffer", 2**31), "buffer"),
        (lambda g, m: setattr(g.operators[0], "inputs", np.array([0, -7, 4], np.int32)), "tensor -7"),
        (lambda g, m: setattr(g.operators[1], "outputs", np.array([0], np.int32)), "computed twice"),
        (lambda g, m: setattr(g.operators[0], "inputs", np.array([2, 3, 4], np.int32)), "before anything"),
        (lambda g, m: setattr(g, "outputs", np.array([], np.int32)), "no output"),
        (lambda g, m: setattr(g, "inputs", np.array([0, 0], np.int32)), "twice"),
        (lambda g, m: setattr(m, "subgraphs", []), "no subgraph"),
        (lambda g, m: setattr(m, "operatorCodes", []), "operator code"),
        (lambda g, m: setattr(g.operators[0], "builtinOptions", schema().PadOptionsT())
         or setattr(g.operators[0], "builtinOptionsType", schema().BuiltinOptions.PadOptions), "PadOptions"),
        (lambda g, m: setattr(g.operators[0].builtinOptions, "strideH", 0), "does not fit"),
        (lambda g, m: setattr(g.operators[0].builtinOptions, "padding", 9), "does not fit"),
        (lambda g, m: setattr(g.tensors[3], "shape", np.array([5, 3, 3, 0], np.int32)), "bytes"),
    ],
)  # fmt: skip
def test_lies_about_tensors_and_operators(change: Callable, match: str) -> None:
    tree = network().tree()
    change(tree.subgraphs[0], tree)
    refused(pack(tree), match)


@pytest.mark.parametrize("stride", [0, -1])
def test_a_transposed_convolution_that_goes_nowhere(stride: int) -> None:
    f = File(1)
    x, y = f.input((1, 4, 4, 3)), f.output((1, 4, 4, 2))
    o = f.options("TransposeConv", padding=0, strideH=1, strideW=stride)
    f.add("TRANSPOSE_CONV", [f.ints(1, 4, 4, 2), f.weights(2, 3, 3, 3), x], [y], o)
    assert "strides" in refused(f.bytes(), "does not fit")


def patched(data: bytes, find: Callable[[Any], int], value: int) -> bytes:
    """The file with one 32-bit number overwritten; ``find`` says where, given the lazily read root."""
    at = find(schema().Model.GetRootAs(data, 0))
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


def length_at(table: Any, slot: int) -> int:
    """Position of the length of a vector field."""
    return table._tab.Vector(table._tab.Offset(slot)) - 4


@pytest.mark.parametrize("slot", [4, 6, 8, 10])
@pytest.mark.parametrize("value", [2**20, 2**31 - 1, 2**32 - 1])
def test_lists_that_claim_to_be_endless(slot: int, value: int) -> None:
    """Tensors, inputs, outputs and operators of the graph."""
    data = network().bytes()
    refused(patched(data, lambda root: length_at(root.Subgraphs(0), slot), value), "damaged|claims|truncated")


@pytest.mark.parametrize("slot", [6, 8, 12])
def test_lists_of_the_file_that_claim_to_be_endless(slot: int) -> None:
    """Operator codes, subgraphs and buffers."""
    data = network().bytes()
    broken = patched(data, lambda root: length_at(root, slot), 2**30)
    try:
        from_bytes(broken, "net")  # a list that is only looked up in may claim what it likes
    except DlasError as error:
        assert "damaged" in str(error) or "claims" in str(error)  # noqa: PT017


def test_a_list_named_over_and_over() -> None:
    """Thousands of operators whose inputs are one and the same long list."""
    f = File()
    x = f.input((1,))
    for _ in range(300):
        f.add("CONCATENATION", [x] * 3, [f.tensor((1,))], f.options("Concatenation"))
    f.add("CONCATENATION", [x] * 20_000, [f.output((1,))], f.options("Concatenation"))
    data = bytearray(f.bytes())
    graph = schema().Model.GetRootAs(bytes(data), 0).Subgraphs(0)
    long = length_at(graph.Operators(300), 6)
    for n in range(300):
        table = graph.Operators(n)._tab
        field = table.Pos + table.Offset(6)
        struct.pack_into("<I", data, field, (long - field) % 2**32)
    refused(bytes(data), "far more than the file can hold|damaged")


def test_a_million_operators() -> None:
    f = File()
    x = f.input((1,))
    f.add("ABS", [x], [f.output((1,))], f.options("Abs"))
    data = f.bytes()
    broken = patched(data + bytes(4_400_000), lambda root: length_at(root.Subgraphs(0), 10), 1_000_000)
    refused(broken, "claims 1000000 operators")


def test_shared_buffers_do_not_add_up() -> None:
    f = File()
    x = f.input((1024, 256))
    first = f.constant(np.zeros((1024, 256), np.float32))
    made = [x]
    for _ in range(2000):
        i = f.tensor((1024, 256))
        f.tensors[i].buffer = f.tensors[first].buffer
        made.append(i)
    f.add("ADD_N", made, [f.output((1024, 256))])
    refused(f.bytes(), "many times larger than the file")


def test_a_long_chain_is_read_in_time() -> None:
    f = File()
    last = f.input((1, 4))
    for n in range(3000):
        out = f.tensor((1, 4)) if n < 2999 else f.output((1, 4))
        f.add("ABS", [last], [out], f.options("Abs"))
        last = out
    start = time.monotonic()
    assert len(list(from_bytes(f.bytes(), "net").ir.graph)) == 3000
    assert time.monotonic() - start < 15


def test_constants_that_a_rule_would_make_up_are_bounded() -> None:
    f = File()
    f.add("MATRIX_DIAG", [f.input((30000,))], [f.output((30000, 30000))])
    refused(f.bytes(), "elements", UnsupportedError)
    f = File()
    numbers = [f.constant(np.float32(v)) for v in (1, 0)]
    f.add("ONE_HOT", [f.input((1,), "int32"), f.constant(np.int32(2**30)), *numbers], [f.output((1, 2**30))],
          f.options("OneHot", axis=-1))  # fmt: skip
    refused(f.bytes(), "elements", UnsupportedError)


def test_flipped_bytes_raise_only_our_errors() -> None:
    data = network().bytes()
    rng = random.Random(4)
    found = 0
    for _ in range(400):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 2, 6])):
            broken[rng.randrange(len(data))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        try:
            from_bytes(bytes(broken), "net")
        except DlasError as error:
            found += 1
            assert "unpack" not in str(error)  # noqa: PT017
    assert found > 30


@pytest.mark.parametrize("name", ["CALL_ONCE", "VAR_HANDLE", "IF", "WHILE", "HASHTABLE", "CUSTOM"])
def test_control_flow_state_and_code_are_refused_by_name(name: str) -> None:
    f = File()
    f.add(name, [f.input((1,))], [f.output((1,))], custom="libevil.so" if name == "CUSTOM" else "")
    refused(f.bytes(), "libevil.so" if name == "CUSTOM" else name, UnsupportedError)


def test_an_input_handed_through_is_an_output_of_its_own() -> None:
    f = network()
    f.outputs.append(f.inputs[0])
    model = from_bytes(f.bytes(), "net")
    assert [s.name for s in model.inputs] == ["t0"]
    assert model.outputs[1].name.startswith("t0_out")
    (x,) = feeds_of(f)
    assert np.array_equal(run_onnx(model, [x])[1], x)


def test_a_result_or_a_constant_that_is_called_state_is_still_what_it_is() -> None:
    # LiteRT computes on with what an operator gave or the file holds; only what nothing provides starts at zero.
    data, _ = to_bytes(residual())
    table = schema().ModelT.InitFromPackedBuf(data, 0)
    for tensor in table.subgraphs[0].tensors:
        tensor.isVariable = True
    x = images(2).transpose(0, 2, 3, 1)
    marked, plain = from_bytes(pack(table), "marked"), from_bytes(data, "plain")
    np.testing.assert_array_equal(predict(marked, x), predict(plain, x))
