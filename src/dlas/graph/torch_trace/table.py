"""The table of calls that can be written in ONNX, and what a builder sees of a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from dlas.graph.torch_ops.table import DTYPES

BATCH = "N"
Dim = int | str | None
Builder = Callable[
    ..., Any
]  # Call and the arguments of the torch function -> value of the result, or several

BUILDERS: dict[Any, Builder] = {}  # by function, or by name for methods of tensors
SIZED: set[Any] = set()  # those that may be given sizes that depend on the batch
_ONNX = {kind: code for code, kind in DTYPES.items()}


class NotTracedError(Exception):
    """This network is one for PyTorch's exporter; says why."""


def function(*targets: Any, sizes: bool = False) -> Callable[[Builder], Builder]:
    """Enter a builder for these functions and methods.

    Args:
        targets: Functions of torch, or names of methods of tensors.
        sizes: Whether arguments may be sizes that depend on the batch.
    """

    def enter(builder: Builder) -> Builder:
        for target in targets:
            BUILDERS[target] = builder
            if sizes:
                SIZED.add(target)
        return builder

    return enter


@dataclass(frozen=True, eq=False)
class Traced:
    """Something the network computes.

    Attributes:
        runs: What it was with each size of the batch that was tried.
        value: The tensor in the graph; None for a number, a size or several tensors.
        parts: Several tensors.
    """

    runs: tuple[Any, ...]
    value: ir.Value | None = None
    parts: tuple[Traced, ...] = ()

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return self.runs[0].dim()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensor."""
        return self.runs[0].dtype

    @property
    def varies(self) -> bool:
        """Whether the number or size depends on the batch."""
        return any(run != self.runs[0] for run in self.runs[1:])

    def fixed(self, axis: int) -> int:
        """The size of an axis, which must not depend on the batch."""
        sizes = {run.shape[axis] for run in self.runs}
        if len(sizes) != 1:
            raise NotTracedError(f"axis {axis} depends on the batch")
        return sizes.pop()

    def axis(self, axis: int) -> int:
        """An axis counted from the front."""
        return axis % max(1, self.rank)


Shaped = tuple[torch.Tensor, ...]


@dataclass
class Writer:
    """The graph while it is written.

    Attributes:
        batches: The sizes of the batch that were tried.
        taken: Names that are used up.
        nodes: In order.
        initializers: Weights and constants by name.
    """

    batches: tuple[int, ...]
    taken: set[str]
    nodes: list[ir.Node] = field(default_factory=list)
    initializers: dict[str, ir.Value] = field(default_factory=dict)

    def dims(self, runs: Shaped) -> tuple[Dim, ...]:
        """Sizes; the batch and multiples of it by name, None for what depends on it otherwise."""
        return tuple(self._dim(sizes) for sizes in zip(*(run.shape for run in runs), strict=True))

    def _dim(self, sizes: tuple[int, ...]) -> Dim:
        if len(set(sizes)) == 1:
            return sizes[0]
        ratios = {size / batch for size, batch in zip(sizes, self.batches, strict=True)}
        ratio = ratios.pop()
        if ratios or not ratio.is_integer():
            return None
        return BATCH if ratio == 1 else f"{int(ratio)}*{BATCH}"

    def typed(self, name: str, runs: Shaped) -> ir.Value:
        """A value with shape and dtype."""
        if runs[0].dtype not in _ONNX:
            raise NotTracedError(f"the dtype {runs[0].dtype}")
        shape = ir.Shape(self.dims(runs))
        return ir.Value(name=name, shape=shape, type=ir.TensorType(_ONNX[runs[0].dtype]))

    def stored(self, name: str, array: np.ndarray) -> ir.Value:
        """An initializer; the one there is by that name."""
        if name not in self.initializers:
            tensor = ir.Tensor(array, name=name)
            self.initializers[name] = ir.Value(
                name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self.initializers[name]

    def fresh(self, name: str) -> str:
        """``name``, or with a number behind it if it is taken."""
        unique, count = name, 1
        while unique in self.taken:
            count += 1
            unique = f"{name}_{count}"
        self.taken.add(unique)
        return unique


@dataclass
class Call:
    """One call of the network while it is written.

    Attributes:
        writer: The graph.
        place: Name of the module it happens in, such as ``layer1.0``.
        result: What it gave with each size of the batch.
    """

    writer: Writer
    place: str
    result: tuple[Any, ...]

    def emit(self, kind: str, *inputs: Any, like: Shaped | None = None, **attributes: Any) -> ir.Value:
        """Add a node of one output.

        Args:
            kind: ONNX operator.
            inputs: Traced tensors, values, arrays (which become constants), None for one left out.
            like: Tensors of the shape and dtype of the output; the call's result unless given.
            attributes: Of the node.
        """
        return self.emit_all(kind, *inputs, like=[like or self.result], **attributes)[0]

    def emit_all(self, kind: str, *inputs: Any, like: Sequence[Shaped], **attributes: Any) -> list[ir.Value]:
        """Add a node of several outputs, as :meth:`emit`."""
        values = [i.value if isinstance(i, Traced) else i for i in inputs]
        given = [v for v in values if isinstance(v, ir.Value)]
        if all(v.const_value is not None for v in given):
            raise NotTracedError(f"{kind} of weights alone, to be folded")
        name = self.writer.fresh(self._name(kind, given))
        for index, value in enumerate(values):
            if isinstance(value, np.ndarray):
                values[index] = self.writer.stored(f"{name}:in{index}", value)
        outputs = [
            self.writer.typed(name if index == 0 else f"{name}:{index}", runs)
            for index, runs in enumerate(like)
        ]
        self.writer.nodes.append(ir.node(kind, values, attributes, outputs=outputs, name=name))
        return outputs

    def _name(self, kind: str, given: list[ir.Value]) -> str:
        for value in given:
            if value.const_value is not None and str(value.name).endswith(".weight"):
                return str(value.name).removesuffix(".weight")
        return f"{self.place}.{kind.lower()}" if self.place else kind.lower()

    def number(self, number: float, like: torch.Tensor | None = None) -> np.ndarray:
        """A constant of the dtype of the result, or of another tensor."""
        kind = _ONNX.get((self.result[0] if like is None else like).dtype)
        if kind is None or not isinstance(number, int | float):
            raise NotTracedError(f"the constant {number!r}")
        return np.array(number, kind.numpy())


def ints(*numbers: int) -> np.ndarray:
    """A list of integers as ONNX wants it."""
    return np.array(numbers, np.int64)


def need(holds: bool, what: str) -> None:
    """Leave the network to PyTorch unless something holds."""
    if not holds:
        raise NotTracedError(what)
