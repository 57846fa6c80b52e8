"""What a network and its layers cost, as functions: measured ones come in from a layer that can run networks.

:class:`LayerShape` is all that the time of a layer depends on. A table of layer times is staircase-shaped on real
hardware (vectors, blocks and tiles come in whole numbers), which is why it is asked for and not assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.graph.model import OPSET, Model

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class LayerShape:
    """A layer with weights, without their values.

    Attributes:
        name: Its node; two layers that differ in nothing else are equal.
        op: Operator, one of :data:`LAYERS`.
        attributes: ONNX attributes as sorted pairs of name and number, text or tuple.
        given: Shape of its input, batch 1.
        weight: Shape of its weight.
        made: Shape of its output, batch 1.
        first: Whether the weight is the first operand of a MatMul.
    """

    name: str = field(compare=False)
    op: str
    attributes: tuple[tuple[str, Any], ...]
    given: tuple[int, ...]
    weight: tuple[int, ...]
    made: tuple[int, ...]
    first: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        size = math.prod(self.weight)
        if self.op == "Conv":
            return size * math.prod(self.made[2:])
        if self.op == "ConvTranspose":
            return size * math.prod(self.given[2:])
        inner = self.given[0 if dict(self.attributes).get("transA") else -1]
        return size * max(1, math.prod(self.given) // max(1, inner))

    def network(self) -> Model:
        """A network of this layer alone, with a bias and a ReLU as engines fuse them, and random weights."""
        rng = np.random.default_rng(0)
        weight = _stored("weight", rng.standard_normal(self.weight).astype(np.float32))
        image = ir.Value(name="x", shape=ir.Shape(self.given), type=ir.TensorType(ir.DataType.FLOAT))
        operands = [weight, image] if self.first else [image, weight]
        stored = [weight]
        if self.op != "MatMul":
            channels = self.made[1]
            stored.append(_stored("bias", np.zeros(channels, np.float32)))
            operands.append(stored[-1])
        layer = ir.node(self.op, operands, dict(self.attributes), name=self.name or "layer")
        layer.outputs[0].name = "y"
        relu = ir.node("Relu", [layer.outputs[0]], name="relu")
        answer = relu.outputs[0]
        answer.name = "answer"
        for value in (layer.outputs[0], answer):
            value.shape, value.type = ir.Shape(self.made), ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            [image],
            [answer],
            nodes=[layer, relu],
            initializers=stored,
            opset_imports={"": OPSET},
            name="layer",
        )
        return Model(ir.Model(graph, ir_version=10), "layer")


@dataclass(frozen=True)
class Costs:
    """How to find out what networks cost.

    Attributes:
        unit: Unit of both (``ms``, ``MACs``).
        of_layer: Cost of one layer of a network that runs; what a table of layers is filled with.
        of_network: Cost of a whole network.
        where: What it was found out on, for the record: back end, threads, processor.
        measured: Whether a clock was behind it.
    """

    unit: str
    of_layer: Callable[[LayerShape], float]
    of_network: Callable[[Model], float]
    where: str
    measured: bool = False


def mac_costs() -> Costs:
    """Multiply-accumulates: the cost where nobody measures."""
    return Costs("MACs", lambda layer: float(layer.macs), macs_of, "counted")


def macs_of(model: Model) -> float:
    """Multiply-accumulates per sample of the layers with stored weights."""
    from dlas.graph import channels
    from dlas.graph.passes import tidy

    graph = model.editable()
    tidy(graph)
    return float(channels.groups(graph).macs)


def _stored(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
