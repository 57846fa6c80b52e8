"""The object tree of a tflite file under construction: tensors, buffers, operators, metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite.flat import METADATA, aligned_buffer, enum_names, pack, schema
from dlas.graph.formats.tflite.tensors import TYPES, Quant
from dlas.graph.formats.tflite.versions import oldest_runtime, operator_version

SCHEMA_VERSION = 3
RUNTIME = "min_runtime_version"  # metadata that TensorFlow's own converter writes, 16 bytes


@dataclass
class Cell:
    """A tensor of the file being written.

    Attributes:
        name: Name in the file.
        shape: Sizes in stored order.
        dtype: NumPy name.
        quant: Quantisation in stored order, or None.
        data: Constant bytes; empty for a computed tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    quant: Quant | None = None
    data: bytes = b""


@dataclass
class Builder:
    """Collects tensors and operators; :meth:`finish` gives the bytes."""

    cells: list[Cell] = field(default_factory=list)
    _operators: list[Any] = field(default_factory=list)
    _codes: dict[tuple[int, int], int] = field(default_factory=dict)
    _constants: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def tensor(self, shape: Sequence[int], dtype: str, quant: Quant | None = None, name: str = "") -> int:
        """Add a computed tensor; returns its index."""
        self.cells.append(Cell(name, tuple(int(d) for d in shape), dtype, quant))
        return len(self.cells) - 1

    def constant(self, array: np.ndarray, quant: Quant | None = None, name: str = "") -> int:
        """Add a constant (equal ones once); returns its index."""
        data = np.ascontiguousarray(array).tobytes()
        meaning = None if quant is None else (quant.scale.tobytes(), quant.zero_point.tobytes(), quant.axis)
        key = (array.shape, array.dtype.name, meaning, data)
        if key not in self._constants:
            self.cells.append(Cell(name, array.shape, array.dtype.name, quant, data))
            self._constants[key] = len(self.cells) - 1
        return self._constants[key]

    def options(self, kind: str, **fields: Any) -> Any:
        """An options table of the schema."""
        return getattr(schema(), kind + "T")(**fields)

    def add(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None) -> None:
        """Add an operator."""
        kinds = schema()
        number = getattr(kinds.BuiltinOperator, kind)
        version = operator_version(
            kind,
            [self.cells[i] if i >= 0 else None for i in inputs],
            [self.cells[i] for i in outputs],
            options,
        )
        operator = kinds.OperatorT()
        operator.opcodeIndex = self._codes.setdefault((number, version), len(self._codes))
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(
                kinds.BuiltinOptions, type(options).__name__.removesuffix("T")
            )
        self._operators.append(operator)

    def finish(self, inputs: Sequence[int], outputs: Sequence[int], metadata: Mapping[str, Any]) -> bytes:
        """The file.

        Args:
            inputs: Tensor indices of the network's inputs.
            outputs: Tensor indices of its outputs.
            metadata: Stored as JSON under the name ``dlas``.

        Raises:
            UnsupportedError: A tensor of a dtype that cannot be stored.
        """
        kinds = schema()
        inputs, outputs = self._prune(inputs, outputs)
        buffers = [aligned_buffer(b"")]
        tensors = []
        for cell in self.cells:
            if cell.dtype not in TYPES:
                raise UnsupportedError(
                    f"tensor {cell.name!r} is {cell.dtype}, which no tflite file of dlas holds",
                    f"accepted: {', '.join(TYPES)}",
                )
            tensor = kinds.TensorT()
            tensor.name, tensor.shape = cell.name, np.array(cell.shape, np.int32)
            tensor.type = getattr(kinds.TensorType, TYPES[cell.dtype])
            tensor.hasRank = True
            tensor.buffer = 0
            if cell.data:
                tensor.buffer = len(buffers)
                buffers.append(aligned_buffer(cell.data))
            tensor.quantization = _quantization(cell.quant)
            tensors.append(tensor)
        graph = kinds.SubGraphT()
        graph.name, graph.tensors, graph.operators = "main", tensors, self._operators
        graph.inputs, graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        model = kinds.ModelT()
        model.version, model.description = SCHEMA_VERSION, "dlas"
        model.subgraphs = [graph]
        model.operatorCodes = [_code(number, version) for number, version in self._codes]
        names = enum_names("BuiltinOperator")
        stored = {
            RUNTIME: oldest_runtime((names[number], version) for number, version in self._codes)
            .encode()
            .ljust(16, b"\0"),
            METADATA: json.dumps(metadata, sort_keys=True).encode(),
        }
        model.metadata = []
        for name, content in stored.items():
            entry = kinds.MetadataT()
            entry.name, entry.buffer = name, len(buffers)
            model.metadata.append(entry)
            buffers.append(aligned_buffer(content))
        model.buffers = buffers
        model.signatureDefs = [self._signature(inputs, outputs)]
        return pack(model)

    def _prune(self, inputs: Sequence[int], outputs: Sequence[int]) -> tuple[list[int], list[int]]:
        """Drop operators and tensors that no output depends on; returns the ends under their new numbers."""
        wanted, kept = set(outputs), []
        for operator in reversed(self._operators):
            if wanted.intersection(operator.outputs.tolist()):
                kept.append(operator)
                wanted.update(operator.inputs.tolist(), operator.outputs.tolist())
        self._operators = kept[::-1]
        wanted.update(inputs)
        wanted.discard(-1)
        number = {old: new for new, old in enumerate(sorted(wanted))} | {-1: -1}
        self.cells = [self.cells[old] for old in sorted(wanted)]
        for operator in self._operators:
            operator.inputs, operator.outputs = (
                np.array([number[i] for i in side.tolist()], np.int32)
                for side in (operator.inputs, operator.outputs)
            )
        used = sorted({o.opcodeIndex for o in self._operators})
        codes = list(self._codes)
        self._codes = {codes[old]: new for new, old in enumerate(used)}
        for operator in self._operators:
            operator.opcodeIndex = used.index(operator.opcodeIndex)
        return [number[i] for i in inputs], [number[i] for i in outputs]

    def _signature(self, inputs: Sequence[int], outputs: Sequence[int]) -> Any:
        kinds = schema()
        signature = kinds.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        ends = []
        for indices in (inputs, outputs):
            maps = []
            for i in indices:
                entry = kinds.TensorMapT()
                entry.name, entry.tensorIndex = self.cells[i].name, i
                maps.append(entry)
            ends.append(maps)
        signature.inputs, signature.outputs = ends
        return signature


def _code(number: int, version: int) -> Any:
    code = schema().OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), version
    return code


def _quantization(quant: Quant | None) -> Any:
    if quant is None:
        return None
    made = schema().QuantizationParametersT()
    made.scale, made.zeroPoint = quant.scale.astype(np.float32), quant.zero_point.astype(np.int64)
    made.quantizedDimension = quant.axis or 0
    return made
