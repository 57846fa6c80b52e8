"""tflite to ONNX: one walk over the operators, with layouts and quantisation kept per tensor.

The ONNX network keeps the file's own signature: same names, order, dtypes and NHWC shapes. Inside, convolutions work
on NCHW. A quantised tensor is kept as integers; every operator takes it through DequantizeLinear and gives its result
back through QuantizeLinear (the QDQ form, which runtimes fuse into integer kernels).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.flat import MALFORMED, Network, enum_names, schema
from dlas.graph.formats.tflite.layout import Perm
from dlas.graph.formats.tflite.rules import readers
from dlas.graph.formats.tflite.tensors import QUANTISED, Operation, Quant, Tensor
from dlas.graph.model import OPSET

IR_VERSION = 10
BATCH = "batch"


def to_onnx(network: Network, name: str, dynamic_batch: bool) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Translate a network.

    Args:
        network: The checked file.
        name: Name of the graph.
        dynamic_batch: Leave the first axis open where the file says so.

    Returns:
        The ONNX network, with the shape of every tensor, and notes on what runs otherwise than in LiteRT.

    Raises:
        UnsupportedError: Some operators cannot be translated; all are named.
        ModelError: An operator does not fit its tensors.
    """
    missing = Counter(op.kind for op in network.operations if op.kind not in readers())
    if missing:
        raise UnsupportedError(
            f"{name}: no translation for "
            + ", ".join(f"{kind} ({n})" for kind, n in sorted(missing.items())),
            f"{len(readers())} tflite operators can be read",
        )
    reader = Reader(network)
    for position, op in enumerate(network.operations):
        try:
            reader.operation = op
            readers()[op.kind](reader, op)
        except MALFORMED as error:
            raise ModelError(
                f"{name}: operator {position} ({op.kind}) does not fit its tensors: {error}",
                "the file is damaged: download or export it again",
            ) from error
    try:
        proto = reader.finish(name, dynamic_batch)
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True), tuple(
            reader.notes
        )
    except (onnx.shape_inference.InferenceError, *MALFORMED) as error:
        raise ModelError(f"{name}: the operators do not fit together: {error}") from error


class Reader:
    """State of one translation; the rules of ``ops/`` call its methods.

    Tensors are named by their tflite index. ``perm`` is the order in which the ONNX value stores the axes (see
    :mod:`layout`).
    """

    def __init__(self, network: Network) -> None:
        self.tensors = list(network.tensors)
        self.notes: list[str] = []
        self.batch_free = True
        self.operation = Operation("", (), ())
        self._network = network
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._raw: dict[int, dict[Perm, str]] = {}
        self._real: dict[tuple[int, Perm], str] = {}
        self._count = 0
        self._taken = {tensor.name for tensor in self.tensors}
        self._kinds = schema()
        self._activations = enum_names("ActivationFunctionType")
        self._paddings = enum_names("Padding")
        for i in network.inputs:
            self._raw[i] = {layout.identity(len(self.shape(i))): self.tensors[i].name}

    # What the file says

    def tensor(self, i: int) -> Tensor:
        """Tensor ``i``; raises ModelError when an operator left it out."""
        if i < 0:
            raise ModelError(f"a {self.operation.kind} lacks an input that it needs")
        return self.tensors[i]

    def shape(self, i: int) -> tuple[int, ...]:
        """Sizes of tensor ``i`` in the file's order."""
        return self.tensor(i).shape

    def options(self, op: Operation, kind: str) -> Any:
        """The operator's options table, with the schema's defaults when it has none."""
        wanted = getattr(self._kinds, kind + "T")
        if op.options is None:
            return wanted()
        if not isinstance(op.options, wanted):
            raise ModelError(f"a {op.kind} carries {type(op.options).__name__}, expected {kind}")
        return op.options

    def padding(self, value: int) -> str:
        """``SAME`` or ``VALID``."""
        return self._paddings[value]

    def ints(self, i: int) -> list[int]:
        """A constant integer tensor, flattened."""
        return [int(v) for v in self.tensor(i).constant().reshape(-1)]

    # Values

    def emit(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: int = 1,
        *,
        attributes: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> str:
        """Add an ONNX node; returns the name of its first output (the others end in ``:1``, ``:2``, ...)."""
        base = self._fresh(kind.lower())
        names = [base, *(f"{base}:{n}" for n in range(1, outputs))]
        self._nodes.append(
            helper.make_node(kind, list(inputs), names, name=base, **{**(attributes or {}), **more})
        )
        return base

    def _fresh(self, hint: str) -> str:
        """A name that no tensor of the file has: files written by dlas hold names made here before."""
        self._count += 1
        while f"{hint}_{self._count}" in self._taken:
            self._count += 1
        return f"{hint}_{self._count}"

    def initializer(self, array: np.ndarray, hint: str = "constant") -> str:
        """Store a constant; returns its name."""
        name = self._fresh(hint)
        self._initializers[name] = numpy_helper.from_array(np.array(array, order="C"), name)
        return name

    def int64(self, values: Sequence[int]) -> str:
        """Store a list of integers, such as axes or a shape."""
        return self.initializer(np.array(values, np.int64), "ints")

    def is_constant(self, i: int) -> bool:
        """Whether tensor ``i`` is known without running the network."""
        return self.tensor(i).data is not None

    def perm(self, i: int) -> Perm:
        """An order in which tensor ``i`` is there already; the plain one for a constant."""
        held = self._raw.get(i)
        return next(reversed(held)) if held else layout.identity(len(self.shape(i)))

    def perms(self, i: int) -> list[Perm]:
        """All orders in which tensor ``i`` is there already."""
        return list(self._raw.get(i, {}))

    def raw(self, i: int, perm: Perm | None = None) -> str:
        """Tensor ``i`` as stored (integers when quantised), its axes in order ``perm``."""
        tensor = self.tensor(i)
        perm = perm or self.perm(i)
        held = self._raw.setdefault(i, {})
        if perm in held:
            return held[perm]
        if tensor.data is not None:
            held[perm] = self.initializer(tensor.data.transpose(perm), tensor.name)
            return held[perm]
        if not held:
            raise ModelError(f"tensor {tensor.name!r} is read before it is computed")
        turned = {p: layout.between(p, perm) for p in held}
        still = (p for p, q in turned.items() if not layout.moves_data(layout.permute(tensor.shape, p), q))
        have = next(still, next(iter(held)))
        name = self._reorder(self.value(i, have), layout.permute(tensor.shape, have), turned[have])
        held[perm] = self.stored(i, name, perm)
        return held[perm]

    def value(self, i: int, perm: Perm) -> str:
        """Tensor ``i`` for an operator that only moves elements: numbers when quantised, else as stored."""
        return self.real(i, perm) if self._on_grid(i) else self.raw(i, perm)

    def _on_grid(self, i: int) -> bool:
        tensor = self.tensor(i)
        return tensor.quant is not None and tensor.dtype in QUANTISED

    def flat(self, i: int) -> str:
        """As :meth:`value`, the elements in the plain order; axes of size 1 may stand anywhere."""
        tensor = self.tensor(i)
        for perm in self._raw.get(i, {}):
            if not layout.moves_data(tensor.shape, perm) and perm[:1] in ((), (0,)):
                return self.value(i, perm)
        return self.value(i, layout.identity(len(tensor.shape)))

    def _reorder(self, name: str, shape: Sequence[int], perm: Perm) -> str:
        if layout.moves_data(shape, perm) or (perm and perm[0] != 0):
            return self.emit("Transpose", [name], perm=list(perm))
        return self.emit("Reshape", [name, self.int64([0, *(shape[axis] for axis in perm[1:])])])

    def real(self, i: int, perm: Perm | None = None) -> str:
        """Tensor ``i`` as numbers (dequantised, or widened from float16), its axes in order ``perm``."""
        tensor = self.tensor(i)
        perm = perm or self.perm(i)
        if (i, perm) in self._real:
            return self._real[i, perm]
        name = self.raw(i, perm)
        if tensor.quant is not None and tensor.dtype in (*QUANTISED, "int32"):
            name = self._dequantize(name, tensor.quant.permuted(perm), tensor.dtype)
        elif tensor.quant is not None:
            raise UnsupportedError(
                f"tensor {tensor.name!r} is quantised to {tensor.dtype}; int8 and uint8 are read"
            )
        elif tensor.dtype == "float16":
            name = self.emit("Cast", [name], to=TensorProto.FLOAT)
        self._real[i, perm] = name
        return name

    def on_grid(self, i: int, name: str) -> str:
        """Numbers of tensor ``i`` in another shape, sent through its quantisation again so that runtimes see it."""
        tensor = self.tensor(i)
        if tensor.quant is None or not self._on_grid(i):
            return name
        return self._dequantize(self.stored(i, name, ()), tensor.quant, tensor.dtype)

    def _dequantize(self, name: str, quant: Quant, dtype: str) -> str:
        return self.emit(
            "DequantizeLinear", [name, *self._quant_inputs(quant, dtype)], attributes=_axis(quant)
        )

    def _quant_inputs(self, quant: Quant, dtype: str) -> list[str]:
        scale, zero = quant.scale, quant.zero_point.astype(dtype)
        if quant.axis is None:
            scale, zero = scale.reshape(()), zero.reshape(())
        return [self.initializer(scale, "scale"), self.initializer(zero, "zero_point")]

    def weights(self, i: int, perm: Perm) -> str:
        """A weight tensor as numbers; one constant keeps its small dtype and is widened in the graph."""
        tensor = self.tensor(i)
        if tensor.dtype == "int8" and tensor.quant is not None and not self._integer_result():
            self._note_hybrid()
        return self.real(i, perm)

    def bias(self, i: int, x: int, w: int) -> list[str]:
        """The bias as a list of one name, or of none; an int32 bias is meant in units of both scales' product."""
        if i < 0:
            return []
        tensor, data, weight = self.tensor(i), self.tensor(x).quant, self.tensor(w).quant
        if tensor.dtype == "int32" and data is not None and weight is not None:
            scale = (data.scale * weight.scale).astype(np.float32)
            quant = Quant(scale, np.zeros(len(scale), np.int64), 0 if len(scale) > 1 else None)
            self.tensors[i] = replace(tensor, quant=quant)
        return [self.real(i)]

    def _integer_result(self) -> bool:
        return self.tensor(self.operation.outputs[0]).dtype in QUANTISED

    def _note_hybrid(self) -> None:
        note = (
            "int8 weights with float activations (dynamic-range quantisation): LiteRT rounds the activations to "
            "int8 at run time, here they stay float"
        )
        if note not in self.notes:
            self.notes.append(note)

    # Results

    def activate(self, name: str, function: int) -> str:
        """Apply a fused activation, unless the range of the quantised result already does what it would."""
        kind = self._activations[function]
        if kind == "NONE" or self._saturates(kind):
            return name
        if kind == "RELU":
            return self.emit("Relu", [name])
        if kind == "TANH":
            return self.emit("Tanh", [name])
        bounds = {"RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}.get(kind)
        if bounds is None:
            raise UnsupportedError(f"fused activation {kind} of a {self.operation.kind} cannot be read")
        low, high = (self.initializer(np.array(b, np.float32), "bound") for b in bounds)
        return self.emit("Clip", [name, low, high])

    def _saturates(self, kind: str) -> bool:
        """Whether storing the operator's result cuts off all that the activation would (runtimes fuse it better)."""
        tensor = self.tensor(self.operation.outputs[0])
        if tensor.quant is None or tensor.dtype not in QUANTISED or kind not in ("RELU", "RELU6"):
            return False
        limits, zero = np.iinfo(tensor.dtype), int(tensor.quant.zero_point[0])
        top = (limits.max - zero) * float(tensor.quant.scale[0])
        return zero == limits.min and (kind == "RELU" or top <= 6.0)

    def give(self, i: int, name: str, perm: Perm) -> None:
        """Tensor ``i`` is the numbers ``name``; quantised here if the file stores it so."""
        tensor = self.tensor(i)
        if tensor.dtype in QUANTISED and tensor.quant is None:
            raise ModelError(f"tensor {tensor.name!r} is {tensor.dtype} but has no scale")
        self.give_raw(i, self.stored(i, name, perm), perm)

    def stored(self, i: int, name: str, perm: Perm) -> str:
        """The numbers ``name`` in the dtype in which the file stores tensor ``i``."""
        tensor = self.tensor(i)
        if tensor.quant is not None and tensor.dtype in QUANTISED:
            quant = tensor.quant if tensor.quant.axis is None else tensor.quant.permuted(perm)
            inputs = [name, *self._quant_inputs(quant, tensor.dtype)]
            return self.emit("QuantizeLinear", inputs, attributes=_axis(quant))
        return name

    def give_raw(self, i: int, name: str, perm: Perm) -> None:
        """Tensor ``i`` is ``name``, already in the dtype that the file stores."""
        self._raw[i] = {perm: name}

    def give_moved(self, i: int, source: int, name: str, perm: Perm) -> None:
        """Tensor ``i`` is ``name``, made by moving elements of :meth:`value` of tensor ``source``."""
        if self._on_grid(source):
            self.give(i, name, perm)
        else:
            self.give_raw(i, name, perm)

    def element_type(self, dtype: str) -> int:
        """ONNX's number of a dtype."""
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def give_constant(self, i: int, like: Tensor | np.ndarray) -> None:
        """Tensor ``i`` is known now: an array, or the same as another constant tensor."""
        tensor = self.tensor(i)
        if isinstance(like, Tensor):
            self.tensors[i] = replace(tensor, dtype=like.dtype, quant=like.quant, data=like.data)
        else:
            self.tensors[i] = replace(tensor, data=like.astype(tensor.dtype).reshape(tensor.shape))

    # The finished network

    def finish(self, name: str, dynamic_batch: bool) -> onnx.ModelProto:
        """Name the outputs, drop what nothing reads, and wrap it up."""
        self.operation = Operation("network output", (), ())
        names: dict[str, str] = {}
        for i in self._network.outputs:
            value = self._output(i, set(names))
            names[value] = self.tensors[i].name
        self._use_file_names(names)
        for node in self._nodes:
            node.input[:] = [names.get(n, n) for n in node.input]
            node.output[:] = [names.get(n, n) for n in node.output]
        self._drop_unused()
        inputs, outputs = (
            [self.tensors[i] for i in ends] for ends in (self._network.inputs, self._network.outputs)
        )
        first = {t.shape[:1] for t in (*inputs, *outputs)}
        free = dynamic_batch and self.batch_free and first == {(1,)} and all(t.dynamic_batch for t in inputs)
        graph = helper.make_graph(
            self._nodes,
            name,
            [_value_info(t, free) for t in inputs],
            [_value_info(t, free) for t in outputs],
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="dlas")

    def _output(self, i: int, taken: set[str]) -> str:
        perm = layout.identity(len(self.shape(i)))
        value = self.raw(i, perm)
        produced = any(value in node.output for node in self._nodes)
        return value if produced and value not in taken else self.emit("Identity", [value])

    def _use_file_names(self, names: dict[str, str]) -> None:
        """Give each computed value the name its tensor has in the file, where that is free."""
        ends = (*self._network.inputs, *self._network.outputs)
        taken = {self.tensors[i].name for i in ends} | set(self._initializers)
        for i, held in self._raw.items():
            name, value = self.tensors[i].name, next(iter(held.values()), "")
            if name not in taken and value not in (*names, *taken):
                names[value] = name
                taken.add(name)

    def _drop_unused(self) -> None:
        wanted = {self.tensors[i].name for i in self._network.outputs}
        kept = []
        for node in reversed(self._nodes):
            if wanted.intersection(node.output):
                kept.append(node)
                wanted.update(node.input)
        self._nodes = kept[::-1]
        self._initializers = {n: t for n, t in self._initializers.items() if n in wanted}


def _axis(quant: Quant) -> dict[str, int]:
    return {} if quant.axis is None else {"axis": quant.axis}


def _value_info(tensor: Tensor, free: bool) -> onnx.ValueInfoProto:
    shape: list[int | str] = [*tensor.shape]
    if free:
        shape[0] = BATCH
    return helper.make_tensor_value_info(
        tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), shape
    )
