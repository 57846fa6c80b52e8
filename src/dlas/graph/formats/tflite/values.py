"""The values of the ONNX network under construction: what is there, in which order of axes, as stored or as numbers.

A quantised tensor is kept as integers and taken through DequantizeLinear; its result goes back through QuantizeLinear
(the QDQ form, which runtimes fuse into integer kernels). ONNX below opset 21 has no such nodes for int16, so there the
same arithmetic is spelled out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.layout import Perm
from dlas.graph.formats.tflite.tensors import GRIDS, QUANTISED, Operation, Quant, Tensor

MAX_MADE = 2**23  # elements of a constant that a rule makes up
MAX_NODES = 500_000
STATE_NOTE = "state starts at zero in every call: LiteRT carries it from call to call, an ONNX network cannot"


class Values:
    """Tensors by their tflite index; ``perm`` is the order in which an ONNX value stores the axes."""

    def __init__(self, tensors: Sequence[Tensor], inputs: Sequence[int]) -> None:
        self.tensors = list(tensors)
        self.notes: list[str] = []
        self.operation = Operation("", (), ())
        self._nodes: list[onnx.NodeProto] = []
        self._makers: dict[str, onnx.NodeProto] = {}
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._raw: dict[int, dict[Perm, str]] = {}
        self._real: dict[tuple[int, Perm], str] = {}
        self._count = 0
        self._taken = {tensor.name for tensor in self.tensors}
        for i in inputs:
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

    def ints(self, i: int) -> list[int]:
        """A constant integer tensor, flattened."""
        return [int(v) for v in self.tensor(i).constant().reshape(-1)]

    def is_constant(self, i: int) -> bool:
        """Whether tensor ``i`` is known without running the network."""
        return self.tensor(i).data is not None

    def note(self, text: str) -> None:
        """Say once what runs otherwise than in LiteRT."""
        if text not in self.notes:
            self.notes.append(text)

    # Nodes and constants

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
        if len(self._nodes) >= MAX_NODES:
            raise UnsupportedError(f"the network would have more than {MAX_NODES} ONNX nodes")
        base = self._fresh(kind.lower())
        names = [base, *(f"{base}:{n}" for n in range(1, outputs))]
        made = helper.make_node(kind, list(inputs), names, name=base, **{**(attributes or {}), **more})
        self._nodes.append(made)
        self._makers.update(dict.fromkeys(names, made))
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

    def int64(self, values: Sequence[int] | np.ndarray) -> str:
        """Store a list of integers, such as axes or a shape."""
        return self.initializer(np.asarray(values, np.int64), "ints")

    def number(self, value: float | bool, dtype: str = "float32") -> str:
        """Store one number."""
        return self.initializer(np.array(value, dtype), "number")

    def cast(self, name: str, dtype: str) -> str:
        """``name`` converted to a NumPy dtype."""
        return self.emit("Cast", [name], to=self.element_type(dtype))

    def transposed(self, name: str, perm: Sequence[int]) -> str:
        """``name`` with its axes in order ``perm``; the same name when nothing moves."""
        return name if list(perm) == sorted(perm) else self.emit("Transpose", [name], perm=list(perm))

    def element_type(self, dtype: str) -> int:
        """ONNX's number of a dtype."""
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def bounded(self, count: int) -> None:
        """Raise UnsupportedError when a rule would have to make up a constant of too many elements."""
        if count > MAX_MADE:
            raise UnsupportedError(
                f"a {self.operation.kind} would need a constant of {count} elements; at most {MAX_MADE} are made"
            )

    # Values in the order of axes that an operator wants

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
        if tensor.variable:
            self.bounded(int(np.prod(tensor.shape)))
            self.note(STATE_NOTE)
            held[perm] = self.initializer(self._zeros(tensor).transpose(perm), tensor.name)
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

    def _zeros(self, tensor: Tensor) -> np.ndarray:
        zero = int(tensor.quant.zero_point[0]) if tensor.quant is not None else 0
        return np.full(tensor.shape, zero, tensor.dtype)

    def value(self, i: int, perm: Perm) -> str:
        """Tensor ``i`` for an operator that only moves elements: numbers when quantised, else as stored."""
        return self.real(i, perm) if self.is_on_grid(i) else self.raw(i, perm)

    def is_on_grid(self, i: int) -> bool:
        """Whether tensor ``i`` is stored as integers that stand for other numbers."""
        tensor = self.tensor(i)
        return tensor.quant is not None and tensor.dtype in GRIDS

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

    # Between stored integers and the numbers they stand for

    def real(self, i: int, perm: Perm | None = None) -> str:
        """Tensor ``i`` as numbers (dequantised, or widened from float16), its axes in order ``perm``."""
        tensor = self.tensor(i)
        perm = perm or self.perm(i)
        if (i, perm) in self._real:
            return self._real[i, perm]
        name = self.raw(i, perm)
        if tensor.quant is not None and tensor.dtype in (*GRIDS, "int32"):
            name = self.dequantized(name, tensor.quant.permuted(perm), tensor.dtype)
        elif tensor.dtype == "float16":
            name = self.emit("Cast", [name], to=TensorProto.FLOAT)
        self._real[i, perm] = name
        return name

    def on_grid(self, i: int, name: str) -> str:
        """Numbers of tensor ``i`` in another shape, sent through its quantisation again so that runtimes see it."""
        tensor = self.tensor(i)
        if tensor.quant is None or not self.is_on_grid(i):
            return name
        return self.dequantized(self.stored(i, name, ()), tensor.quant, tensor.dtype)

    def dequantized(self, name: str, quant: Quant, dtype: str) -> str:
        """The numbers that stored integers of ``dtype`` stand for."""
        if dtype in (*QUANTISED, "int32"):
            inputs = [name, *self._quant_inputs(quant, dtype)]
            return self.emit("DequantizeLinear", inputs, attributes=_axis(quant))
        if quant.axis is not None:
            raise UnsupportedError(f"{dtype} tensors quantised per channel cannot be read")
        name = self.cast(name, "float32")
        if quant.zero_point[0]:
            name = self.emit("Sub", [name, self.number(float(quant.zero_point[0]))])
        return self.emit("Mul", [name, self.number(quant.scale[0])])

    def _quantize(self, name: str, quant: Quant, dtype: str) -> str:
        if dtype in QUANTISED:
            inputs = [name, *self._quant_inputs(quant, dtype)]
            return self.emit("QuantizeLinear", inputs, attributes=_axis(quant))
        if quant.axis is not None:
            raise UnsupportedError(f"{dtype} tensors quantised per channel cannot be read")
        name = self.emit("Round", [self.emit("Div", [name, self.number(quant.scale[0])])])
        if quant.zero_point[0]:
            name = self.emit("Add", [name, self.number(float(quant.zero_point[0]))])
        limits = np.iinfo(dtype)
        top = float(limits.max) if dtype != "int32" else float(np.nextafter(np.float32(2**31), np.float32(0)))
        clipped = self.emit("Clip", [name, self.number(float(limits.min)), self.number(top)])
        return self.cast(clipped, dtype)

    def _quant_inputs(self, quant: Quant, dtype: str) -> list[str]:
        scale, zero = quant.scale, quant.zero_point.astype(dtype)
        if quant.axis is None:
            scale, zero = scale.reshape(()), zero.reshape(())
        return [self.initializer(scale, "scale"), self.initializer(zero, "zero_point")]

    def stored(self, i: int, name: str, perm: Perm) -> str:
        """The numbers ``name`` in the dtype in which the file stores tensor ``i``."""
        tensor = self.tensor(i)
        if tensor.quant is not None and tensor.dtype in (*GRIDS, "int32"):
            quant = tensor.quant if tensor.quant.axis is None else tensor.quant.permuted(perm)
            return self._quantize(name, quant, tensor.dtype)
        return self.cast(name, "float16") if tensor.dtype == "float16" else name


def _axis(quant: Quant) -> dict[str, int]:
    return {} if quant.axis is None else {"axis": quant.axis}
