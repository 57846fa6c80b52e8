"""How the inputs and outputs of two networks relate: layouts and integer encodings at the interface."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from dlas.core.errors import ShapeError
from dlas.graph.model import Model, TensorSpec
from dlas.graph.preprocessing import Preprocessing


def input_quantisation(model: Model, index: int = 0) -> tuple[float, int] | None:
    """Scale and zero point of an integer input, read off the DequantizeLinear that consumes it."""
    value = next((v for v in model.ir.graph.inputs if v.name == model.inputs[index].name), None)
    for node, _ in value.uses() if value is not None else ():
        if node.op_type == "DequantizeLinear":
            return _constants(node.inputs[1:])
    return None


def output_quantisation(model: Model, index: int = 0) -> tuple[float, int] | None:
    """Scale and zero point of an integer output, read off the QuantizeLinear that produces it."""
    node = model.ir.graph.outputs[index].producer()
    return encoding_of(node) if node is not None and node.op_type == "QuantizeLinear" else None


def encoding_of(node: ir.Node) -> tuple[float, int] | None:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear per tensor; None if they are no constants."""
    return _constants(node.inputs[1:])


def to_real(scores: np.ndarray, model: Model, index: int = 0) -> np.ndarray:
    """Integers of output ``index`` decoded to float32 by the network's own output quantisation; floats as they are."""
    if not np.issubdtype(scores.dtype, np.integer):
        return scores.astype(np.float32)
    known = output_quantisation(model, index)
    if known is None:
        return scores.astype(np.float32)
    scale, zero_point = known
    return (scores.astype(np.float32) - zero_point) * np.float32(scale)


def random_array(shape: Sequence[int], dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Numbers to feed a network that comes without data, ``shape`` in ``dtype``.

    Standard normal for floats; every code for 8-bit integers, which stand for quantised values; 0 to 99 for wider
    ones, which are mostly indices; both truth values.
    """
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return rng.integers(0, 2, shape).astype(kind)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        low, high = (limits.min, limits.max) if kind.itemsize == 1 else (0, 99)
        return rng.integers(low, high, shape, kind, endpoint=True)
    return rng.standard_normal(shape).astype(kind)


def layout_of(spec: TensorSpec) -> str:
    """``NCHW`` or ``NHWC`` for a four-dimensional input by where the few channels stand, else ``N*``."""
    if len(spec.shape) != 4:
        return "N*"
    sizes = [d if isinstance(d, int) else 0 for d in spec.shape]
    return "NHWC" if sizes[3] in (1, 3, 4) and sizes[1] not in (1, 3, 4) else "NCHW"


def adapted(preprocessing: Preprocessing, model: Model) -> Preprocessing:
    """The same preparation of a sample, delivered in the layout, size and dtype that ``model`` takes."""
    spec = model.inputs[0]
    layout = layout_of(spec)
    changes: dict[str, object] = {"dtype": spec.dtype, "layout": layout}
    if layout != "N*":
        axes = (2, 3) if layout == "NCHW" else (1, 2)
        changes["height"], changes["width"] = (int(spec.shape[a]) for a in axes)
    known = input_quantisation(model)
    if known is not None and spec.dtype in ("int8", "uint8"):
        changes["quant_scale"], changes["quant_zero_point"] = known
    return replace(preprocessing, **changes)


def adapt_rows(x: np.ndarray, model: Model, index: int = 0) -> np.ndarray:
    """Rows prepared for one network, brought to input ``index`` of another: axes permuted, float quantised.

    Raises:
        ShapeError: No permutation of the axes fits, or the dtypes cannot be bridged.
    """
    spec = model.inputs[index]
    wanted = spec.bound(1)[1:]
    if x.shape[1:] != wanted:
        for order in itertools.permutations(range(1, x.ndim)):
            if tuple(x.shape[a] for a in order) == wanted:
                x = x.transpose(0, *order)
                break
        else:
            raise ShapeError(
                f"rows of shape {list(x.shape[1:])} do not fit input {spec.name!r} of shape {list(wanted)}",
                "compare networks of the same input size",
            )
    if x.dtype.name == spec.dtype:
        return np.ascontiguousarray(x)
    known = input_quantisation(model, index)
    if spec.dtype in ("int8", "uint8") and known is not None and np.issubdtype(x.dtype, np.floating):
        scale, zero_point = known
        info = np.iinfo(spec.dtype)
        q = np.clip(np.round(x / np.float32(scale)) + zero_point, info.min, info.max)
        return np.ascontiguousarray(q.astype(spec.dtype))
    if np.issubdtype(x.dtype, np.floating) and np.issubdtype(np.dtype(spec.dtype), np.floating):
        return np.ascontiguousarray(x.astype(spec.dtype))
    raise ShapeError(
        f"rows of dtype {x.dtype.name} cannot be given to input {spec.name!r} of dtype {spec.dtype}"
    )


def clipped_share(x: np.ndarray, model: Model) -> tuple[float, float, float]:
    """Share of the float rows ``x`` that an integer input saturates, and the range it holds.

    Returns:
        Share, lowest and highest value; ``(0, -inf, inf)`` for rows or inputs that are not quantised on the way in.
    """
    dtype, known = model.inputs[0].dtype, input_quantisation(model)
    if dtype not in ("int8", "uint8") or known is None or not np.issubdtype(x.dtype, np.floating):
        return 0.0, -np.inf, np.inf
    scale, zero_point = known
    info = np.iinfo(dtype)
    low, high = (info.min - zero_point) * scale, (info.max - zero_point) * scale
    outside = (x < low - scale / 2) | (x > high + scale / 2)
    return float(outside.mean()), low, high


def _constants(values: object) -> tuple[float, int] | None:
    found = [v.const_value.numpy() for v in values if v is not None and v.const_value is not None]  # type: ignore[attr-defined]
    if not found or found[0].size != 1:
        return None
    return float(found[0].reshape(())), int(found[1].reshape(())) if len(found) > 1 else 0
