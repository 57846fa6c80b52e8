"""Which levels weights lie on: from int8 weights back to the codes they were made of.

An 8-bit network that was trained on few levels stores each level times a scale, rounded: sums of powers of two become
0, 13, 25 ... 127. A channel is on a grid when one factor per channel explains every weight to half a code. The factor
is looked for, not assumed: channels that use no largest level, and channels without any weight but rounding dust, have
others than 127 over the largest level, and halves are rounded either way by the tools that write such files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from dlas.core.errors import OptionError, UnsupportedError
from dlas.graph.model import Model
from dlas.kernels.formats.grid import Grid
from dlas.kernels.formats.grids import by_name

METHODS = ("apot", "msq", "po2", "int4")
_HALF = 0.5
_NARROW = 63  # codes up to here are no 127ths
_TASTE = 16  # filters of a layer that tell the method
_CLOSE = 1e-4  # relative, of weights that are floats
_LAYERS = {"Conv": 0, "Gemm": 1, "MatMul": 1}  # axis of the output channels; a Gemm may say otherwise


@dataclass(frozen=True)
class Fit:
    """Channels on a grid, as well as they can be.

    Attributes:
        integers: ``(channels, weights) int64``: nearest levels with the best factor.
        factor: ``(channels,) float64``: what one integer is worth; 0 for a channel that is all zero.
        top: ``(channels,) int64``: integer of the largest weight.
        distance: ``(channels,) float64``: farthest weight from its level, in the unit of the weights.
        fits: ``(channels,) bool``: whether all weights are explained.
    """

    integers: np.ndarray
    factor: np.ndarray
    top: np.ndarray
    distance: np.ndarray
    fits: np.ndarray


def fit(rows: np.ndarray, grid: Grid, slack: np.ndarray | float = _HALF) -> Fit:
    """Find the factor of each row; of several, that under which the largest weight is the highest level.

    Args:
        rows: ``(channels, weights)``.
        grid: Levels.
        slack: How far a weight may be off, one or one per row.
    """
    size = np.abs(rows).astype(np.float64)
    largest = size.max(axis=1, initial=0.0)
    slack = np.broadcast_to(np.asarray(slack, np.float64), largest.shape)
    count = len(rows)
    best = Fit(
        np.zeros(rows.shape, np.int64), np.zeros(count), np.zeros(count, np.int64),
        np.full(count, np.inf), largest == 0,
    )  # fmt: skip
    best.distance[best.fits] = 0.0
    for top in grid.magnitudes[::-1]:
        left = np.flatnonzero(~best.fits)
        if top == 0 or not left.size:
            break
        part, unit = size[left], largest[left] / top
        levels = grid.magnitudes[_nearest(part / unit[:, None], grid.magnitudes)]
        shown = np.maximum(levels, 1)
        near = slack[left, None]
        low = np.where(levels > 0, (part - near) / shown, 0.0).max(axis=1)
        high = np.where(levels > 0, (part + near) / shown, np.inf).min(axis=1)
        fits = (low <= high * (1 + 1e-9)) & np.all((levels > 0) | (part <= near), axis=1)
        factor = np.where(fits, np.clip(unit, low, high), unit)
        distance = np.abs(levels * factor[:, None] - part).max(axis=1)
        better = fits | (distance < best.distance[left])
        at = left[better]
        best.integers[at] = (np.sign(rows[at]) * levels[better]).astype(np.int64)
        best.factor[at], best.top[at] = factor[better], top
        best.distance[at], best.fits[at] = distance[better], fits[better]
    return best


def tops(weight: np.ndarray, axis: int | None, grid: Grid) -> np.ndarray | float:
    """Integer of the largest weight of each channel where all float weights of a layer are on ``grid``; else 127."""
    rows = (
        weight.reshape(1, -1)
        if axis is None
        else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    )
    largest = np.abs(rows).max(axis=1, initial=0.0).astype(np.float64)
    found = fit(rows, grid, _CLOSE * largest)
    if grid.top > 127 or not found.fits.all() or not largest.any():
        return 127.0
    return np.maximum(found.top, 1) if axis is not None else float(found.top[0])


def _nearest(x: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    return np.searchsorted((magnitudes[1:] + magnitudes[:-1]) / 2, x, side="right")


@dataclass(frozen=True, eq=False)
class RecoveredLayer:
    """A layer whose weights are on a grid.

    Attributes:
        name: Of the node.
        op: Its operator.
        codes: Code of each weight, in the shape of the weight, uint8.
        integers: What the codes stand for, int8 or int16.
        axis: Axis of the output channels.
        scale: ``(channels,) float32``: value of integer 1.
        factor: ``(channels,) float64``: how many int8 codes integer 1 is; an int32 bias is divided by it.
        distance: Farthest int8 weight from what the integers explain, in codes; at most one half.
    """

    name: str
    op: str
    codes: np.ndarray
    integers: np.ndarray
    axis: int
    scale: np.ndarray
    factor: np.ndarray
    distance: float

    def matrix(self) -> np.ndarray:
        """Codes as ``(channels, depth)``, the input channels innermost, as accelerators and TFLite order them."""
        first = np.moveaxis(self.codes, self.axis, 0)
        return (np.moveaxis(first, 1, -1) if first.ndim > 2 else first).reshape(len(first), -1)

    def bias(self, codes: np.ndarray) -> np.ndarray:
        """An int32 bias, ``(channels,)``, in units of the integers instead of the int8 codes; halves to even."""
        factor = np.where(self.factor > 0, self.factor, 1.0)
        return np.rint(codes / factor).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Recovery:
    """A network on the levels of one method.

    Attributes:
        method: ``apot``, ``msq``, ``po2`` or ``int4``.
        grid: Its levels.
        layers: Those on them.
        eight_bit: Names of the layers that are not: the first convolution, depthwise ones, the last layer.
    """

    method: str
    grid: Grid
    layers: tuple[RecoveredLayer, ...]
    eight_bit: tuple[str, ...]

    @property
    def filters(self) -> int:
        """Output channels on the levels."""
        return sum(len(layer.scale) for layer in self.layers)


@dataclass(frozen=True, eq=False)
class _Stored:
    """An int8 weight in the graph; ``codes`` are counted from the zero point."""

    name: str
    op: str
    codes: np.ndarray
    scale: np.ndarray
    axis: int
    depthwise: bool

    def rows(self) -> np.ndarray:
        return np.moveaxis(self.codes, self.axis, 0).reshape(self.codes.shape[self.axis], -1).astype(np.int64)


def recover(model: Model, method: str = "") -> Recovery:
    """The codes that an int8 network (QDQ form, as TFLite files are read) was made of.

    The first convolution, depthwise convolutions and the last layer may hold 8-bit weights; where they are on the
    levels too, they are recovered as well.

    Args:
        model: The network.
        method: One of :data:`METHODS`; empty finds out.

    Raises:
        UnsupportedError: Its weights are not int8, or a layer is not on the levels; names the layer, the number of
            its filters that are off, and by how much.
        OptionError: No such method.
    """
    if method and method not in METHODS:
        raise OptionError("method", method, "one of " + ", ".join(METHODS))
    stored = _int8_weights(model)
    if not stored:
        raise UnsupportedError(
            f"{model.name} has no layer with int8 weights", "quantise it first, or load its int8 TFLite file"
        )
    candidates = [method] if method else METHODS
    scores = {name: _score(stored, by_name(name)) for name in candidates}
    chosen = max(scores, key=lambda name: scores[name])  # the first of several
    return _checked(model, stored, chosen, [_fit_codes(layer.rows(), by_name(chosen)) for layer in stored])


def _score(stored: list[_Stored], grid: Grid) -> int:
    """How many of the first filters of all layers are on the grid."""
    return sum(int(_fit_codes(layer.rows()[:_TASTE], grid).fits.sum()) for layer in stored)


def _fit_codes(rows: np.ndarray, grid: Grid) -> Fit:
    """Int8 codes that are the integers of the levels, or 127ths: half a code says little about codes up to 10."""
    if np.isin(np.abs(rows), [0, *grid.magnitudes]).all() and not _wide(rows):
        count = len(rows)
        largest = np.abs(rows).max(axis=1, initial=0)
        unit = (largest > 0).astype(np.float64)
        return Fit(
            rows, unit, largest, np.zeros(count), np.isin(rows, grid.integers).all(axis=1) | (largest == 0)
        )
    found = fit(rows, grid)
    return found if _wide(rows) else replace(found, fits=np.zeros(len(rows), bool))


def _wide(rows: np.ndarray) -> bool:
    return bool(np.abs(rows).max(initial=0) > _NARROW)


def _checked(model: Model, stored: list[_Stored], method: str, fits: list[Fit]) -> Recovery:
    grid = by_name(method)
    first = next((layer for layer in stored if layer.op == "Conv"), None)
    layers: list[RecoveredLayer] = []
    eight_bit: list[str] = []
    for layer, found in zip(stored, fits, strict=True):
        if found.fits.all():
            layers.append(_recovered(layer, found, grid))
        elif layer.depthwise or layer is first or layer is stored[-1]:
            eight_bit.append(layer.name)
        else:
            off = ~found.fits
            raise UnsupportedError(
                f"{model.name} is no {method} network: layer {layer.name!r} has {int(off.sum())} of {len(off)} filters "
                f"off the levels, the nearest by {found.distance[off].min():.2g} codes (accepted: 0.5)",
                "`dlas compress MODEL apot` (or po2, msq) makes such networks",
            )
    if not layers:
        raise UnsupportedError(
            f"{model.name} is no {method} network: none of its {len(stored)} int8 layers is on the levels",
            "`dlas compress MODEL apot` (or po2, msq) makes such networks",
        )
    return Recovery(method, grid, tuple(layers), tuple(eight_bit))


def _recovered(layer: _Stored, found: Fit, grid: Grid) -> RecoveredLayer:
    integers = found.integers
    if not grid.has_zero:  # a channel that is all zero: any level, times 0
        integers = np.where((found.factor == 0)[:, None], grid.magnitudes[0], integers)
    moved = np.moveaxis(layer.codes, layer.axis, 0)
    codes = np.moveaxis(grid.encode(integers).reshape(moved.shape), 0, layer.axis)
    scale = np.broadcast_to(layer.scale, found.factor.shape) * found.factor
    return RecoveredLayer(
        layer.name, layer.op, codes, grid.decode_integers(codes), layer.axis, scale.astype(np.float32),
        found.factor, float(found.distance.max(initial=0.0)),
    )  # fmt: skip


def _int8_weights(model: Model) -> list[_Stored]:
    found = []
    for node in model.ir.graph:
        source = node.inputs[1].producer() if node.op_type in _LAYERS and node.inputs[1] is not None else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        codes, scale = (_array(value) for value in source.inputs[:2])
        if codes is None or scale is None or codes.dtype != np.int8 or codes.ndim < 2:
            continue
        transposed = node.attributes.get("transB")
        axis = 0 if transposed is not None and transposed.value else _LAYERS[node.op_type]
        groups = node.attributes.get("group")
        depthwise = groups is not None and groups.value > 1 and codes.shape[1] == 1
        if scale.ndim and len(scale) not in (1, codes.shape[axis]):
            continue
        zero = _array(source.inputs[2]) if len(source.inputs) > 2 else None
        if zero is not None and zero.any():
            codes = codes - zero.astype(np.int64).reshape([-1 if a == axis else 1 for a in range(codes.ndim)])
        found.append(
            _Stored(
                str(node.name or node.outputs[0].name),
                node.op_type,
                codes,
                scale.reshape(-1),
                axis,
                depthwise,
            )
        )
    return found


def _array(value: ir.Value | None) -> np.ndarray | None:
    tensor = None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
