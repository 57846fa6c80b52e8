"""Uniform integer grids and QuantizeLinear/DequantizeLinear nodes in an onnx-ir graph.

A grid maps a float x to ``q = clip(round(x / scale) + zero_point)`` and back to ``(q - zero_point) * scale``; rounding
is half to even, as ONNX QuantizeLinear defines it. Activations use the whole of int8 with a zero point, weights the
narrow range -127..127 around 0, as TFLite's 8-bit quantisation specification asks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.errors import ModelError

# Products of two floors stay above the smallest normal float32, so that a bias scale is never zero or denormal.
_TINY_ACTIVATION = 2.0**-60
_TINY_WEIGHT = 2.0**-60
_BIAS_LIMIT = 2**30  # half of int32: the other half is left to the sum of products


@dataclass(frozen=True)
class Grid:
    """An int8 grid.

    Attributes:
        scale: ``() float32``, or ``(channels,) float32`` along ``axis``.
        zero_point: int8 array of the same shape.
        axis: Channel axis, or None for one scale.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None = None

    @classmethod
    def of(cls, scale: float, zero_point: int) -> Grid:
        """A grid with one scale."""
        return cls(np.asarray(scale, np.float32), np.asarray(zero_point, np.int8))

    def quantize(self, values: np.ndarray, lowest: int = -128) -> np.ndarray:
        """Codes of ``values`` (int8, same shape), saturated to ``lowest``..127."""
        scale, zero = self._spread(values.ndim)
        codes = np.rint(values.astype(np.float32) / scale) + zero
        return np.clip(codes, lowest, 127).astype(np.int8)

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """Values of ``codes`` (float32, same shape)."""
        scale, zero = self._spread(codes.ndim)
        return ((codes.astype(np.int32) - zero).astype(np.float32) * scale).astype(np.float32)

    def _spread(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        zero = self.zero_point.astype(np.int32)
        if self.axis is None:
            return self.scale, zero
        shape = [1] * rank
        shape[self.axis] = -1
        return self.scale.reshape(shape), zero.reshape(shape)


def activation_grid(low: float, high: float) -> Grid:
    """Asymmetric int8 grid over ``low``..``high``, extended to hold 0.

    The largest representable value never exceeds the range by more than half a step; where the range starts or ends
    at 0 it fits exactly, which lets a run time fold a ReLU or a clip into the saturation.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if high - low < _TINY_ACTIVATION * 255:
        return Grid.of(1.0 / 255.0, -128)  # a tensor that is always 0
    scale = np.float32((high - low) / 255.0)
    while np.float32(255.0) * scale > high - low:
        scale = np.nextafter(scale, np.float32(0))
    zero = int(np.clip(np.rint(-128.0 - low / float(scale)), -128, 127))
    return Grid.of(float(scale), zero)


def weight_grid(
    weight: np.ndarray,
    axis: int | None,
    *,
    bias: np.ndarray | None = None,
    input_scale: float = 1.0,
    top: np.ndarray | float = 127.0,
    name: str = "weight",
) -> Grid:
    """Symmetric narrow-range int8 grid, scale = max |w| / ``top`` along ``axis``.

    A channel without weights takes the largest scale of the tensor: its codes are 0 at any scale, and its bias is then
    as fine as that of the others. A channel whose bias would leave int32 is given a larger scale.

    Args:
        weight: Any shape, float32.
        axis: Output-channel axis, or None for one scale.
        bias: ``(channels,) float32`` that will be stored as int32 with scale ``input_scale * scale``; its length is a
            multiple of the number of scales (groups of a transposed convolution share theirs).
        input_scale: Scale of the layer's input.
        top: Code of the largest weight, one or ``(channels,)``: less than 127 where weights are on fewer levels.
        name: Tensor named in errors.

    Raises:
        ModelError: A weight or bias is not finite.
    """
    for label, array in ((name, weight), (f"bias of {name}", bias)):
        if array is not None and not np.isfinite(array).all():
            raise ModelError(
                f"{label} holds NaN or infinity", "mend or retrain the network before quantising it"
            )
    if axis is None:
        peak = np.abs(weight).max(initial=0.0).reshape(1).astype(np.float64)
    else:
        others = tuple(i for i in range(weight.ndim) if i != axis)
        peak = np.abs(weight).max(axis=others, initial=0.0).astype(np.float64)
    scale = peak / top
    floor = max(_TINY_WEIGHT, float(scale.max(initial=0.0)) * 2.0**-24)
    dead = scale < floor
    scale[dead] = scale.max(initial=0.0) if (~dead).any() else 1.0 / 127.0
    if bias is not None:
        reach = np.abs(bias.astype(np.float64))
        reach = reach.max(keepdims=True) if axis is None else reach.reshape(-1, len(scale)).max(axis=0)
        scale = np.maximum(scale, reach / (_BIAS_LIMIT * float(input_scale)))
    scale = scale.astype(np.float32)
    if axis is None:
        return Grid(scale.reshape(()), np.zeros((), np.int8))
    return Grid(scale, np.zeros(len(scale), np.int8), axis)


def bias_codes(bias: np.ndarray, input_scale: np.ndarray, weight: Grid) -> tuple[np.ndarray, np.ndarray]:
    """``(codes int32, scale float32)`` of a bias on the grid of the accumulator, scale = input scale * weight scale."""
    scale = (np.float32(input_scale) * weight.scale).astype(np.float32)
    if scale.ndim and len(scale) != len(bias):
        scale = np.tile(scale, len(bias) // len(scale))
    codes = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    return np.clip(codes, -(2**31), 2**31 - 1).astype(np.int32), scale


class QdqWriter:
    """Adds Q and DQ nodes to one graph; names follow the tensor: ``x_quantized``, ``x_dequantized``, ``x_scale``."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._taken = {v.name for v in graph.inputs} | set(graph.initializers)
        for node in graph.all_nodes():
            self._taken |= {v.name for v in node.outputs} | {node.name}
        self._constants: dict[tuple[str, str, bytes], ir.Value] = {}

    def name(self, wanted: str) -> str:
        """``wanted``, or with a number appended when it is taken."""
        found, count = wanted, 1
        while found in self._taken:
            count += 1
            found = f"{wanted}_{count}"
        self._taken.add(found)
        return found

    def constant(self, array: np.ndarray, wanted: str) -> ir.Value:
        """An initializer holding ``array``; the same content asked for under the same name is stored once."""
        array = np.asarray(array)
        key = (wanted, str((array.dtype, array.shape)), array.tobytes())
        if key not in self._constants:
            tensor = ir.tensor(array, name=self.name(wanted))
            value = ir.Value(
                name=tensor.name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def parameters(self, grid: Grid, name: str) -> tuple[ir.Value, ir.Value]:
        """Initializers for scale and zero point."""
        return self.constant(grid.scale, f"{name}_scale"), self.constant(
            grid.zero_point, f"{name}_zero_point"
        )

    def quantize(self, value: ir.Value, grid: Grid, name: str) -> ir.Node:
        """A QuantizeLinear node reading ``value``, not yet placed."""
        return self._node(
            "QuantizeLinear", value, grid, name, f"{name}_quantized", ir.DataType.INT8, value.shape
        )

    def dequantize(self, value: ir.Value, grid: Grid, name: str) -> ir.Node:
        """A DequantizeLinear node reading ``value``, not yet placed."""
        return self._node(
            "DequantizeLinear", value, grid, name, f"{name}_dequantized", ir.DataType.FLOAT, value.shape
        )

    def dequantized_constant(self, codes: np.ndarray, grid: Grid, name: str) -> ir.Node:
        """A DequantizeLinear node over stored ``codes``; the codes are stored once however often this is called."""
        return self.dequantize(self.constant(codes, f"{name}_quantized"), grid, name)

    def dequantized_bias(self, codes: np.ndarray, scale: np.ndarray, name: str) -> ir.Node:
        """A DequantizeLinear node over an int32 bias."""
        grid = Grid(scale, np.zeros(scale.shape, np.int32), 0 if scale.ndim else None)
        return self.dequantized_constant(codes, grid, name)

    def _node(
        self,
        op: str,
        value: ir.Value,
        grid: Grid,
        name: str,
        result: str,
        dtype: ir.DataType,
        shape: ir.Shape | None,
    ) -> ir.Node:
        scale, zero = self.parameters(grid, name)
        attributes = {} if grid.axis is None else {"axis": grid.axis}
        result = self.name(result)
        output = ir.Value(name=result, shape=shape, type=ir.TensorType(dtype))
        return ir.node(
            op, [value, scale, zero], attributes, outputs=[output], name=self.name(f"{result}_node")
        )
