"""What is done for dtypes that torch stores but does not compute with."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from dlas.graph.torch_ops.table import DTYPES, NARROW, Call, Node

_WIDE = (ir.DataType.UINT16, ir.DataType.UINT32)  # exact in 64 bits, where torch computes


def checked(node: Node, call: Call) -> Call:
    """The call, with unsigned integers widened around it where torch cannot compute with them.

    Raises:
        UnsupportedError: A value of the node is no tensor, or of a dtype that torch does not know.
    """
    values = [v for v in (*node.ir.inputs, *node.ir.outputs) if v is not None and v.dtype is not None]
    for value in values:
        if not isinstance(value.type, ir.TensorType) and value.type is not None:
            raise node.refuse(f"{value.name!r} is not a tensor")
        if value.dtype not in DTYPES and value.dtype not in NARROW:
            raise node.refuse(f"dtype {value.dtype.name} is not known to torch")  # type: ignore[union-attr]
    if node.kind == "BitCast" or not any(v.dtype in _WIDE for v in values):
        return call
    kinds = [None if v.dtype is None else DTYPES.get(v.dtype) for v in node.ir.outputs]

    def widened(*args: Any) -> Any:
        result = call(*(_widen(a) for a in args))
        made = result if type(result) is tuple else (result,)
        made = tuple(_narrow(y, kind) for y, kind in zip(made, kinds, strict=False))
        return made if type(result) is tuple else made[0]

    return widened


def _widen(x: Any) -> Any:
    return x.to(torch.int64) if isinstance(x, Tensor) and x.dtype in (torch.uint16, torch.uint32) else x


def _narrow(y: Any, kind: torch.dtype | None) -> Any:
    whole = isinstance(y, Tensor) and not y.is_floating_point()
    return y.to(kind) if whole and kind in (torch.uint16, torch.uint32) else y
