"""ONNX files: read with every size and path checked before anything is believed, written atomically.

Reading changes the file's graph into the one form that the rest of dlas works on: functions inlined, nodes sorted and
named, constants as initializers, shapes inferred, opset 13 or newer.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from dlas.core.errors import ModelError, UnsupportedError
from dlas.core.files import atomic_paths, open_regular, write_atomic
from dlas.core.options import option
from dlas.graph.format import Format, Written, formats
from dlas.graph.formats._onnx_limits import check_size, drop_foreign, refuse_sparse
from dlas.graph.formats._onnx_normal import first_reason, normal_form
from dlas.graph.formats._onnx_tensors import check_tensors, external_files, read_external
from dlas.graph.model import Model

OLDEST_OPSET = 7
_PROTOBUF_LIMIT = 1_800_000_000  # protobuf stops at 2 GiB; the rest is room for the graph itself
_EXTERNAL_FROM = 1024  # smaller tensors stay inside the file
# What protobuf accessors and numpy raise on bytes that parse but make no sense (text that is not UTF-8, absurd enums).
_FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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

        allow_nan: bool = option(False, "accept weights that are NaN or infinite", use="reading")
        max_bytes: int = option(
            _PROTOBUF_LIMIT, "largest model to read, weights included", low=1, use="reading"
        )
        max_nodes: int = option(10_000, "most nodes to read, functions expanded", low=1, use="reading")
        external_above: int = option(
            _PROTOBUF_LIMIT,
            "write weights into NAME.onnx.data when they take more bytes than this",
            low=0,
            use="writing",
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
                f"{path.name} is malformed: {first_reason(error)}",
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
        graph = normal_form(proto, path.name)
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
        with atomic_paths([beside, path]) as (weights, network):
            weights.write_bytes(_move_out(proto, beside.name))
            network.write_bytes(proto.SerializeToString(deterministic=True))
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
