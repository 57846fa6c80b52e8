"""ONNX files: read with every size and path checked before anything is believed, written atomically.

Reading changes the file's graph into the one form that the rest of dlas works on: functions inlined, nodes sorted and
named, constants as initializers, shapes inferred, opset 13 or newer.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

from dlas.core.errors import ModelError, UnsupportedError
from dlas.core.files import open_regular, write_atomic
from dlas.core.options import option
from dlas.graph.format import Format, Written, formats
from dlas.graph.formats._onnx_limits import check_size, drop_foreign, refuse_sparse
from dlas.graph.formats._onnx_tensors import check_tensors, external_files, read_external
from dlas.graph.model import OPSET, Model
from dlas.graph.passes import infer_shapes

OLDEST_OPSET = 7
NEWEST_IR = 13  # ONNX Runtime 1.31 reads no newer one, and nothing that dlas reads needs it
KEPT_OPSET = 13  # from here on the file's own opset is kept
_PROTOBUF_LIMIT = 1_800_000_000  # protobuf stops at 2 GiB; the rest is room for the graph itself
_EXTERNAL_FROM = 1024  # smaller tensors stay inside the file
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
# What protobuf accessors and numpy raise on bytes that parse but make no sense (text that is not UTF-8, absurd enums).
_FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_COMPILED = frozenset({"EPContext"})
_STANDARD = ("", "ai.onnx")
_CONTRIB = "com.microsoft"


@formats.register("onnx")
class OnnxFormat(Format):
    """The ONNX protobuf, with or without external data."""

    name = "onnx"
    summary = "ONNX protobuf, opset 7 and newer"
    suffixes = (".onnx",)
    runtime = "onnxruntime"
    can_write = True

    @dataclass(frozen=True)
    class Options:
        """Options of the reader and the writer."""

        allow_nan: bool = option(False, "accept weights that are NaN or infinite")
        max_bytes: int = option(_PROTOBUF_LIMIT, "largest model to read, weights included", low=1)
        max_nodes: int = option(10_000, "most nodes to read, functions expanded", low=1)
        external_above: int = option(
            _PROTOBUF_LIMIT, "write weights into NAME.onnx.data when they take more bytes than this", low=0
        )

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        """Whether the bytes can start a protobuf message that is a ModelProto (field numbers 1 to 25)."""
        return bool(head) and head[0] & 7 in (0, 2) and 1 <= head[0] >> 3 <= 25

    def load(self, path: Path) -> Model:
        """Read an ONNX file.

        Raises:
            ModelError: Missing, truncated, not ONNX, inconsistent, cyclic, NaN or infinite weights, or external data
                outside the file's folder.
            UnsupportedError: Control flow, unknown operators, sparse or text tensors, opset below 7; all are named.
        """
        try:
            return self._interpret(path)
        except _FAULTS as error:
            raise ModelError(
                f"{path.name} is malformed: {_line(error)}",
                "check that it was downloaded or exported completely",
            ) from error

    @classmethod
    def companions(cls, path: Path) -> tuple[Path, ...]:
        """Files with external weights."""
        try:
            return external_files(_parse(_read(path, _PROTOBUF_LIMIT), path.name), path)
        except ModelError:
            return ()

    def _interpret(self, path: Path) -> Model:
        data = _read(path, self.options.max_bytes)
        logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # what it warns of becomes one error here
        proto = _parse(data, path.name)
        digest, size = hashlib.sha256(data), len(data)
        del data  # as large as the network, and from here on only its copy is needed
        check_size(proto, path.name, size, self.options.max_nodes)
        drop_foreign(proto)
        refuse_sparse(proto, path.name)
        _refuse_other_types(proto, path.name)
        for content in read_external(proto, path, self.options.max_bytes - size):
            digest.update(content)
        check_tensors(proto, path.name, allow_nan=self.options.allow_nan)
        graph = _normal_form(proto, path.name)
        source = {"format": "onnx", "path": path.name, "sha256": digest.hexdigest()}
        framework = f"{proto.producer_name} {proto.producer_version}".strip()
        if framework:
            source["framework"] = framework
        model = _rewrap(graph, path.stem, source)
        _check_signature(model, path.name)
        return model

    def save(self, model: Model, path: Path) -> Written:
        """Write ``model``; weights beyond ``external_above`` bytes go to ``NAME.onnx.data`` beside it.

        Raises:
            DlasError: The folder cannot be written.
        """
        path = Path(path)
        proto = model.to_proto()
        size = sum(tensor.nbytes for tensor in _weights(model.ir))
        if size <= self.options.external_above:
            write_atomic(path, proto.SerializeToString(deterministic=True))
            return Written(path)
        # Weights first: while only they exist, no reader can meet a model without them.
        beside = path.with_name(path.name + ".data")
        write_atomic(beside, _move_out(proto, beside.name))
        write_atomic(path, proto.SerializeToString(deterministic=True))
        return Written(path, (f"weights ({size} bytes) are in {beside.name}; keep both files together",))


def _read(path: Path, limit: int) -> bytes:
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
            if len(data) > limit:
                size = max(len(data), os.fstat(file.fileno()).st_size)
                raise ModelError(f"{path.name} has {size} bytes, at most {limit} are read", "raise max_bytes")
            return data
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}") from error


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{name} is not a complete ONNX file: {error}",
            "check that it was downloaded or exported completely",
        ) from error
    if not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"{name} holds no ONNX graph", "check that the file is an ONNX model")
    opsets = {o.domain: o.version for o in proto.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    if opset < OLDEST_OPSET:
        raise UnsupportedError(
            f"{name} uses opset {opset}; {OLDEST_OPSET} and newer are read", "export it again"
        )
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise UnsupportedError(f"{name} uses opset {opset}, newer than the installed onnx ({newest})")
    return proto


def _refuse_other_types(proto: onnx.ModelProto, name: str) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        kind = value.type.WhichOneof("value")
        if kind not in ("tensor_type", None):
            raise UnsupportedError(f"{name}: {value.name!r} is a {kind.removesuffix('_type')}, not a tensor")
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            raise UnsupportedError(f"{name}: {value.name!r} holds text, not numbers")


def _normal_form(proto: onnx.ModelProto, name: str) -> ir.Model:
    _refuse_duplicates(proto.graph, name)
    try:
        graph = ir.from_proto(proto)
        common.InlinePass()(graph)
    except Exception as error:  # any fault inside the third-party reader means the file is malformed
        raise ModelError(f"{name} is not a valid ONNX graph: {_line(error)}") from error
    _check_operators(graph, name)
    try:
        graph.graph.sort()
    except ValueError as error:
        raise ModelError(f"{name}: the graph has a cycle", "export it again") from error
    common.RemoveInitializersFromInputsPass()(graph)
    _name_nodes(graph)
    graph.ir_version = min(
        max(graph.ir_version or 0, 4), NEWEST_IR
    )  # version 3 wants every weight among the inputs
    infer_shapes(graph)  # the checker wants a shape on every output
    _check(graph, name)
    if graph.graph.opset_imports.get("", OPSET) < KEPT_OPSET:
        graph = _upgrade(graph, name)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    common.NameFixPass()(graph)
    infer_shapes(graph)
    return graph


def _refuse_duplicates(graph: onnx.GraphProto, name: str) -> None:
    seen = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    for node in graph.node:
        for output in filter(None, node.output):
            if output in seen:
                raise ModelError(
                    f"{name}: tensor {output!r} is written twice, by {node.op_type} {node.name!r}"
                )
            seen.add(output)
    used = [i for node in graph.node for i in node.input] + [o.name for o in graph.output]
    for wanted in filter(None, used):
        if wanted not in seen:
            raise ModelError(f"{name}: tensor {wanted!r} is used but nothing produces it")
    names = [t.name for t in graph.initializer]
    if len(set(names)) != len(names):
        twice = sorted(n for n, count in Counter(names).items() if count > 1)
        raise ModelError(f"{name}: initializers with one name: {', '.join(twice[:8])}")


def _check_operators(graph: ir.Model, name: str) -> None:
    flow, compiled, unknown = [], [], []
    for node in graph.graph.all_nodes():
        label = f"{node.domain + '::' if node.domain else ''}{node.op_type} ({node.name or 'unnamed'})"
        if (node.domain in _STANDARD and node.op_type in _CONTROL_FLOW) or _has_graph(node):
            flow.append(label)
        elif node.domain == _CONTRIB and node.op_type in _COMPILED:
            compiled.append(label)
        elif not _is_known(node, graph.graph.opset_imports):
            unknown.append(label)
    if flow:
        raise UnsupportedError(
            f"{name} has control flow, which no back end here takes: {_few(flow)}",
            "export it with fixed shapes",
        )
    if compiled:
        raise UnsupportedError(
            f"{name} holds code compiled for one device, or the name of a file with it: {_few(compiled)}",
            "use the network it was compiled from",
        )
    if unknown:
        raise UnsupportedError(
            f"{name} has operators that are not standard ONNX: {_few(unknown)}",
            "export it without custom operators",
        )


def _has_graph(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _is_known(node: ir.Node, opsets: dict[str, int]) -> bool:
    if node.domain in _STANDARD:
        return onnx.defs.has(node.op_type, opsets.get("", OPSET))
    return node.domain == _CONTRIB and node.op_type in _contributed()


@functools.cache
def _contributed() -> frozenset[str]:
    """Names of the operators that ONNX Runtime adds."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    return frozenset(s.name for s in state.get_all_operator_schema() if s.domain == _CONTRIB)


def _name_nodes(graph: ir.Model) -> None:
    """Give nodes without a name, or with one that is taken, a name made of operator and position."""
    taken: set[str] = set()
    for index, node in enumerate(graph.graph):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        node.name = name
        taken.add(name)


def _check(graph: ir.Model, name: str) -> None:
    try:
        common.CheckerPass()(graph)
    except Exception as error:  # the pass wraps the checker's own error in several types
        raise ModelError(f"{name} is not a valid ONNX model: {_line(error)}") from error


def _upgrade(graph: ir.Model, name: str) -> ir.Model:
    old = graph.graph.opset_imports[""]
    _refuse_flattening(graph, name)
    order, weights = list(graph.graph.initializers), _set_aside(graph.graph)
    proto = ir.to_proto(graph)
    failure = ""
    for target in (OPSET, KEPT_OPSET):
        try:
            upgraded = ir.from_proto(onnx.version_converter.convert_version(proto, target))
        except Exception as error:  # the converter has no error type of its own
            failure = _line(error)
            continue
        # The converter drops what it does not know.
        upgraded.metadata_props.update(graph.metadata_props)
        upgraded.producer_name, upgraded.producer_version = graph.producer_name, graph.producer_version
        if old < 11:
            _keep_old_resize(upgraded)
        _name_nodes(upgraded)
        _put_back(upgraded.graph, weights, order)
        common.RemoveInitializersFromInputsPass()(upgraded)
        return upgraded
    raise UnsupportedError(
        f"{name} uses opset {old} and cannot be brought to {KEPT_OPSET}: {failure}",
        f"export it with opset {KEPT_OPSET} or newer",
    )


def _set_aside(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Turn large weights into inputs: the converter needs none of their values and would copy them six times."""
    weights = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _EXTERNAL_FROM:
            continue
        value.shape = ir.Shape(tensor.numpy().shape) if value.shape is None else value.shape
        value.type = ir.TensorType(tensor.dtype) if value.type is None else value.type
        weights[name] = tensor
        value.const_value = None
        graph.initializers.pop(name)
        graph.inputs.append(value)
    return weights


def _put_back(graph: ir.Graph, weights: dict[str, ir.TensorProtocol], order: list[str]) -> None:
    for value in graph.inputs:
        if value.name in weights:
            value.const_value = weights[value.name]
            graph.register_initializer(value)
    kept = {name: graph.initializers.pop(name) for name in order if name in graph.initializers}
    for value in (*kept.values(), *graph.initializers.values()):
        graph.initializers.pop(str(value.name), None)
        graph.register_initializer(value)


def _refuse_flattening(graph: ir.Model, name: str) -> None:
    """Hardmax before opset 13 works over all axes from ``axis`` on; the converter keeps one of them only."""
    for node in graph.graph:
        if node.op_type != "Hardmax" or node.domain not in _STANDARD:
            continue
        shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
        axis = node.attributes.get_int("axis", 1)
        if axis != -1 and (shape is None or axis != len(shape) - 1):
            raise UnsupportedError(
                f"{name}: {node.name} is a Hardmax over several axes, which opset {KEPT_OPSET} has no operator for",
                f"export it with opset {KEPT_OPSET} or newer",
            )


def _keep_old_resize(graph: ir.Model) -> None:
    """Upsample and Resize before opset 11 sample at ``x / scale``; the converter leaves them to the newer default."""
    for node in graph.graph:
        if node.op_type == "Resize" and "coordinate_transformation_mode" not in node.attributes:
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")


def _rewrap(graph: ir.Model, stem: str, source: dict[str, str]) -> Model:
    # A file that dlas wrote says itself where the network came from first.
    model = Model.from_proto(ir.to_proto(graph))
    if model.source:
        return model
    return replace(model, source=source).renamed(stem)


def _check_signature(model: Model, name: str) -> None:
    if not model.inputs:
        raise ModelError(f"{name} has no inputs: everything in it is constant")
    for spec in (*model.inputs, *model.outputs):
        if any(isinstance(d, int) and d < 0 for d in spec.shape):
            raise ModelError(f"{name}: {spec.name!r} has the shape {list(spec.shape)}")


def _weights(graph: ir.Model) -> Iterator[ir.TensorProtocol]:
    return (v.const_value for v in graph.graph.initializers.values() if v.const_value is not None)


def _move_out(proto: onnx.ModelProto, location: str) -> bytes:
    """Take the bytes of every large initializer out of ``proto`` and leave references to ``location``."""
    out = bytearray()
    for tensor in proto.graph.initializer:
        content = tensor.raw_data or _raw(tensor)
        if len(content) < _EXTERNAL_FROM:
            continue
        out += b"\0" * (-len(out) % 64)  # aligned, so that a runtime can map the file
        kept = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        kept.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", len(out)), ("length", len(content))):
            kept.external_data.add(key=key, value=str(value))
        tensor.CopyFrom(kept)
        out += content
    return bytes(out)


def _raw(tensor: onnx.TensorProto) -> bytes:
    if tensor.data_type == onnx.TensorProto.STRING:
        return b""
    array = onnx.numpy_helper.to_array(tensor)
    return onnx.numpy_helper.from_array(np.ascontiguousarray(array)).raw_data


def _few(labels: list[str]) -> str:
    distinct = list(dict.fromkeys(labels))
    return ", ".join(distinct[:8]) + (f" and {len(distinct) - 8} more" if len(distinct) > 8 else "")


def _line(error: BaseException) -> str:
    """The innermost reason of a chain of errors, as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]
