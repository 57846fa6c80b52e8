"""Nothing smaller explains the region: the source's own operators are put in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from dlas.graph.passes import free_name
from dlas.verify.localize.alignment import Order
from dlas.verify.localize.case import Case, Explanation, Proposal, explanations
from dlas.verify.localize.edits import constant, value_of


@explanations.register("splice")
class Splice(Explanation):
    """Copies the source's region over, with its axes turned where it begins and ends."""

    name = "splice"
    summary = "the whole region is replaced by the source's"
    cost = 100

    def propose(self, case: Case) -> Iterator[Proposal]:
        """One proposal, where every tensor that the source's region reads is known in the target."""
        nodes = [n for n in case.source.steps if n.name in set(case.region.source_nodes)]
        made = {str(o.name) for n in nodes for o in n.outputs}
        begins: dict[str, tuple[str, Order]] = {}
        for tensor in dict.fromkeys(f for n in nodes for f in case.source.fed(n) if f not in made):
            found = case.counterparts(tensor)
            inside = [t for t in found if t in case.given]
            end = case.target.position[case.region.target]
            known = inside or [t for t in found if case.target.position[t] < end]
            if not known or tensor not in case.walk.known.values:
                return
            match = case.match(known[0])
            assert match is not None
            case.admit(known[0])
            begins[tensor] = (known[0], match.order)
        if not nodes:
            return
        mine = Counter(n.op_type for n in case.nodes)
        right = Counter(n.op_type for n in case.source_nodes)
        lost = list((right - mine).elements()) if not mine - right else []
        yield Proposal(
            "graph" if lost else "unexplained",
            f"{' and '.join(lost[:3])} missing" if lost else "region replaced",
            f"{', '.join(case.region.target_nodes[:4])}: nothing smaller makes them agree; "
            f"{', '.join(case.region.source_nodes[:4])} of the source take their place",
            case.region.target_nodes[-1] if case.region.target_nodes else "",
            case.region.source_nodes[-1],
            lambda graph: _spliced(graph, case, nodes, begins),
        )


def _spliced(
    graph: ir.Model, case: Case, nodes: Sequence[ir.Node], begins: dict[str, tuple[str, Order]]
) -> None:
    names: dict[str, ir.Value] = {}
    fresh: list[ir.Node] = []
    for tensor, (ours, order) in begins.items():
        shape = case.walk.known.values[tensor].shape[1:]
        back = tuple(int(a) for a in np.argsort(order))
        names[tensor] = _laid_out(
            graph, value_of(graph, ours), case.given[ours].shape[1:], back, shape, fresh
        )
    for node in nodes:
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            name = str(value.name) if value is not None and value.name else ""
            if not name:
                inputs.append(None)
            elif name in names:
                inputs.append(names[name])
            else:
                names[name] = constant(graph, case.source.constants[name], f"source.{name}")
                inputs.append(names[name])
        outputs = []
        for output in node.outputs:
            value = ir.Value(name=free_name(graph.graph, f"source.{output.name}") if output.name else "")
            names[str(output.name)] = value
            outputs.append(value)
        fresh.append(
            ir.Node(
                node.domain,
                node.op_type,
                inputs,
                list(node.attributes.values()),
                outputs=outputs,
                name=_free_node(graph, f"source.{node.name}"),
            )
        )
    region = case.region
    theirs = case.walk.known.values[region.source].shape[1:]
    result = _laid_out(graph, names[region.source], theirs, region.order, region.shape, fresh)
    old = value_of(graph, region.target)
    for user, place in list(old.uses()):
        user.replace_input_with(place, result)
    outside = old.is_graph_output()
    if outside:
        if result.producer() is None:
            fresh.append(ir.Node("", "Identity", [result], name=_free_node(graph, "source.identity")))
            result = fresh[-1].outputs[0]
        for i, value in enumerate(graph.graph.outputs):
            if value is old:
                graph.graph.outputs[i] = result
        result.type, result.shape = old.type, old.shape
    name = str(old.name)
    old.name = f"{name}.replaced"
    result.name = name
    graph.graph.extend(fresh)
    # What the old operators computed is read by nobody any more.
    _drop_dead(graph)
    graph.graph.sort()


def _laid_out(
    graph: ir.Model,
    value: ir.Value,
    here: tuple[int, ...],
    order: Order,
    there: tuple[int, ...],
    fresh: list[ir.Node],
) -> ir.Value:
    """``value`` of shape ``here`` with its axes (those not of size one) in ``order``, as shape ``there``."""
    if here == there and order == tuple(range(len(order))):
        return value
    small = [d for d in here if d != 1]
    value = _node(graph, "Reshape", value, fresh, constant(graph, np.array([-1, *small], np.int64), "shape"))
    perm = [0, *(int(a) + 1 for a in order)]
    value = _node(graph, "Transpose", value, fresh, perm=perm)
    shape = np.array([-1, *there[1:]], np.int64)
    return _node(graph, "Reshape", value, fresh, constant(graph, shape, "shape"))


def _node(
    graph: ir.Model,
    op_type: str,
    value: ir.Value,
    fresh: list[ir.Node],
    *others: ir.Value,
    perm: list[int] | None = None,
) -> ir.Value:
    attributes = [ir.AttrInt64s("perm", perm)] if perm is not None else []
    taken = {n.name for n in fresh}
    name = _free_node(graph, f"source.{op_type.lower()}")
    while name in taken:
        name += "_"
    output = ir.Value(name=free_name(graph.graph, f"{name}.out"))
    fresh.append(ir.Node("", op_type, [value, *others], attributes, outputs=[output], name=name))
    return output


def _free_node(graph: ir.Model, wanted: str) -> str:
    taken = {n.name for n in graph.graph}
    while wanted in taken:
        wanted += "_"
    return wanted


def _drop_dead(graph: ir.Model) -> None:
    while True:
        dead = [n for n in graph.graph if not any(o.uses() or o.is_graph_output() for o in n.outputs)]
        if not dead:
            return
        graph.graph.remove(dead, safe=True)
