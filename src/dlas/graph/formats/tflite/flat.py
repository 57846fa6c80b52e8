"""The flatbuffer of a tflite file: bytes to checked tensors and operators, and object tree to bytes.

The schema is the one that ai-edge-litert ships; this is the only module that imports it.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from dlas.core.errors import ModelError, UnsupportedError
from dlas.core.lazy import optional_import
from dlas.graph.formats.tflite.tensors import DTYPES, QUANTISED, Operation, Quant, Tensor

IDENTIFIER = b"TFL3"
METADATA = "dlas"
MAX_RANK = 8
MAX_ELEMENTS = 2**40
# What reading a damaged flatbuffer or a nonsensical graph can raise; all of it is the file's fault.
MALFORMED = (
    struct.error,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    AssertionError,
    MemoryError,
    RecursionError,
)


def schema() -> ModuleType:
    """The generated schema module; raises MissingDependencyError without the ``tflite`` extra."""
    return optional_import(
        "ai_edge_litert.schema_py_generated", extra="tflite", needed_for="reading and writing .tflite"
    )


def enum_names(kind: str) -> dict[int, str]:
    """Value to name of an enumeration of the schema."""
    return {v: k for k, v in vars(getattr(schema(), kind)).items() if not k.startswith("_")}


@dataclass(frozen=True, eq=False)
class Network:
    """The main subgraph of a tflite file, checked.

    Attributes:
        tensors: By index.
        operations: In execution order.
        inputs: Tensor indices.
        outputs: Tensor indices.
        metadata: What dlas stored when it wrote the file, else empty.
        description: Who wrote the file, in the file's own words.
    """

    tensors: tuple[Tensor, ...]
    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: dict[str, Any] = field(default_factory=dict)
    description: str = ""


def parse(data: bytes, name: str) -> Network:
    """Read and check a tflite file.

    Raises:
        ModelError: Not a tflite file, truncated, or inconsistent.
        UnsupportedError: It holds a kind of tensor that cannot be expressed.
    """
    if len(data) < 16 or data[4:8] != IDENTIFIER:
        raise ModelError(
            f"{name} is not a tflite file: bytes 4 to 8 are {data[4:8]!r}, expected {IDENTIFIER!r}",
            "check that it was downloaded or exported completely",
        )
    try:
        return _network(schema().ModelT.InitFromPackedBuf(data, 0), data)
    except MALFORMED as error:
        raise ModelError(
            f"{name} is truncated or damaged: {type(error).__name__}: {error}",
            "download or export it again",
        ) from error


def read_metadata(data: bytes, name: str) -> dict[str, Any]:
    """What dlas stored in the file; empty when something else wrote it.

    Raises:
        ModelError: Not a tflite file, or its metadata is damaged.
    """
    if len(data) < 16 or data[4:8] != IDENTIFIER:
        raise ModelError(f"{name} is not a tflite file", "check that it was downloaded completely")
    try:
        return _metadata(schema().ModelT.InitFromPackedBuf(data, 0))
    except MALFORMED as error:
        raise ModelError(f"{name} is truncated or damaged: {error}", "export it again") from error


def _metadata(model: Any) -> dict[str, Any]:
    for entry in model.metadata or ():
        if entry.name == METADATA.encode():
            stored = json.loads(bytes(model.buffers[entry.buffer].data).decode())
            if not isinstance(stored, dict):
                raise ValueError("the metadata of dlas are not a JSON object")
            return stored
    return {}


def _network(model: Any, data: bytes) -> Network:
    if not model.subgraphs:
        raise ValueError("no subgraph")
    graph = model.subgraphs[0]
    taken: set[str] = set()
    unknown: Counter[str] = Counter()
    types = enum_names("TensorType")
    tensors = []
    for index, raw in enumerate(graph.tensors or ()):
        kind = types.get(raw.type, f"type {raw.type}")
        if kind not in DTYPES or raw.sparsity is not None or raw.isVariable:
            unknown["sparse" if raw.sparsity is not None else "variable" if raw.isVariable else kind] += 1
            continue
        tensors.append(_tensor(index, raw, DTYPES[kind], model, data, taken))
    if unknown:
        raise UnsupportedError(
            "tensors of these kinds cannot be read: " + ", ".join(f"{k} ({n})" for k, n in unknown.items())
        )
    inputs, outputs = _indices(graph.inputs, len(tensors)), _indices(graph.outputs, len(tensors))
    if not outputs:
        raise ValueError("the network has no output")
    if len(set(inputs)) != len(inputs) or len(set(outputs)) != len(outputs):
        raise ValueError("an input or output is listed twice")
    description = (model.description or b"").decode(errors="replace")
    operations = tuple(_operation(raw, model, len(tensors)) for raw in graph.operators or ())
    network = Network(tuple(tensors), operations, inputs, outputs, _metadata(model), description)
    _check_order(network)
    return network


def _indices(raw: Any, count: int, optional: bool = False) -> tuple[int, ...]:
    found = tuple(int(i) for i in ([] if raw is None else raw))
    for i in found:
        if not (0 <= i < count or (optional and i == -1)):
            raise IndexError(f"tensor {i} is named, the graph has {count}")
    return found


def _operation(raw: Any, model: Any, count: int) -> Operation:
    if not 0 <= raw.opcodeIndex < len(model.operatorCodes or ()):
        raise IndexError(f"operator code {raw.opcodeIndex} does not exist")
    code = model.operatorCodes[raw.opcodeIndex]
    # Files older than schema 3a keep the number in the deprecated byte and 0 in the new field.
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    kind = enum_names("BuiltinOperator").get(number, f"builtin {number}")
    if kind == "CUSTOM":
        kind = f"CUSTOM {(code.customCode or b'').decode(errors='replace')!r}"
    outputs = _indices(raw.outputs, count)
    if not outputs:
        raise ValueError(f"a {kind} has no output")
    return Operation(kind, _indices(raw.inputs, count, optional=True), outputs, raw.builtinOptions)


def _check_order(network: Network) -> None:
    known = {t.index for t in network.tensors if t.data is not None} | set(network.inputs)
    for op in network.operations:
        for i in op.inputs:
            if i != -1 and i not in known:
                raise ValueError(f"a {op.kind} reads tensor {i} before anything computes it")
        for i in op.outputs:
            if i in known:
                raise ValueError(f"tensor {i} is computed twice")
            known.add(i)
    for i in network.outputs:
        if i not in known:
            raise ValueError(f"output tensor {i} is never computed")


def _tensor(index: int, raw: Any, dtype: str, model: Any, data: bytes, taken: set[str]) -> Tensor:
    shape = tuple(int(d) for d in ([] if raw.shape is None else raw.shape))
    if len(shape) > MAX_RANK or any(d < 0 for d in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"tensor {index} has shape {list(shape)}")
    base = (raw.name or b"").decode(errors="replace") or f"tensor_{index}"
    name, n = base, 1
    while name in taken:
        name, n = f"{base}_{n}", n + 1
    taken.add(name)
    if not 0 <= raw.buffer < len(model.buffers or ()):
        raise IndexError(f"buffer {raw.buffer} does not exist")
    constant = _constant(model.buffers[raw.buffer], data)
    if constant is not None:
        needed = math.prod(shape) * np.dtype(dtype).itemsize
        if constant.nbytes != needed:
            raise ValueError(f"tensor {name!r} needs {needed} bytes, its buffer has {constant.nbytes}")
        constant = np.frombuffer(constant.tobytes(), dtype).reshape(shape)
        if constant.dtype.kind == "f" and np.isnan(constant).any():
            raise ValueError(f"tensor {name!r} holds NaN")
    elif dtype == "int32" and shape == (0,):  # the shape of a scalar, the axes of nothing
        constant = np.empty(shape, dtype)
    signature = [] if raw.shapeSignature is None else list(raw.shapeSignature)
    return Tensor(
        index,
        name,
        shape,
        dtype,
        _quant(raw.quantization, shape, dtype, name),
        constant,
        bool(signature) and int(signature[0]) == -1,
    )


def _constant(buffer: Any, data: bytes) -> np.ndarray | None:
    if buffer.offset > 1:  # large files keep their data behind the flatbuffer
        if buffer.offset + buffer.size > len(data):
            raise ValueError(f"a buffer reaches to byte {buffer.offset + buffer.size} of {len(data)}")
        return np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
    if buffer.data is None or not isinstance(buffer.data, np.ndarray) or buffer.data.size == 0:
        return None
    return buffer.data


def _quant(raw: Any, shape: tuple[int, ...], dtype: str, name: str) -> Quant | None:
    if raw is None or raw.scale is None or len(raw.scale) == 0:
        return None
    if dtype not in (*QUANTISED, "int16", "int32"):
        return None
    scale = np.array(raw.scale, np.float32)
    zero = np.zeros(len(scale), np.int64) if raw.zeroPoint is None else np.array(raw.zeroPoint, np.int64)
    if zero.size == 1:
        zero = np.repeat(zero, len(scale))
    axis = int(raw.quantizedDimension) if len(scale) > 1 else None
    limits = np.iinfo(dtype)
    if axis is not None and not (0 <= axis < len(shape) and shape[axis] == len(scale)):
        raise ValueError(f"tensor {name!r} of shape {list(shape)} has {len(scale)} scales on axis {axis}")
    if not np.all(np.isfinite(scale)) or not np.all(scale > 0):
        raise ValueError(f"tensor {name!r} has a scale that is not a positive number")
    if zero.shape != scale.shape or zero.min() < limits.min or zero.max() > limits.max:
        raise ValueError(f"tensor {name!r} has a zero point outside {dtype}")
    return Quant(scale, zero, axis)


def pack(model: Any) -> bytes:
    """The bytes of a ``ModelT``."""
    flatbuffers = optional_import("flatbuffers", extra="tflite", needed_for="writing .tflite")
    size = sum(len(b.data) for b in model.buffers if b.data is not None)
    builder = flatbuffers.Builder(size + 65536)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def aligned_buffer(data: bytes) -> Any:
    """A ``BufferT`` whose data start at a multiple of 16, as the schema demands and its Python packer forgets."""
    kinds = schema()

    class Aligned(kinds.BufferT):
        """Packs its data in one copy, aligned."""

        def Pack(self, builder: Any) -> Any:  # noqa: N802 - the packer's name
            """Write the buffer; returns its offset."""
            vector = 0
            if self.data:
                builder.StartVector(1, len(self.data), 16)
                builder.head = builder.head - len(self.data)
                builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
                vector = builder.EndVector()
            kinds.BufferStart(builder)
            if self.data:
                kinds.BufferAddData(builder, vector)
            return kinds.BufferEnd(builder)

    return Aligned(data)
