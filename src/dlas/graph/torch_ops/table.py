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
Number = Callable[[tuple[Any, ...]], Any]  # the call's inputs -> number, tensor of no dimensions, or None

BUILDERS: dict[str, Builder] = {}


def op(*types: str, domain: str = "") -> Callable[[Builder], Builder]:
    """Enter a builder for these operator types of a domain (the default one is the empty text)."""

    def enter(builder: Builder) -> Builder:
        for kind in types:
            BUILDERS[f"{domain}.{kind}" if domain else kind] = builder
        return builder

    return enter


def key(node: ir.Node) -> str:
    """The name of a node's operator in the table: ``Conv``, ``com.microsoft.QGemm``."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


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

    def wants(self, position: int) -> bool:
        """Whether the output is named, so that something may read it."""
        return position < self.outputs and bool(self.ir.outputs[position].name)

    def dtype(self, position: int) -> ir.DataType | None:
        """The declared dtype of an input, where it is known."""
        return self.ir.inputs[position].dtype if self.has(position) else None  # type: ignore[union-attr]

    def rank(self, position: int) -> int | None:
        """The number of dimensions of an input, where it is known."""
        known = self.peek(position)
        if known is not None:
            return known.ndim
        shape = self.ir.inputs[position].shape if self.has(position) else None  # type: ignore[union-attr]
        return None if shape is None else len(shape)

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
            return lambda args: args[position].reshape(-1).long().tolist()
        known = [int(v) for v in np.ravel(self.constant(position))]  # type: ignore[arg-type]
        return lambda _: known

    def number(self, position: int, attribute: str, default: float | None) -> Number:
        """One number given as an input (constant or computed) or, in older operator sets, as an attribute."""
        if self.has(position) and self.peek(position) is None:
            return lambda args: args[position].reshape(())
        value = self.constant(position)
        if value is not None:
            fixed = value.reshape(-1)[0].item() if value.dtype.kind in "iub" else float(value.reshape(-1)[0])
        else:
            fixed = self.attr(attribute, default)
        return lambda _: fixed

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
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.BOOL: torch.bool,
}
NARROW: dict[ir.DataType, torch.dtype] = {  # held one per byte
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
}
_HELD = {"int2": np.int8, "uint2": np.uint8, "int4": np.int8, "uint4": np.uint8}


def held(array: np.ndarray, name: str = "") -> torch.Tensor:
    """A tensor of its own with the numbers of an array; integers of 2 and 4 bits are held one per byte.

    Raises:
        UnsupportedError: Torch does not know the dtype.
    """
    kind = str(array.dtype)
    if kind in _HELD:
        array = array.astype(_HELD[kind])
    if kind == "bfloat16":
        return torch.from_numpy(np.array(array.view(np.int16))).view(torch.bfloat16)
    if array.dtype.kind not in "fiub" or array.dtype == np.uint64:
        raise UnsupportedError(f"the dtype {array.dtype} of the constant {name!r} is not known to torch")
    return torch.from_numpy(np.array(array))


def torch_dtype(node: Node, code: int) -> torch.dtype:
    """The torch dtype of an ONNX one; raises UnsupportedError when there is none."""
    found = DTYPES.get(ir.DataType(code))
    if found is None:
        raise node.refuse(f"dtype {ir.DataType(code).name} is not known to torch")
    return found
