"""tflite to ONNX: one walk over the operators, with layouts and quantisation kept per tensor.

The ONNX network keeps the file's own signature: same names, order, dtypes and NHWC shapes. Inside, convolutions work
on NCHW. :mod:`values` holds what has been computed so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.flat import MALFORMED, Network, enum_names, schema
from dlas.graph.formats.tflite.layout import Perm
from dlas.graph.formats.tflite.rules import readers
from dlas.graph.formats.tflite.tensors import GRIDS, QUANTISED, Operation, Quant, Tensor
from dlas.graph.formats.tflite.values import Values
from dlas.graph.model import OPSET

IR_VERSION = 10
BATCH = "batch"
_LARGE = 1024  # bytes; longer than any tensor that says a shape
MAX_FOLDED = 4096  # elements of a shape computation that is worked out while reading
MAX_FOLDED_NODES = 16
TAKE_COMPLEX = ("RFFT2D", "REAL", "IMAG", "COMPLEX_ABS", "RESHAPE", "SQUEEZE", "EXPAND_DIMS")


def to_onnx(network: Network, name: str, dynamic_batch: bool) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Translate a network.

    Args:
        network: The checked file.
        name: Name of the graph.
        dynamic_batch: Leave the first axis open where the file says so.

    Returns:
        The ONNX network, with the shape of every tensor, and notes on what runs otherwise than in LiteRT.

    Raises:
        UnsupportedError: Some operators or tensors cannot be translated; all are named at once.
        ModelError: An operator does not fit its tensors.
    """
    missing = Counter(op.kind for op in network.operations if op.kind not in readers())
    refused: Counter[str] = Counter()
    reader = Reader(network)
    for position, op in enumerate(network.operations):
        try:
            reader.translate(op)
        except UnsupportedError as error:
            refused[error.message] += op.kind not in missing
            reader.pass_over(op)
        except (ModelError, *MALFORMED) as error:
            if missing or refused or network.unread:  # what follows something unread may not fit
                reader.pass_over(op)
                continue
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"{name}: operator {position} ({op.kind}) does not fit its tensors: {reader.described(op, error)}",
                "the file is damaged: download or export it again",
            ) from error
    _refuse(name, missing, network.unread, +refused)
    try:
        checked = reader.finish(name, dynamic_batch)
    except (onnx.shape_inference.InferenceError, *MALFORMED) as error:
        raise ModelError(f"{name}: the operators do not fit together: {error}") from error
    return checked, tuple(reader.notes)


def _refuse(name: str, missing: Counter[str], unread: Counter[str], refused: Counter[str]) -> None:
    parts = []
    if missing:
        parts.append(f"no translation for {_counted(sorted(missing.items()))}")
    if unread:
        parts.append(f"tensors of these kinds cannot be read: {_counted(sorted(unread.items()))}")
    parts += [text if n == 1 else f"{text} ({n} times)" for text, n in refused.items()]
    if parts:
        raise UnsupportedError(
            f"{name}: " + "; ".join(parts), f"{len(readers())} builtin and custom operators can be read"
        )


def _counted(items: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{kind} ({n})" for kind, n in items)


class Reader(Values):
    """State of one translation; the rules of ``ops/`` call its methods."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.tensors, network.inputs)
        self.batch_free = True
        self._network = network
        self._kinds = schema()
        self._activations = enum_names("ActivationFunctionType")
        self._paddings = enum_names("Padding")
        self._open: dict[int, tuple[int | str, ...]] = {}

    def translate(self, op: Operation) -> None:
        """Emit the nodes of one operator."""
        self.operation = op
        rule = readers().get(op.kind)
        if rule is None:
            raise UnsupportedError(f"no translation for {op.kind}")
        used = [self.tensor(i) for i in (*op.inputs, *op.outputs) if i >= 0]
        ends = {*self._network.inputs, *self._network.outputs}
        imaginary = [t for t in used if t.dtype == "complex64"]
        if imaginary and (
            op.kind not in TAKE_COMPLEX or any(t.data is not None or t.index in ends for t in imaginary)
        ):
            raise UnsupportedError(f"{op.kind} of complex numbers cannot be read")
        rule(self, op)
        self._fold(op)

    def pass_over(self, op: Operation) -> None:
        """Pretend that ``op`` was translated, so that more can be found out about a file that is refused anyway."""
        for i in op.outputs:
            self._raw[i] = {layout.identity(len(self.shape(i))): self.tensors[i].name}

    # What the file says

    def described(self, op: Operation, error: Exception) -> str:
        """The shapes that ``op`` works on, and what is wrong where a rule said so itself."""
        ins, outs = (
            ", ".join(str(list(self.shape(i))) if i >= 0 else "none" for i in ends[:8])
            for ends in (op.inputs, op.outputs)
        )
        said = str(error)
        own = (
            isinstance(error, (ValueError, IndexError))
            and "unpack" not in said
            and "out of range" not in said
        )
        return f"{ins} to {outs}" + (f": {said}" if own else "")

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

    def activation_name(self, value: int) -> str:
        """A fused activation, as the schema names it."""
        return self._activations[value]

    # Weights

    def weights(self, i: int, perm: Perm) -> str:
        """A weight tensor as numbers; one constant keeps its small dtype and is widened in the graph."""
        self.note_hybrid(i)
        return self.real(i, perm)

    def note_hybrid(self, i: int) -> None:
        """Say so when tensor ``i`` is integer but the operator's result is float."""
        integer = self.tensor(self.operation.outputs[0]).dtype in (*GRIDS, "int32")
        if self.tensor(i).dtype in QUANTISED and self.is_on_grid(i) and not integer:
            self.note(
                "int8 weights with float activations (dynamic-range quantisation): LiteRT rounds the activations to "
                "int8 at run time, here they stay float"
            )

    def bias(self, i: int, x: int, w: int) -> list[str]:
        """The bias as a list of one name, or of none; an integer bias is meant in units of both scales' product."""
        if i < 0:
            return []
        tensor, data, weight = self.tensor(i), self.tensor(x).quant, self.tensor(w).quant
        if tensor.dtype not in ("int32", "int64") or data is None or weight is None:
            return [self.real(i)]
        scale = (data.scale * weight.scale).astype(np.float32)
        stored = tensor.constant()
        if (
            stored.size and np.abs(stored).max() > np.iinfo(np.int32).max
        ):  # more than DequantizeLinear can take
            return [self.initializer((stored * scale.astype(np.float64)).astype(np.float32), tensor.name)]
        quant = Quant(scale, np.zeros(len(scale), np.int64), 0 if len(scale) > 1 else None)
        name = (
            self.raw(i) if tensor.dtype == "int32" else self.initializer(stored.astype(np.int32), tensor.name)
        )
        return [self.dequantized(name, quant, "int32")]

    # Results

    def activate(self, name: str, function: int) -> str:
        """Apply a fused activation, unless the range of the quantised result already does what it would."""
        kind = self._activations[function]
        if kind == "NONE" or self._saturates(kind):
            return name
        if kind == "TANH":
            return self.emit("Tanh", [name])
        bounds = {"RELU": (0, None), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}.get(kind)
        if bounds is None:
            raise UnsupportedError(f"fused activation {kind} of a {self.operation.kind} cannot be read")
        dtype = self.tensor(self.operation.outputs[0]).dtype
        whole = dtype in ("int32", "int64") and not self.tensor(self.operation.outputs[0]).quant
        if kind == "RELU" and not whole:
            return self.emit("Relu", [name])
        return self.clip(name, *bounds, dtype=dtype if whole else "float32")

    def clip(self, name: str, low: float | None, high: float | None, dtype: str = "float32") -> str:
        """``name`` kept between two bounds, either of which may be open."""
        bounds = ["" if b is None else self.initializer(np.array(b, dtype), "bound") for b in (low, high)]
        return self.emit("Clip", [name, *bounds] if bounds[1] else [name, bounds[0]])

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

    def give_raw(self, i: int, name: str, perm: Perm) -> None:
        """Tensor ``i`` is ``name``, already in the dtype that the file stores."""
        self._raw[i] = {perm: name}

    def give_moved(self, i: int, source: int, name: str, perm: Perm) -> None:
        """Tensor ``i`` is ``name``, made by moving elements of :meth:`value` of tensor ``source``."""
        if self.is_on_grid(source):
            self.give(i, name, perm)
        else:
            self.give_raw(i, name, perm)

    def give_constant(self, i: int, like: Tensor | np.ndarray) -> None:
        """Tensor ``i`` is known now: an array, or the same as another constant tensor."""
        tensor = self.tensor(i)
        if isinstance(like, Tensor):
            self.tensors[i] = replace(tensor, dtype=like.dtype, quant=like.quant, data=like.data)
        else:
            self.tensors[i] = replace(tensor, data=like.astype(tensor.dtype).reshape(tensor.shape))

    def leave_open(self, i: int, shape: Sequence[int | str]) -> None:
        """The shape of tensor ``i`` depends on the data: sizes, and names where they are not known."""
        self._open[i] = tuple(shape)
        sizes = tuple(1 if isinstance(d, str) else d for d in shape)
        self.tensors[i] = replace(self.tensors[i], shape=sizes)

    def _fold(self, op: Operation) -> None:
        """Work out small integer results of constants now: shapes and indices must be known to be translated."""
        known = all(i < 0 or self.is_constant(i) for i in op.inputs)
        for i in op.outputs:
            tensor = self.tensor(i)
            small = 0 < int(np.prod(tensor.shape)) <= MAX_FOLDED and tensor.dtype in (
                "int32",
                "int64",
                "bool",
            )
            if not known or not small or tensor.data is not None or tensor.quant is not None:
                continue
            found = self._evaluated(self.raw(i, layout.identity(len(tensor.shape))))
            if found is not None and found.size == np.prod(tensor.shape):
                self.give_constant(i, found)
                self._raw.pop(i)

    def _evaluated(self, name: str) -> np.ndarray | None:
        """What a value that depends on constants only comes to; None when onnx's own interpreter cannot say."""
        from onnx.reference import ReferenceEvaluator

        nodes: list[onnx.NodeProto] = []
        held: dict[str, onnx.TensorProto] = {}
        waiting = [name]
        while waiting:
            value = waiting.pop()
            if value in self._initializers:
                held[value] = self._initializers[value]
            elif value in self._makers and self._makers[value] not in nodes:
                nodes.append(self._makers[value])
                waiting += [n for n in nodes[-1].input if n]
            if len(nodes) > MAX_FOLDED_NODES:
                return None
        values = list(held.values())
        graph = helper.make_graph(nodes[::-1], "fold", [], [onnx.ValueInfoProto(name=name)], values)
        opsets = [helper.make_opsetid("", OPSET)]
        try:
            made = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION))
            return np.asarray(made.run(None, {})[0])  # type: ignore[index]
        except (*MALFORMED, NotImplementedError, RuntimeError):
            return None

    # The finished network

    def finish(self, name: str, dynamic_batch: bool) -> onnx.ModelProto:
        """Name the outputs, drop what nothing reads, wrap it up and find the shape of every tensor."""
        self.operation = Operation("network output", (), ())
        names: dict[str, str] = {}
        for i in self._network.outputs:
            if i in self._network.inputs:  # handed through: an ONNX value has one name
                self.tensors[i] = replace(self.tensors[i], name=self._fresh(f"{self.tensors[i].name}_out"))
            value = self._output(i, set(names))
            names[value] = self.tensors[i].name
        self._use_file_names(names)
        for node in self._nodes:
            node.input[:] = [names.get(n, n) for n in node.input]
            node.output[:] = [names.get(n, n) for n in node.output]
        self._drop_unused()
        inputs = [self._network.tensors[i] for i in self._network.inputs]
        outputs = [self.tensors[i] for i in self._network.outputs]
        first = {t.shape[:1] for t in (*inputs, *outputs)}
        free = dynamic_batch and self.batch_free and first == {(1,)} and all(t.dynamic_batch for t in inputs)
        # Shapes do not depend on large weights, which inference would copy three times: they go in afterwards.
        large = [t for t in self._initializers.values() if len(t.raw_data) > _LARGE]
        graph = helper.make_graph(
            self._nodes,
            name,
            [_value_info(t, free) for t in inputs]
            + [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in large],
            [_value_info(t, free, self._open.get(t.index)) for t in outputs],
            [t for t in self._initializers.values() if len(t.raw_data) <= _LARGE],
        )
        opsets = [helper.make_opsetid("", OPSET)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="dlas")
        proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
        del proto.graph.input[len(inputs) :], proto.graph.initializer[:]
        del graph, large
        for key in list(self._initializers):  # one by one: there are never two copies of all weights
            proto.graph.initializer.append(self._initializers.pop(key))
        return proto

    def _output(self, i: int, taken: set[str]) -> str:
        perm = layout.identity(len(self.shape(i)))
        value = self.raw(i, perm)
        return value if value in self._makers and value not in taken else self.emit("Identity", [value])

    def _use_file_names(self, names: dict[str, str]) -> None:
        """Give each computed value the name its tensor has in the file, where that is free."""
        taken = {self._network.tensors[i].name for i in self._network.inputs} | set(self._initializers)
        taken |= {self.tensors[i].name for i in self._network.outputs}
        for i, held in self._raw.items():
            name, value = self.tensors[i].name, next(iter(held.values()), "")
            if name not in taken and value not in names and value not in taken:
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


def _value_info(
    tensor: Tensor, free: bool, loose: tuple[int | str, ...] | None = None
) -> onnx.ValueInfoProto:
    shape: list[int | str] = [*(tensor.shape if loose is None else loose)]
    if free and loose is None:
        shape[0] = BATCH
    return helper.make_tensor_value_info(
        tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), shape
    )
