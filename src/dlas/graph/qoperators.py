"""Quantised operators that hold everything in one node (QLinearConv, QGemm ...) as decoded, plain and encoded ones.

ONNX Runtime writes both forms; what reads one form need not know the other. Sources: the operator schemas of ONNX, and
the list of contrib operators of ONNX Runtime.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.graph.model import Model
from dlas.graph.passes import free_name, infer_shapes, remove_unused

MICROSOFT = "com.microsoft"
_DROPPED = ("opset", "channels_last")  # attributes that only the quantised operator has


def has_contrib_operators(model: Model) -> bool:
    """Whether quantised operators are there that ONNX itself does not know, whose shapes nobody infers."""
    return any(n.domain == MICROSOFT and n.op_type in _RULES for n in model.ir.graph)


def decoded(model: Model) -> Model:
    """The network with every such operator as DequantizeLinear, the plain operator and QuantizeLinear.

    A node stays as it is where a scale or a zero point is computed by the network, or where it counts channels last.
    Answers change by the rounding of the steps in between, if at all.
    """
    graph = model.editable()
    changed = False
    for node in list(graph.graph):
        rule = _RULES.get(node.op_type)
        if rule is None or node.domain not in ("", "ai.onnx", MICROSOFT):
            continue
        last = node.attributes.get_int("channels_last", 0)
        decoder = _Decoder(graph.graph, node)
        if not last and rule(decoder):
            changed = True
    if not changed:
        return model
    remove_unused(graph)
    infer_shapes(graph)
    return replace(model, ir=graph, torch_module=None)


class _Decoder:
    """One node on its way into three; nothing is changed before :meth:`finish`."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self._made: list[ir.Node] = []
        self._stored: list[ir.Value] = []

    def given(self, index: int) -> ir.Value | None:
        """An input; None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def constant(self, index: int) -> np.ndarray | None:
        """An input's number, where the file says it."""
        value = self.given(index)
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()

    def is_told(self, *places: int) -> bool:
        """Whether the file holds what stands at these places, left-out zero points included."""
        return all(self.given(i) is None or self.constant(i) is not None for i in places)

    def real(self, index: int, scale: int, zero: int, axis: int = 0) -> ir.Value:
        """What an input stands for; ``axis`` counts where there is a scale per channel."""
        operands = [self.given(index), self.given(scale), self.given(zero)]
        return self._decode(operands if operands[2] is not None else operands[:2], axis)

    def real_sum(self, index: int, scale: np.ndarray, axis: int = 0) -> ir.Value:
        """A bias of 32 bits by the scale of the products it is added to."""
        name = free_name(self.graph, f"{self.node.outputs[0].name}_bias_scale")
        value = ir.Value(name=name, const_value=ir.tensor(scale.astype(np.float32), name=name))
        value.shape, value.type = ir.Shape(scale.shape), ir.TensorType(ir.DataType.FLOAT)
        self._stored.append(value)
        return self._decode([self.given(index), value], axis)

    def _decode(self, operands: Sequence[ir.Value | None], axis: int) -> ir.Value:
        scale = operands[1]
        many = scale is not None and scale.shape is not None and len(scale.shape) == 1 and scale.shape[0] != 1
        return self.add("DequantizeLinear", operands, {"axis": axis} if many else {})

    def add(self, op: str, operands: Sequence[ir.Value | None], attributes: Mapping[str, Any]) -> ir.Value:
        """A node before this one."""
        made = ir.node(op, operands, dict(attributes), name=f"{self.node.name}_{len(self._made)}")
        self._made.append(made)
        return made.outputs[0]

    def finish(self, op: str, operands: Sequence[ir.Value | None], scale: int, zero: int) -> bool:
        """Put the plain operator and its encoding in the node's place; without a scale its answer is real."""
        kept = {a.name: a.value for a in self.node.attributes.values() if a.name not in _DROPPED}
        answer = self.add(op, operands, kept)
        self._made[-1].name = self.node.name
        if self.given(scale) is not None:
            encoding = [answer, self.given(scale), self.given(zero)]
            answer = self.add("QuantizeLinear", encoding if encoding[2] is not None else encoding[:2], {})
        for value in self._stored:
            self.graph.register_initializer(value)
        for made in self._made:
            self.graph.insert_before(self.node, made)
        old = self.node.outputs[0]
        name, old.name = old.name, None
        answer.shape, answer.type = old.shape, old.type
        old.replace_all_uses_with(answer, replace_graph_outputs=True)
        self.graph.remove(self.node, safe=True)
        answer.name = name
        return True


def _convolution(d: _Decoder) -> bool:
    xs, ws = d.constant(1), d.constant(4)
    if xs is None or ws is None or not d.is_told(2, 5, 6, 7):
        return False
    operands = [d.real(0, 1, 2), d.real(3, 4, 5)]
    if d.given(8) is not None:
        operands.append(d.real_sum(8, xs * ws))
    return d.finish("Conv", operands, 6, 7)


def _matmul(d: _Decoder) -> bool:
    weight = d.given(3)
    if not d.is_told(1, 2, 4, 5, 6, 7) or weight is None or weight.shape is None:
        return False
    return d.finish("MatMul", [d.real(0, 1, 2), d.real(3, 4, 5, axis=len(weight.shape) - 1)], 6, 7)


def _gemm(d: _Decoder) -> bool:
    sa, sb = d.constant(1), d.constant(4)
    if sa is None or sb is None or not d.is_told(2, 5, 7, 8):
        return False
    flipped = d.node.attributes.get_int("transB", 0)
    operands = [d.real(0, 1, 2), d.real(3, 4, 5, axis=0 if flipped else 1)]
    if d.given(6) is not None:
        operands.append(d.real_sum(6, d.node.attributes.get_float("alpha", 1.0) * sa * sb))
    return d.finish("Gemm", operands, 7, 8)


def _pair(op: str, d: _Decoder) -> bool:
    return d.is_told(1, 2, 4, 5, 6, 7) and d.finish(op, [d.real(0, 1, 2), d.real(3, 4, 5)], 6, 7)


def _single(op: str, d: _Decoder) -> bool:
    return d.is_told(1, 2, 3, 4) and d.finish(op, [d.real(0, 1, 2)], 3, 4)


def _softmax(d: _Decoder) -> bool:
    newer = d.node.attributes.get_int("opset", 13) >= 13
    return newer and _single("Softmax", d)  # an older one flattens, which is another operator


def _concat(d: _Decoder) -> bool:
    places = range(2, len(d.node.inputs), 3)
    told = d.is_told(0, 1, *(p + k for p in places for k in (1, 2)))
    return told and d.finish("Concat", [d.real(p, p + 1, p + 2) for p in places], 0, 1)


_RULES: Mapping[str, Callable[[_Decoder], bool]] = {
    "QLinearConv": _convolution,
    "QLinearMatMul": _matmul,
    "QGemm": _gemm,
    "QLinearAdd": functools.partial(_pair, "Add"),
    "QLinearMul": functools.partial(_pair, "Mul"),
    "QLinearSigmoid": functools.partial(_single, "Sigmoid"),
    "QLinearLeakyRelu": functools.partial(_single, "LeakyRelu"),
    "QLinearAveragePool": functools.partial(_single, "AveragePool"),
    "QLinearGlobalAveragePool": functools.partial(_single, "GlobalAveragePool"),
    "QLinearSoftmax": _softmax,
    "QLinearConcat": _concat,
}
