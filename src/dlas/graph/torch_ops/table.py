"""The table of builders, and what a builder sees of a node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from dlas.core.errors import UnsupportedError

Call = Callable[..., Any]  # tensors by ONNX input position -> tensor, or tuple of tensors for several outputs
Builder = Callable[["Node"], Call]
Ints = Callable[[tuple[Any, ...]], list[int]]

BUILDERS: dict[str, Builder] = {}


def op(*types: str) -> Callable[[Builder], Builder]:
    """Enter a builder for these operator types."""

    def enter(builder: Builder) -> Builder:
        for kind in types:
            BUILDERS[kind] = builder
        return builder

    return enter


@dataclass
class Node:
    """One node while its call is built.

    Attributes:
        ir: The node.
        opset: Version of the default operator set of the graph.
        constants: Value name to array, of everything known before the graph runs.
        baked: Positions of inputs that the builder has read; they are not passed to the call.
    """

    ir: ir.Node
    opset: int
    constants: Mapping[str, np.ndarray]
    baked: set[int] = field(default_factory=set)

    @property
    def kind(self) -> str:
        """Operator type."""
        return self.ir.op_type

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return len(self.ir.outputs)

    def has(self, position: int) -> bool:
        """Whether the input is given."""
        return position < len(self.ir.inputs) and self.ir.inputs[position] is not None

    def attr(self, name: str, default: Any = None) -> Any:
        """Attribute value (text decoded, lists as tuples), or the default."""
        attribute = self.ir.attributes.get(name)
        if attribute is None:
            return default
        return tuple(attribute.value) if isinstance(attribute.value, list | tuple) else attribute.value

    def peek(self, position: int) -> np.ndarray | None:
        """The constant at an input, which stays an input of the call."""
        if not self.has(position):
            return None
        return self.constants.get(str(self.ir.inputs[position].name))  # type: ignore[union-attr]

    def constant(self, position: int) -> np.ndarray | None:
        """The constant at an input, which from now on belongs to the call; None if absent.

        Raises:
            UnsupportedError: The input is computed by the graph.
        """
        if not self.has(position):
            return None
        value = self.peek(position)
        if value is None:
            raise UnsupportedError(f"{self.kind} {self.ir.name!r}: input {position} must be a constant")
        self.baked.add(position)
        return value

    def ints(self, position: int, attribute: str = "") -> Ints | None:
        """Integers given as an input (constant or computed) or, in older operator sets, as an attribute."""
        if attribute and self.attr(attribute) is not None:
            fixed = self.attr(attribute)
            listed = [int(v) for v in (fixed if isinstance(fixed, tuple) else (fixed,))]
            return lambda _: listed
        if not self.has(position):
            return None
        if self.peek(position) is None:
            return lambda args: args[position].reshape(-1).tolist()
        known = [int(v) for v in np.ravel(self.constant(position))]  # type: ignore[arg-type]
        return lambda _: known

    def scalar(self, position: int, attribute: str, default: float | None) -> float | None:
        """One number given as a constant input or, in older operator sets, as an attribute."""
        value = self.constant(position)
        if value is not None:
            return float(value.reshape(-1)[0])
        return self.attr(attribute, default)

    def refuse(self, what: str) -> UnsupportedError:
        """The error to raise for a use of the operator that is not covered."""
        return UnsupportedError(f"{self.kind} {self.ir.name!r}: {what}")


DTYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


def torch_dtype(node: Node, code: int) -> torch.dtype:
    """The torch dtype of an ONNX one; raises UnsupportedError when there is none."""
    found = DTYPES.get(ir.DataType(code))
    if found is None:
        raise node.refuse(f"dtype {ir.DataType(code).name} is not known to torch")
    return found
