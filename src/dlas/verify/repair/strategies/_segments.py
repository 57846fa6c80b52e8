"""Segments of the graph between two anchors of one operator: compared by their operators, replaced by the source's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from dlas.core.errors import ModelError
from dlas.graph.passes import free_name
from dlas.verify.localize import edits
from dlas.verify.repair.strategies._matching import Pairing, constant_of, data_of, input_of

Splice = Callable[[ir.Model], list[str]]  # changes a graph in place; names of the anchors


@dataclass(frozen=True)
class Path:
    """What lies between an anchor and a tensor further down, on one path.

    Attributes:
        anchor: The node the path begins at; None where it is an input of the network.
        start: The tensor it begins with.
        nodes: In the order of execution.
        end: The tensor it ends with.
    """

    anchor: ir.Node | None
    start: ir.Value
    nodes: list[ir.Node]
    end: ir.Value

    @property
    def operators(self) -> list[str]:
        """Types of the nodes."""
        return [n.op_type for n in self.nodes]


def segments(pairing: Pairing, layer: ir.Node, *, ends: bool) -> Iterator[tuple[str, Splice]]:
    """Segments above an anchor of the target, and the last one below it, whose operators are not the source's.

    Args:
        pairing: Both graphs.
        layer: The anchor, a node of the target.
        ends: Whether inputs and outputs of the network are anchors as well.

    Yields:
        What it would do, in one line, and how.
    """
    other = pairing.of_target.get(str(layer.name))
    if other is None:
        return
    for index in range(min(len(layer.inputs), len(other.inputs))):
        ours, theirs = (_upwards(input_of(n, index), layer.op_type) for n in (layer, other))
        if ours is not None and theirs is not None and _differ(pairing, ours, theirs, ends):
            splice = _Splicing(pairing, ours, theirs, layer, index)
            yield f"{_words(ours, theirs)} above {layer.name} as in the source", splice
    for index in range(
        min(len(pairing.target.graph.outputs), len(pairing.source.graph.outputs)) if ends else 0
    ):
        ours, theirs = (
            _upwards(g.graph.outputs[index], layer.op_type) for g in (pairing.target, pairing.source)
        )
        if ours is None or theirs is None or ours.anchor is not layer:
            continue
        if _differ(pairing, ours, theirs, ends):
            splice = _Splicing(pairing, ours, theirs, None, index)
            yield f"{_words(ours, theirs)} below {layer.name} as in the source", splice


def _upwards(end: ir.Value | None, op_type: str) -> Path | None:
    """The path from the last node of that type to a tensor, at joins by the first input that is not constant."""
    if end is None or constant_of(end) is not None:
        return None
    value, nodes = end, list[ir.Node]()
    while (maker := value.producer()) is not None and maker.op_type != op_type:
        nodes.insert(0, maker)
        above = data_of(maker)
        if above is None:
            return None
        value = above
    return Path(maker, value, nodes, end)


def _differ(pairing: Pairing, ours: Path, theirs: Path, ends: bool) -> bool:
    if ours.anchor is None or theirs.anchor is None:
        same_start = ends and ours.anchor is theirs.anchor
    else:
        same_start = pairing.of_target.get(str(ours.anchor.name)) is theirs.anchor
    return same_start and ours.operators != theirs.operators


def _words(ours: Path, theirs: Path) -> str:
    return f"[{', '.join(ours.operators)}] -> [{', '.join(theirs.operators)}]"


@dataclass(frozen=True)
class _Splicing:
    """Replaces a segment of the target by one of the source; ModelError where what is beside it has no counterpart."""

    pairing: Pairing
    ours: Path
    theirs: Path
    lower: ir.Node | None  # anchor below; None: an output of the network
    index: int  # which of its inputs, or which output

    def __call__(self, graph: ir.Model) -> list[str]:
        here = {str(n.name): n for n in graph.graph}
        old = [here[str(n.name)] for n in self.ours.nodes]
        lower = here[str(self.lower.name)] if self.lower is not None else None
        result = str(self.ours.end.name)
        self._set_aside(graph, old)
        known = self._copied(graph, here, lower)
        end = known[self.theirs.end]
        if lower is not None:
            lower.replace_input_with(self.index, end)
        else:
            self._hand_out(graph, end, result)
        self._rewire(graph, here, old, known)
        graph.graph.remove(reversed(old), safe=True)
        anchors = (self.ours.anchor, self.lower)
        return [str(a.name) for a in anchors if a is not None]

    def _set_aside(self, graph: ir.Model, old: list[ir.Node]) -> None:
        """Free the names of what is to go for what is to come."""
        for node in old:
            node.name = f"{node.name}.old"
            for value in node.outputs:
                if value.name:
                    value.name = free_name(graph.graph, f"{value.name}.old")

    def _copied(
        self, graph: ir.Model, here: dict[str, ir.Node], lower: ir.Node | None
    ) -> dict[ir.Value, ir.Value]:
        """Copy the source's nodes; the target's tensor for each of the source's that they read or write."""
        known = {self.theirs.start: edits.value_of(graph, str(self.ours.start.name))}
        taken = {str(n.name) for n in graph.graph}
        for node in self.theirs.nodes:
            inputs = [self._counterpart(graph, here, known, v) for v in node.inputs]
            name = str(node.name)
            while name in taken:
                name += "_"
            taken.add(name)
            outputs = [
                ir.Value(name=free_name(graph.graph, str(v.name)) if v.name else "") for v in node.outputs
            ]
            attributes = [ir.Attr(k, a.type, a.value) for k, a in node.attributes.items()]
            copy = ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=name)
            if lower is None:
                graph.graph.append(copy)
            else:
                graph.graph.insert_before(lower, copy)
            known.update(zip(node.outputs, outputs, strict=True))
        return known

    def _counterpart(
        self,
        graph: ir.Model,
        here: dict[str, ir.Node],
        known: dict[ir.Value, ir.Value],
        value: ir.Value | None,
    ) -> ir.Value | None:
        """The target's tensor for one of the source's."""
        if value is None or value in known:
            return None if value is None else known[value]
        array = constant_of(value)
        if array is not None:
            return edits.constant(graph, array, str(value.name))
        maker = value.producer()
        if maker is None:
            place = next(i for i, v in enumerate(self.pairing.source.graph.inputs) if v is value)
            if place < len(graph.graph.inputs):
                return graph.graph.inputs[place]
        elif (name := self.pairing.of_source.get(str(maker.name))) is not None:
            index = next(i for i, v in enumerate(maker.outputs) if v is value)
            # Nodes that are about to go are called otherwise by now.
            if here[name].name == name and index < len(here[name].outputs):
                return here[name].outputs[index]
        raise ModelError(f"tensor {value.name!r} of the source has no counterpart outside the segment")

    def _hand_out(self, graph: ir.Model, end: ir.Value, name: str) -> None:
        if end.producer() is None:
            raise ModelError("nothing is left between input and output")
        former = graph.graph.outputs[self.index]
        end.type, end.shape = former.type, former.shape
        end.name = name
        graph.graph.outputs[self.index] = end

    def _rewire(
        self, graph: ir.Model, here: dict[str, ir.Node], old: list[ir.Node], known: dict[ir.Value, ir.Value]
    ) -> None:
        """Give those who read a tensor of the old segment from beside it the one that the source's reader has."""
        gone = set(old)
        for value in [v for node in old for v in node.outputs]:
            if value.is_graph_output():
                raise ModelError(f"tensor {value.name!r} of the segment is an output of the network")
            for user, place in list(value.uses()):
                if user in gone:
                    continue
                twin = self.pairing.of_target.get(str(user.name))
                if twin is None or place >= len(twin.inputs):
                    raise ModelError(
                        f"node {user.name!r} reads the segment and has no counterpart in the source"
                    )
                user.replace_input_with(place, self._counterpart(graph, here, known, twin.inputs[place]))
