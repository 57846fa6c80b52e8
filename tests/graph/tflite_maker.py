"""Makes real tflite files out of any operator, and compares LiteRT's interpreter with what dlas reads from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from dlas.graph.formats.tflite import from_bytes
from dlas.graph.formats.tflite.flat import aligned_buffer, pack, schema
from dlas.graph.model import Model

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
TYPES = {
    "float32": "FLOAT32", "float16": "FLOAT16", "int8": "INT8", "uint8": "UINT8", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "bool": "BOOL", "uint32": "UINT32",
}  # fmt: skip


class File:
    """A tflite file under construction.

    Args:
        seed: Of the numbers that :meth:`weights` draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self.kinds = schema()
        self.rng = np.random.default_rng(seed)
        self.tensors: list[Any] = []
        self.buffers = [aligned_buffer(b"")]
        self.operators: list[Any] = []
        self.codes: list[Any] = []
        self.inputs: list[int] = []
        self.outputs: list[int] = []

    def tensor(self, shape: Sequence[int], dtype: str = "float32", quant: Any = None, data: Any = None,
               kind: str = "", variable: bool = False, sparsity: Any = None) -> int:  # fmt: skip
        """Add a tensor; ``quant`` is (scale, zero point) or (scales, zero points, axis), ``data`` an array or bytes."""
        made = self.kinds.TensorT()
        made.name, made.shape, made.hasRank = f"t{len(self.tensors)}", np.array(shape, np.int32), True
        made.type = getattr(self.kinds.TensorType, kind or TYPES[dtype])
        made.buffer, made.isVariable, made.sparsity = 0, variable, sparsity
        if data is not None:
            made.buffer = len(self.buffers)
            self.buffers.append(
                aligned_buffer(data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes())
            )
        if quant is not None:
            scale, zero, axis = (*quant, 0)[:3]
            made.quantization = self.kinds.QuantizationParametersT()
            made.quantization.scale = np.atleast_1d(np.array(scale, np.float32))
            made.quantization.zeroPoint = np.atleast_1d(np.array(zero, np.int64))
            made.quantization.quantizedDimension = axis
        self.tensors.append(made)
        return len(self.tensors) - 1

    def input(self, shape: Sequence[int], dtype: str = "float32", quant: Any = None) -> int:
        """Add an input of the network."""
        self.inputs.append(self.tensor(shape, dtype, quant))
        return self.inputs[-1]

    def output(self, shape: Sequence[int], dtype: str = "float32", quant: Any = None) -> int:
        """Add an output of the network."""
        self.outputs.append(self.tensor(shape, dtype, quant))
        return self.outputs[-1]

    def constant(self, array: Any, quant: Any = None, kind: str = "") -> int:
        """Add a constant."""
        array = np.asarray(array)
        return self.tensor(array.shape, array.dtype.name, quant, array, kind)

    def ints(self, *values: int) -> int:
        """Add an int32 vector."""
        return self.constant(np.array(values, np.int32))

    def weights(self, *shape: int) -> int:
        """Add random float32 weights."""
        return self.constant((self.rng.standard_normal(shape) * 0.5).astype(np.float32))

    def options(self, kind: str, **fields: Any) -> Any:
        """An options table."""
        return getattr(self.kinds, kind + "OptionsT")(**fields)

    def add(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None, version: int = 1,
            custom: str = "", custom_options: bytes = b"", intermediates: Sequence[int] = ()) -> None:  # fmt: skip
        """Add an operator."""
        code = self.kinds.OperatorCodeT()
        code.builtinCode = getattr(self.kinds.BuiltinOperator, kind)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
        code.customCode = custom or None
        self.codes.append(code)
        made = self.kinds.OperatorT()
        made.opcodeIndex = len(self.codes) - 1
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if intermediates:
            made.intermediates = np.array(intermediates, np.int32)
        if options is not None:
            union, name = self.kinds.BuiltinOptions, type(options).__name__.removesuffix("T")
            if hasattr(union, name):
                made.builtinOptions, made.builtinOptionsType = options, getattr(union, name)
            else:
                made.builtinOptions2 = options
                made.builtinOptions2Type = getattr(self.kinds.BuiltinOptions2, name)
        if custom_options:
            made.customOptions = np.frombuffer(custom_options, np.uint8)
        self.operators.append(made)

    def tree(self) -> Any:
        """The object tree."""
        graph = self.kinds.SubGraphT()
        graph.name, graph.tensors, graph.operators = "main", self.tensors, self.operators
        graph.inputs, graph.outputs = np.array(self.inputs, np.int32), np.array(self.outputs, np.int32)
        model = self.kinds.ModelT()
        model.version, model.description, model.subgraphs = 3, "test", [graph]
        model.operatorCodes, model.buffers = self.codes, self.buffers
        return model

    def bytes(self) -> bytes:
        """The file."""
        return pack(self.tree())


def run_litert(data: bytes, feeds: Sequence[np.ndarray], reference: bool = True) -> list[np.ndarray]:
    """Outputs of one call of a fresh interpreter."""
    resolver = interpreter.OpResolverType
    machine = interpreter.Interpreter(
        model_content=data,
        num_threads=1,
        experimental_op_resolver_type=resolver.BUILTIN_REF if reference else resolver.AUTO,
    )
    machine.allocate_tensors()
    for d, x in zip(machine.get_input_details(), feeds, strict=True):
        machine.set_tensor(d["index"], x)
    machine.invoke()
    return [machine.get_tensor(d["index"]).copy() for d in machine.get_output_details()]


def run_onnx(model: Model, feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs of the imported network in onnxruntime."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    given = {s.name: x for s, x in zip(session.get_inputs(), feeds, strict=True)}
    return session.run(None, given)


def sqnr(wanted: np.ndarray, got: np.ndarray) -> float:
    """Decibels; infinite when equal."""
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))
    noise = np.square(np.where(same, 0, wanted - got)).sum()
    return float("inf") if noise == 0 else 10 * np.log10(np.square(wanted).sum() / noise)


def feeds_of(file: File, seed: int = 1) -> list[np.ndarray]:
    """Random values for every input, of its dtype."""
    rng = np.random.default_rng(seed)
    names = {v: k for k, v in TYPES.items()}
    kinds = {v: k for k, v in vars(file.kinds.TensorType).items() if not k.startswith("_")}
    found = []
    for i in file.inputs:
        raw = file.tensors[i]
        dtype = np.dtype(names[kinds[raw.type]])
        shape = tuple(raw.shape)
        if dtype.kind == "f":
            found.append(rng.standard_normal(shape).astype(dtype))
        elif dtype.kind == "b":
            found.append(rng.integers(0, 2, shape).astype(bool))
        elif raw.quantization is not None:
            limits = np.iinfo(dtype)
            found.append(rng.integers(limits.min, limits.max + 1, shape).astype(dtype))
        else:
            found.append(rng.integers(-9 if dtype.kind == "i" else 0, 10, shape).astype(dtype))
    return found


def agree(file: File, feeds: Sequence[np.ndarray] | None = None, least_db: float = 120.0, steps: int = 0,
          default: bool = True, reference: bool = True) -> Model:  # fmt: skip
    """Read the file and compare every output with LiteRT's reference and default kernels.

    Args:
        file: The file.
        feeds: Inputs; random ones when None.
        least_db: Smallest signal-to-noise ratio of float outputs.
        steps: How far integer outputs may be off.
        default: Whether the default kernels are asked too.
        reference: Whether the reference kernels are asked; a few operators have none.
    """
    data = file.bytes()
    feeds = feeds_of(file) if feeds is None else feeds
    model = from_bytes(data, "made")
    got = run_onnx(model, feeds)
    for plain in [True] * reference + [False] * default:
        wanted = run_litert(data, feeds, plain)
        for a, b in zip(wanted, got, strict=True):
            assert b.shape == a.shape, (plain, a.shape, b.shape)
            assert b.dtype == a.dtype, (plain, a.dtype, b.dtype)
            if a.dtype.kind == "f":
                assert sqnr(a, b) >= least_db, (plain, sqnr(a, b), a.reshape(-1)[:8], b.reshape(-1)[:8])
            else:
                off = np.abs(a.astype(np.int64) - b.astype(np.int64)).max() if a.size else 0
                assert off <= steps, (plain, off, a.reshape(-1)[:8], b.reshape(-1)[:8])
    return model
