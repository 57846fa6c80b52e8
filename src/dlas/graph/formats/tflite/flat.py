"""The flatbuffer of a tflite file: bytes to checked tensors and operators, and object tree to bytes.

The schema is the one that ai-edge-litert ships; this is the only module that imports it.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import numpy as np

from dlas.core.errors import ModelError
from dlas.core.lazy import optional_import
from dlas.graph.formats.tflite.constants import WIDENED, Constants
from dlas.graph.formats.tflite.tensors import DTYPES, GRIDS, Operation, Quant, Tensor

IDENTIFIER = b"TFL3"
METADATA = "dlas"
MAX_RANK = 8
MAX_BYTES = 2**33  # of one tensor
MAX_TENSORS = 200_000
MAX_OPERATORS = 20_000
MAX_CODES = 10_000
MAX_CUSTOM = 2**20  # bytes of a custom operator's options
NO_RESULT = ("CALL_ONCE", "ASSIGN_VARIABLE", "HASHTABLE_IMPORT")
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
        unread: Kinds of tensors that cannot be expressed, with their count; they stand here as float32.
    """

    tensors: tuple[Tensor, ...]
    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    unread: Counter[str] = field(default_factory=Counter)


def parse(data: bytes, name: str) -> Network:
    """Read and check a tflite file.

    Raises:
        ModelError: Not a tflite file, truncated, or inconsistent.
    """
    _check_identifier(data, name)
    try:
        return _network(schema().Model.GetRootAs(data, 0), data)
    except MALFORMED as error:
        raise _damaged(error, data, name) from error


def read_metadata(data: bytes, name: str) -> dict[str, Any]:
    """What dlas stored in the file; empty when something else wrote it.

    Raises:
        ModelError: Not a tflite file, or its metadata is damaged.
    """
    _check_identifier(data, name)
    try:
        model = schema().Model.GetRootAs(data, 0)
        return _metadata(model, Constants(model, data))
    except MALFORMED as error:
        raise _damaged(error, data, name) from error


def _check_identifier(data: bytes, name: str) -> None:
    if len(data) < 16 or data[4:8] != IDENTIFIER:
        raise ModelError(
            f"{name} is not a tflite file: bytes 4 to 8 are {data[4:8]!r}, expected {IDENTIFIER!r}",
            "check that it was downloaded or exported completely",
        )


def _damaged(error: Exception, data: bytes, name: str) -> ModelError:
    hint = "download or export it again, and compare its size with the source's"
    outside = isinstance(error, struct.error) or ("buffer" in str(error) and "size" in str(error))
    if outside:  # a table or list that the file points to starts or ends behind its last byte
        return ModelError(
            f"{name} is truncated or damaged: it has {len(data)} bytes, and its tables point beyond them",
            hint,
        )
    if isinstance(error, MemoryError):
        return ModelError(f"{name} is damaged: it claims more data than there is memory", hint)
    return ModelError(f"{name} is truncated or damaged: {error}", hint)


def _metadata(model: Any, constants: Constants) -> dict[str, Any]:
    for n in range(model.MetadataLength()):
        entry = model.Metadata(n)
        if entry.Name() == METADATA.encode():
            held = constants.buffer(entry.Buffer())
            stored = json.loads(b"" if held is None else held.tobytes())
            if not isinstance(stored, dict):
                raise ValueError("the metadata of dlas are not a JSON object")
            return stored
    return {}


class _Budget:
    """Counts what a file names: tables may be named many times over, so a small file can describe endless work."""

    def __init__(self, data: bytes) -> None:
        self._left = 8 * len(data) + 2**16

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError("its tables name far more than the file can hold")


def _network(model: Any, data: bytes) -> Network:
    if model.SubgraphsLength() < 1:
        raise ValueError("no subgraph")
    graph, constants, budget = model.Subgraphs(0), Constants(model, data), _Budget(data)
    count = graph.TensorsLength()
    for what, number, most in (
        ("tensors", count, MAX_TENSORS),
        ("operators", graph.OperatorsLength(), MAX_OPERATORS),
    ):
        if number > min(most, len(data) // 4):
            raise ValueError(
                f"it claims {number} {what}; at most {most} are read, and only what the file can hold"
            )
    taken: set[str] = set()
    unread: Counter[str] = Counter()
    types = enum_names("TensorType")
    tensors = []
    for index in range(count):
        raw = _raw_tensor(graph.Tensors(index), budget)
        kind = types.get(raw.type, f"type {raw.type}")
        name = _name(raw, index, taken)
        if kind not in DTYPES and not (kind in WIDENED and constants.buffer(raw.buffer) is not None):
            unread[kind] += 1
        elif raw.externalBuffer:
            unread[f"{kind} outside the file"] += 1
        elif raw.quantization is not None and raw.quantization.detailsType:
            unread[f"{kind} with custom or blockwise quantisation"] += 1
        else:
            tensors.append(_tensor(index, name, raw, kind, constants))
            continue
        tensors.append(Tensor(index, name, _shape(raw, index, 1), "float32"))
    inputs = _indices(graph.InputsAsNumpy(), count, budget)
    outputs = _indices(graph.OutputsAsNumpy(), count, budget)
    if not outputs:
        raise ValueError("the network has no output")
    if len(set(inputs)) != len(inputs) or len(set(outputs)) != len(outputs):
        raise ValueError("an input or output is listed twice")
    description = (model.Description() or b"").decode(errors="replace")
    codes = _codes(model, data)
    operations = tuple(
        _operation(graph.Operators(n), codes, count, budget) for n in range(graph.OperatorsLength())
    )
    metadata = _metadata(model, constants)
    # State is what nothing provides; an input or the result of an operator is none, whatever the file calls it. Only
    # the basic LSTM lists its state among its results.
    provided = {*inputs, *(i for op in operations if op.kind != "LSTM" for i in op.outputs)}
    tensors = [replace(t, variable=t.variable and t.index not in provided) for t in tensors]
    network = Network(tuple(tensors), operations, inputs, outputs, metadata, description, unread)
    if not unread:  # otherwise it is refused with all that cannot be read
        _check_order(network)
    return network


def _raw_tensor(table: Any, budget: _Budget) -> Any:
    """The unpacked table of a tensor, after a look at how much there is to unpack."""
    quant, sparsity = table.Quantization(), table.Sparsity()
    lengths = [len(table.Name() or b""), table.ShapeLength(), table.ShapeSignatureLength()]
    if quant is not None:
        lengths += [quant.ScaleLength(), quant.ZeroPointLength()]
    if table.VariantTensorsLength() > MAX_RANK or (
        sparsity is not None and sparsity.DimMetadataLength() > 2 * MAX_RANK
    ):
        raise ValueError(f"a tensor describes more than {MAX_RANK} axes")
    budget.spend(1 + sum(lengths))
    return schema().TensorT.InitFromObj(table)


def _codes(model: Any, data: bytes) -> list[str]:
    """What each operator code of the file means."""
    if model.OperatorCodesLength() > min(MAX_CODES, len(data) // 4):
        raise ValueError(f"it claims {model.OperatorCodesLength()} operator codes")
    kinds = enum_names("BuiltinOperator")
    found = []
    for n in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(n)
        # Files older than schema 3a keep the number in the deprecated byte and 0 in the new field.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        kind = kinds.get(number, f"builtin {number}")
        if kind == "CUSTOM":
            kind = f"CUSTOM {(code.CustomCode() or b'')[:200].decode(errors='replace')!r}"
        found.append(kind)
    return found


def _indices(raw: Any, count: int, budget: _Budget, optional: bool = False) -> tuple[int, ...]:
    values = [] if raw is None or isinstance(raw, int) else raw
    budget.spend(len(values))
    found = tuple(int(i) for i in values)
    for i in found:
        if not (0 <= i < count or (optional and i == -1)):
            raise IndexError(f"tensor {i} is named, the graph has {count}")
    return found


def _operation(table: Any, codes: list[str], count: int, budget: _Budget) -> Operation:
    budget.spend(1)
    if not 0 <= table.OpcodeIndex() < len(codes):
        raise IndexError(f"operator code {table.OpcodeIndex()} does not exist")
    kind = codes[table.OpcodeIndex()]
    raw = schema().OperatorT.InitFromObj(table)
    inputs, outputs = (
        _indices(raw.inputs, count, budget, optional=True),
        _indices(raw.outputs, count, budget, optional=kind.startswith("CUSTOM")),
    )
    if not outputs and kind not in NO_RESULT:
        raise ValueError(f"a {kind} has no output")
    custom = b""
    if kind.startswith("CUSTOM") and raw.customOptions is not None and len(raw.customOptions) <= MAX_CUSTOM:
        custom = bytes(bytearray(raw.customOptions))
    return Operation(
        kind,
        inputs,
        tuple(i for i in outputs if i != -1) if -1 in outputs else outputs,
        raw.builtinOptions if raw.builtinOptions is not None else raw.builtinOptions2,
        custom,
        _indices(raw.intermediates, count, budget, optional=True),
    )


def _check_order(network: Network) -> None:
    state = {t.index for t in network.tensors if t.variable}
    known = {t.index for t in network.tensors if t.data is not None} | set(network.inputs) | state
    for op in network.operations:
        for i in op.inputs:
            if i != -1 and i not in known:
                raise ValueError(f"a {op.kind} reads tensor {i} before anything computes it")
        for i in op.outputs:
            if i in known and i not in state:
                raise ValueError(f"tensor {i} is computed twice")
            known.add(i)
    for i in network.outputs:
        if i not in known:
            raise ValueError(f"output tensor {i} is never computed")


def _name(raw: Any, index: int, taken: set[str]) -> str:
    base = (raw.name or b"").decode(errors="replace") or f"tensor_{index}"
    name = base
    if name in taken:
        name = f"{base}_{index}"
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _shape(raw: Any, index: int, size: int) -> tuple[int, ...]:
    shape = tuple(int(d) for d in ([] if raw.shape is None or isinstance(raw.shape, int) else raw.shape))
    if len(shape) > MAX_RANK or any(d < 0 for d in shape) or math.prod(shape) * size > MAX_BYTES:
        raise ValueError(f"tensor {index} has shape {list(shape[: MAX_RANK + 1])}")
    return shape


def _tensor(index: int, name: str, raw: Any, kind: str, constants: Constants) -> Tensor:
    dtype = DTYPES.get(kind) or WIDENED[kind]
    shape = _shape(raw, index, np.dtype(dtype).itemsize)
    constant = constants.tensor(raw, kind, shape, name)
    state = (
        bool(raw.isVariable) and constant is None
    )  # with content it is a constant to LiteRT, whatever it is called
    if constant is None and not state and dtype == "int32" and shape == (0,):
        constant = np.empty(shape, dtype)  # the shape of a scalar, the axes of nothing
    signature = [] if raw.shapeSignature is None else list(raw.shapeSignature[:1])
    return Tensor(
        index,
        name,
        shape,
        dtype,
        _quant(raw.quantization, shape, dtype, name),
        constant,
        bool(signature) and int(signature[0]) == -1,
        state,
    )


def _quant(raw: Any, shape: tuple[int, ...], dtype: str, name: str) -> Quant | None:
    if raw is None or raw.scale is None or len(raw.scale) == 0:
        return None
    if dtype not in (*GRIDS, "int32"):
        return None
    if dtype == "int32" and not np.any(
        raw.scale
    ):  # some converters put an empty quantisation on every tensor
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
