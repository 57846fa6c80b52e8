"""From float32 operators between DequantizeLinear and QuantizeLinear to operators on bytes.

An importer writes a quantised network with float32 operators between conversions. Here each such operator, with its
conversions and its activation, becomes one operator of the engine that computes in integers: ``QConv``,
``QDepthwise``, ``QConvTranspose``, ``QDense``, ``QAdd``, ``QMul``, ``QAveragePool``, ``QMaxPool``, ``QMean``,
``QSoftmax``, ``QTable`` and the moves of bytes ``QImage`` and ``QRows``. What is not recognised stays float32 between
``Dequantize`` and ``Quantize``.

The results are those of the chosen rounding, to the bit: ``double`` is LiteRT's reference kernels, ``single`` its
builds with one rounding, ``xnnpack`` what LiteRT runs unless told otherwise, ``onnx`` ONNX's QLinear operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dlas.core.errors import OptionError
from dlas.kernels.kernel import Node, Operand
from dlas.runtime.engine._quantized_factors import (
    FLOATS,
    ROUNDINGS,
    Grid,
    addition,
    bounds,
    exponentials,
    leaky_table,
    mean,
    product,
    requantization_table,
    tanh_table,
    weighted,
)
from dlas.runtime.engine._quantized_pads import fold_pads
from dlas.runtime.engine.network import Call, Network

_MOVES = {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Pad"}
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def lower_quantized(network: Network, rounding: str = "double") -> Network:
    """The same network with operators on bytes wherever that is possible.

    Args:
        network: As :func:`dlas.runtime.engine.lower.lower` makes it.
        rounding: ``double``, ``single``, ``xnnpack`` or ``onnx``.

    Raises:
        OptionError: There is no such rounding.
    """
    if rounding not in ROUNDINGS:
        raise OptionError("rounding", rounding, "one of " + ", ".join(ROUNDINGS))
    if not any(call.node.op == "QuantizeLinear" for call in network.calls):
        return network
    lowering = _Lowering(network, rounding)
    calls: list[Call] = []
    for call in network.calls:
        calls += lowering.lowered(call)
    return _without_dead(fold_pads(network.with_calls(calls)))


@dataclass(frozen=True)
class _Value:
    """A quantised value that a DequantizeLinear reads."""

    name: str
    operand: Operand
    grid: Grid


class _Lowering:
    def __init__(self, network: Network, rounding: str) -> None:
        self._calls = network.calls
        self._makers = network.makers
        self._rounding = rounding
        self._core: dict[
            str, Callable[[Call, Call, tuple[float | None, float | None]], list[Call] | None]
        ] = {
            "Conv": self._conv,
            "Gemm": self._dense,
            "MatMul": self._dense,
            "MaxPool": self._pool,
        }
        if rounding != "onnx":
            self._core |= {
                "Add": self._binary,
                "Mul": self._binary,
                "AveragePool": self._pool,
                "GlobalAveragePool": self._mean,
                "Softmax": self._softmax,
                "ConvTranspose": self._transposed,
            }
        if rounding not in FLOATS:
            self._core |= {"LeakyRelu": self._activation, "Tanh": self._activation}

    def lowered(self, call: Call) -> list[Call]:
        """What stands for a call of the network."""
        if call.node.op == "QuantizeLinear" and call.node.constant(0) is None:
            return self._quantize(call)
        if call.node.op == "DequantizeLinear" and call.node.constant(0) is None:
            grid = _grid(call.node, call.node.operand(0))
            if grid is not None:
                attributes = {"scale": grid.scale, "x_zero_point": grid.zero_point}
                node = Node("Dequantize", call.name, attributes, call.node.inputs[:1], call.node.outputs)
                return [Call(node, call.inputs[:1], call.outputs)]
        return [call]

    def _quantize(self, call: Call) -> list[Call]:
        grid = _grid(call.node, call.node.output)
        if grid is None:
            return [call]
        core, act = self._behind(call)
        found = None
        if core is not None:
            if core.node.op in self._core:
                found = self._core[core.node.op](core, call, act)
            elif act == (None, None) and core.node.op in _MOVES:
                found = self._move(core, call)
            if found is None:
                found = self._table(call)
        if found is not None:
            return found
        attributes = {"scale": grid.scale, "y_zero_point": grid.zero_point, "rounding": self._rounding}
        node = Node("Quantize", call.name, attributes, call.node.inputs[:1], call.node.outputs)
        return [Call(node, call.inputs[:1], call.outputs)]

    def _behind(self, call: Call) -> tuple[Call | None, tuple[float | None, float | None]]:
        """The operator whose result is quantised, and the bounds of the activation between."""
        maker = self._maker(call.inputs[0])
        act = (None, None) if maker is None else _bounds_of(maker.node)
        if maker is None or act is None:
            return maker, (None, None)
        before = self._maker(maker.inputs[0])
        if before is not None and before.node.op in self._core:
            return before, act
        return maker, (None, None)

    def _maker(self, name: str) -> Call | None:
        place = self._makers.get(name)
        return None if place is None else self._calls[place]

    def _value(self, name: str) -> _Value | None:
        maker = self._maker(name)
        if maker is None or maker.node.op != "DequantizeLinear":
            return None
        grid = _grid(maker.node, maker.node.operand(0))
        if grid is None:
            return None
        return _Value(maker.inputs[0], maker.node.operand(0), grid)

    # --- operators with weights --------------------------------------------------------------------

    def _conv(self, core: Call, call: Call, act: tuple[float | None, float | None]) -> list[Call] | None:
        x, node = self._value(core.inputs[0]), core.node
        if x is None or x.operand.constant is not None or len(x.operand.shape) != 4:
            return None
        constants = self._weights(core, x.grid, 0)
        if constants is None:
            return None
        weight, scales, bias = constants
        groups = int(node.attributes["group"])
        one_each = groups > 1 and weight.shape[1] == 1 and weight.shape[0] == groups
        window = {k: node.attributes[k] for k in ("kernel_shape", "strides", "dilations", "pads")}
        return self._weighted(
            "QDepthwise" if one_each else "QConv",
            core,
            call,
            x,
            (weight, scales, bias),
            act,
            window | {"group": groups},
        )

    def _transposed(
        self, core: Call, call: Call, act: tuple[float | None, float | None]
    ) -> list[Call] | None:
        x, a = self._value(core.inputs[0]), core.node.attributes
        if x is None or x.operand.constant is not None or len(x.operand.shape) != 4:
            return None
        constants = self._weights(core, x.grid, 1)
        if constants is None or a["group"] != 1 or any(d != 1 for d in a["dilations"]):
            return None
        window = {k: a[k] for k in ("kernel_shape", "strides", "dilations", "pads")}
        gaps = any(k < s for k, s in zip(a["kernel_shape"], a["strides"], strict=True))
        if gaps and self._rounding == "xnnpack":  # XNNPACK leaves such layers to kernels that round otherwise
            return None
        return self._weighted("QConvTranspose", core, call, x, constants, act, window | {"group": 1})

    def _dense(self, core: Call, call: Call, act: tuple[float | None, float | None]) -> list[Call] | None:
        node = core.node
        x = self._value(core.inputs[0])
        plain = not node.attributes.get("transA") and all(
            node.attributes.get(k, 1.0) == 1.0 for k in ("alpha", "beta")
        )
        if x is None or x.operand.constant is not None or len(x.operand.shape) != 2 or not plain:
            return None
        turned = bool(node.attributes.get("transB"))
        constants = self._weights(core, x.grid, 0 if turned else 1)
        if constants is None:
            return None
        weight, scales, bias = constants
        if not turned:
            weight = np.ascontiguousarray(weight.T)
        return self._weighted("QDense", core, call, x, (weight, scales, bias), act, {})

    def _weights(
        self, core: Call, grid: Grid, axis: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
        """Weights less their zero point (int8 or int16), their scales, and the bias as int32."""
        maker = self._maker(core.inputs[1])
        if maker is None or maker.node.op != "DequantizeLinear":
            return None
        stored, scale = maker.node.constant(0), maker.node.constant(1)
        if stored is None or scale is None or stored.dtype not in (np.int8, np.uint8) or stored.ndim < 2:
            return None
        if scale.size > 1 and maker.node.attributes.get("axis", 1) % stored.ndim != axis:
            return None
        zero = maker.node.constant(2) if len(maker.inputs) > 2 else None
        shape = [-1 if a == axis else 1 for a in range(stored.ndim)]
        centred = stored.astype(np.int16)
        if zero is not None:
            centred = centred - zero.astype(np.int16).reshape(shape if zero.size > 1 else [1] * stored.ndim)
        fits = centred.min(initial=0) >= -128 and centred.max(initial=0) <= 127
        weight = centred.astype(np.int8) if fits else centred
        scales = np.asarray(scale, np.float32).reshape(-1)
        if len(core.inputs) < 3 or not core.inputs[2]:
            return weight, scales, None
        maker = self._maker(core.inputs[2])
        if maker is None or maker.node.op != "DequantizeLinear":
            return None
        bias, step = maker.node.constant(0), maker.node.constant(1)
        expected = np.float32(grid.scale) * scales
        if bias is None or bias.dtype != np.int32 or step is None or bias.ndim != 1:
            return None
        if not np.allclose(np.asarray(step, np.float32).reshape(-1), expected, rtol=1e-3, atol=0):
            return None
        return weight, scales, bias

    def _weighted(
        self,
        op: str,
        core: Call,
        call: Call,
        x: _Value,
        constants: tuple[np.ndarray, np.ndarray, np.ndarray | None],
        act: tuple[float | None, float | None],
        attributes: dict,
    ) -> list[Call] | None:
        weight, scales, bias = constants
        y = _output_grid(call)
        more, factors = weighted(op, x.grid, scales, y, self._rounding)
        attributes = attributes | self._common(x.grid, y, act) | more
        inputs = [x.operand, Operand.of(weight), None if bias is None else Operand.of(bias)]
        names = [x.name, f"{core.name}/weight", "" if bias is None else f"{core.name}/bias"]
        if factors is not None:
            inputs.append(Operand.of(factors))
            names.append(f"{core.name}/scales")
        node = Node(op, core.name, attributes, tuple(inputs), call.node.outputs)
        return [Call(node, tuple(names), call.outputs)]

    def _common(self, x: Grid, y: Grid, act: tuple[float | None, float | None]) -> dict:
        low, high = bounds(y, act, self._rounding)
        return {
            "x_zero_point": x.zero_point,
            "y_zero_point": y.zero_point,
            "act_min": low,
            "act_max": high,
            "rounding": self._rounding,
        }

    # --- operators without weights -----------------------------------------------------------------

    def _binary(self, core: Call, call: Call, act: tuple[float | None, float | None]) -> list[Call] | None:
        a, b = self._value(core.inputs[0]), self._value(core.inputs[1])
        if a is None or b is None or a.operand.constant is not None or b.operand.constant is not None:
            return None
        if a.operand.shape != call.node.output.shape:
            a, b = b, a
        shape = call.node.output.shape
        pixel = (*shape[:2], 1, 1) if len(shape) == 4 else shape
        if a.operand.shape != shape or b.operand.shape not in (shape, pixel):
            return None
        y = _output_grid(call)
        op = "QAdd" if core.node.op == "Add" else "QMul"
        factors = (addition if op == "QAdd" else product)(a.grid, b.grid, y, self._rounding)
        if factors is None:
            return None
        attributes = self._common(a.grid, y, act) | factors
        attributes |= {"a_zero_point": a.grid.zero_point, "b_zero_point": b.grid.zero_point}
        node = Node(op, core.name, attributes, (a.operand, b.operand), call.node.outputs)
        return [Call(node, (a.name, b.name), call.outputs)]

    def _pool(self, core: Call, call: Call, act: tuple[float | None, float | None]) -> list[Call] | None:
        x, y, node = self._value(core.inputs[0]), _output_grid(call), core.node
        if x is None or x.grid != y or x.operand.constant is not None or len(x.operand.shape) != 4:
            return None
        attributes = {k: node.attributes[k] for k in ("kernel_shape", "strides", "dilations", "pads")}
        counts_padding = node.attributes.get("count_include_pad") and any(attributes["pads"])
        if any(d != 1 for d in attributes["dilations"]) or counts_padding or len(core.outputs) > 1:
            return None
        attributes |= self._common(x.grid, y, act)
        return [
            Call(
                Node("Q" + node.op, core.name, attributes, (x.operand,), call.node.outputs),
                (x.name,),
                call.outputs,
            )
        ]

    def _mean(self, core: Call, call: Call, act: tuple[float | None, float | None]) -> list[Call] | None:
        x, y = self._value(core.inputs[0]), _output_grid(call)
        if x is None or act != (None, None) or len(x.operand.shape) != 4 or x.operand.constant is not None:
            return None
        attributes = self._common(x.grid, y, act) | mean(
            x.grid, y, x.operand.shape[2] * x.operand.shape[3], self._rounding
        )
        return [
            Call(
                Node("QMean", core.name, attributes, (x.operand,), call.node.outputs), (x.name,), call.outputs
            )
        ]

    def _softmax(self, core: Call, call: Call, act: tuple[float | None, float | None]) -> list[Call] | None:
        x, y = self._value(core.inputs[0]), _output_grid(call)
        if x is None or x.operand.constant is not None:
            return None
        rank = len(x.operand.shape)
        if core.node.attributes.get("axis", -1) % rank != rank - 1 or act != (None, None):
            return None
        if y.scale != 1 / 256 or y.zero_point != np.iinfo(y.dtype).min or rank == 4:
            return None
        table = Operand.of(exponentials(x.grid, self._rounding))
        node = Node("QSoftmax", core.name, {}, (x.operand, table), call.node.outputs)
        return [Call(node, (x.name, f"{core.name}/exponentials"), call.outputs)]

    def _activation(
        self, core: Call, call: Call, act: tuple[float | None, float | None]
    ) -> list[Call] | None:
        """A curved activation: a table of all 256 values."""
        x = self._value(core.inputs[0])
        if x is None or x.operand.constant is not None or act != (None, None):
            return None
        y = _output_grid(call)
        if core.node.op == "Tanh":
            found = tanh_table(x.grid, y)
        else:
            found = leaky_table(x.grid, y, float(core.node.attributes.get("alpha", 0.01)), self._rounding)
        attributes = {"x_zero_point": x.grid.zero_point}
        node = Node("QTable", core.name, attributes, (x.operand, Operand.of(found)), call.node.outputs)
        return [Call(node, (x.name, f"{core.name}/table"), call.outputs)]

    def _table(self, call: Call) -> list[Call] | None:
        """Another scale, or an activation alone: a table of all 256 values."""
        maker = self._maker(call.inputs[0])
        assert maker is not None
        act = _bounds_of(maker.node)
        x = self._value(call.inputs[0] if act is None else maker.inputs[0])
        if x is None or x.operand.constant is not None:
            return None
        y = _output_grid(call)
        if x.grid == y and act is None:
            node = Node("Identity", call.name, {}, (x.operand,), call.node.outputs)
            return [Call(node, (x.name,), call.outputs)]
        if self._rounding in FLOATS:
            return None
        table = Operand.of(requantization_table(x.grid, y, act or (None, None), self._rounding))
        attributes = {"x_zero_point": x.grid.zero_point}
        node = Node("QTable", call.name, attributes, (x.operand, table), call.node.outputs)
        return [Call(node, (x.name, f"{call.name}/table"), call.outputs)]

    def _move(self, core: Call, call: Call) -> list[Call] | None:
        """Bytes that only change place."""
        x, y, node = self._value(core.inputs[0]), _output_grid(call), core.node
        if x is None or x.grid != y or x.operand.constant is not None:
            return None
        rest, names = node.inputs[1:], core.inputs[1:]
        op, attributes = node.op, dict(node.attributes)
        if op == "Pad":
            value = node.constant(2) if len(node.inputs) > 2 else None
            if attributes.get("mode", "constant") != "constant" or (value is not None and value.any()):
                return None
            zero = Operand.of(np.asarray(y.zero_point, y.dtype))
            rest, names = (rest[0], zero), (names[0], f"{core.name}/zero")
            attributes["x_zero_point"] = y.zero_point
        elif _as_image(node):
            op, attributes, rest, names = "QImage", {"x_zero_point": y.zero_point}, (), ()
        elif _as_rows(node):
            op, attributes, rest, names = "QRows", {"x_zero_point": y.zero_point}, (), ()
        moved = Node(op, core.name, attributes, (x.operand, *rest), call.node.outputs)
        return [Call(moved, (x.name, *names), call.outputs)]


def _output_grid(call: Call) -> Grid:
    grid = _grid(call.node, call.node.output)
    assert grid is not None
    return grid


def _grid(node: Node, stored: Operand) -> Grid | None:
    """The one scale and zero point of a conversion, if that is what it has."""
    scale = node.constant(1)
    zero = node.constant(2) if len(node.inputs) > 2 else np.zeros((), stored.dtype)
    if (
        scale is None
        or zero is None
        or scale.size != 1
        or zero.size != 1
        or stored.dtype not in ("int8", "uint8")
    ):
        return None
    value = float(scale.reshape(()))
    if not (np.isfinite(value) and value > 0):
        return None
    return Grid(value, int(zero.reshape(())), stored.dtype)


def _bounds_of(node: Node) -> tuple[float | None, float | None] | None:
    """What an activation that only bounds lets through; None for any other operator."""
    if node.op == "Relu":
        return 0.0, None
    if node.op == "Clip" and all(o is None or o.constant is not None for o in node.inputs[1:]):
        low, high = (None if b is None else float(b) for b in (node.constant(1), node.constant(2)))
        return low, high
    return None


def _as_image(node: Node) -> bool:
    shape = node.output.shape
    if node.op == "Transpose":
        return node.attributes.get("perm") == _TO_CHANNELS_FIRST
    return len(shape) == 4 and (shape[1] == 1 or shape[2:] == (1, 1))


def _as_rows(node: Node) -> bool:
    shape, after = node.operand(0).shape, node.output.shape
    if node.op == "Transpose":
        return node.attributes.get("perm") == _TO_CHANNELS_LAST
    return len(shape) == 4 and len(after) != 4 and (shape[1] == 1 or shape[2:] == (1, 1))


def _without_dead(network: Network) -> Network:
    """Only calls that an output depends on."""
    needed = set(network.outputs)
    kept: list[Call] = []
    for call in reversed(network.calls):
        if needed & set(call.outputs):
            needed.update(call.reads)
            # Constants that are still dequantised are made by calls as well.
            needed.update(name for name in call.inputs if name)
            kept.append(call)
    return network.with_calls(reversed(kept))
