"""Puts the integer form of a network into its graph: Q and DQ nodes, integer weights and int32 biases."""

from __future__ import annotations

import onnx_ir as ir

from dlas.compress.qdq import Grid, QdqWriter, bias_codes, weight_grid
from dlas.compress.quantize._int8.scheme import RULES, Scheme, constant, data_inputs, input_at, weight_axis
from dlas.kernels.formats.grid import Grid as Levels
from dlas.kernels.formats.recovery import tops


class Rewriter:
    """Puts Q and DQ nodes and integer weights into one graph."""

    def __init__(
        self,
        graph: ir.Graph,
        scheme: Scheme,
        grids: dict[ir.Value, Grid],
        *,
        per_channel: bool = True,
        io: str = "float32",
        levels: Levels | None = None,
    ) -> None:
        self.graph = graph
        self.scheme = scheme
        self.grids = grids
        self.per_channel = per_channel
        self.io = io
        self.levels = levels  # whose integers are stored where weights are on them
        self.writer = QdqWriter(graph)
        self.active = set(scheme.nodes)
        self.notes: list[str] = []

    def run(self) -> list[str]:
        """Rewrite; returns what the user must know."""
        for node in weighted(self.scheme):
            self._weights(node)
        for node, index in sorted(self.scheme.requantize, key=lambda e: (e[0].name or "", e[1])):
            self._enter(node, index)
        for value in self.scheme.tensors:
            if constant(value) is not None:
                self._operand(value)
            else:
                self._activation(value)
        self.graph.sort()
        if self.io == "int8":
            ends = [("input", v) for v in self.graph.inputs] + [("output", v) for v in self.graph.outputs]
            self.notes += [
                f"{what} {v.name} stays float32: no integer layer there"
                for what, v in ends
                if v.dtype is ir.DataType.FLOAT
            ]
        return self.notes

    def grid(self, value: ir.Value) -> Grid:
        return self.grids[self.scheme.group(value)]

    def _weights(self, node: ir.Node) -> None:
        source, value, bias_value = node.inputs[0], node.inputs[1], input_at(node, 2)
        weight, bias = constant(value), constant(bias_value)
        if source is None or value is None or weight is None:
            return
        input_scale = self.grid(source).scale
        axis = weight_axis(node) if self.per_channel else None
        top = tops(weight, axis, self.levels) if self.levels is not None else 127.0
        grid = weight_grid(
            weight, axis, bias=bias, input_scale=float(input_scale), top=top, name=str(value.name)
        )
        stored = self.writer.dequantized_constant(grid.quantize(weight, -127), grid, str(value.name))
        self.graph.insert_before(node, stored)
        node.replace_input_with(1, stored.outputs[0])
        if bias is not None and bias_value is not None:
            codes, scale = bias_codes(bias.reshape(-1), input_scale, grid)
            stored = self.writer.dequantized_bias(codes, scale, str(bias_value.name))
            self.graph.insert_before(node, stored)
            node.replace_input_with(2, stored.outputs[0])

    def _enter(self, node: ir.Node, index: int) -> None:
        """Bring one input of a Concat onto the grid of its output."""
        value, grid = node.inputs[index], self.grid(node.outputs[0])
        if value is None:
            return
        name = self.writer.name(f"{value.name}_in_{node.outputs[0].name}")
        quantize = self.writer.quantize(value, grid, name)
        dequantize = self.writer.dequantize(quantize.outputs[0], grid, name)
        self.graph.insert_before(node, [quantize, dequantize])
        node.replace_input_with(index, dequantize.outputs[0])
        self.active.add(quantize)

    def _operand(self, value: ir.Value) -> None:
        array, grid = constant(value), self.grid(value)
        if array is None:
            return
        for use in self._integer_uses(value):
            stored = self.writer.dequantized_constant(grid.quantize(array), grid, str(value.name))
            self.graph.insert_before(use.node, stored)
            use.node.replace_input_with(use.idx, stored.outputs[0])

    def _activation(self, value: ir.Value) -> None:
        name, grid, producer = str(value.name), self.grid(value), value.producer()
        made_here = producer in self.active
        outputs = [i for i, out in enumerate(self.graph.outputs) if out is value and made_here]
        first = self.graph[0] if producer is None else None
        arrives_coded = producer is None and self.io == "int8"
        uses = list(value.uses()) if made_here or arrives_coded else self._integer_uses(value)
        if arrives_coded:
            codes, new = value, []
        else:
            quantize = self.writer.quantize(value, grid, name)
            codes, new = quantize.outputs[0], [quantize]
        whole = bool(outputs) and self.io == "int8"
        dequantize = None
        if uses or (outputs and not whole):
            dequantize = self.writer.dequantize(codes, grid, name)
            new.append(dequantize)
            for use in uses:
                use.node.replace_input_with(use.idx, dequantize.outputs[0])
        if first is not None:
            self.graph.insert_before(first, new)
        else:
            self.graph.insert_after(producer, new)  # type: ignore[arg-type]
        if arrives_coded:
            value.type = ir.TensorType(ir.DataType.INT8)
            self.notes.append(_signature("input", name, grid))
        if outputs:
            final = codes if whole or dequantize is None else dequantize.outputs[0]
            value.name = self.writer.name(f"{name}_float")
            final.name = name
            for i in outputs:
                self.graph.outputs[i] = final
            if whole:
                self.notes.append(_signature("output", name, grid))

    def _integer_uses(self, value: ir.Value) -> list:
        return [
            use
            for use in value.uses()
            if use.node in self.active
            and (use.node.op_type == "QuantizeLinear" or use.idx in [i for i, _ in data_inputs(use.node)])
        ]


def _signature(what: str, name: str, grid: Grid) -> str:
    return f"{what} {name}: int8, scale {float(grid.scale):.9g}, zero point {int(grid.zero_point)}"


def weighted(scheme: Scheme) -> list[ir.Node]:
    """Nodes with constant weights, in graph order."""
    return [
        n
        for n in scheme.nodes
        if RULES[n.op_type].kind == "weighted" and constant(input_at(n, 1)) is not None
    ]
