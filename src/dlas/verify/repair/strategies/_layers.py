"""The strategies of FetaFix that change one layer: parameters, hyper-parameters, segments of the graph, flattening."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx_ir as ir

from dlas.core.errors import DlasError
from dlas.graph.model import Model
from dlas.graph.passes import bind_batch, infer_shapes
from dlas.verify.localize import edits
from dlas.verify.localize.roles import role
from dlas.verify.repair.strategies._matching import Change, Pairing, alike, constant_of, input_of
from dlas.verify.repair.strategies._segments import Splice, segments

_PARAMETERS = {"Conv": (1, 2), "BatchNormalization": (1, 2, 3, 4)}  # of all others: input 1
_HYPERPARAMETERS = ("pads", "group", "kernel_shape", "dilations", "epsilon", "min", "max")
_BOUNDS = {1: "min", 2: "max"}  # of Clip; attributes before opset 11, inputs since
_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def proposals(strategy: str, pairing: Pairing, layer: ir.Node) -> Iterator[Change]:
    """What a strategy would change at one layer of the target; nothing where it finds no difference.

    Args:
        strategy: ``params``, ``params[conv]``, ``graph[add]``, ``graph``, ``hyperparams`` or ``flatten``.
        pairing: Both graphs.
        layer: Node of the target.
    """
    if strategy == "params" or (strategy == "params[conv]" and layer.op_type == "Conv"):
        yield from _parameters(strategy, pairing, layer)
    elif strategy in ("graph", "graph[add]") and layer.op_type == anchor_type(pairing, strategy):
        for title, splice in segments(pairing, layer, ends=strategy == "graph"):
            yield Change(strategy, str(layer.name), title, partial(_spliced, pairing, splice))
    elif strategy == "hyperparams":
        yield from _hyperparameters(strategy, pairing, layer)
    elif strategy == "flatten" and layer.op_type in ("Flatten", "Reshape"):
        yield from _flatten(strategy, pairing, layer)


def anchor_type(pairing: Pairing, strategy: str) -> str:
    """Operator between two of which segments are compared: Conv, or what carries the weights where there is none."""
    if strategy == "graph[add]":
        return "Add"
    present = {n.op_type for n in pairing.target.graph}
    return next((op for op in _WEIGHTED if op in present), "")


def _parameters(strategy: str, pairing: Pairing, layer: ir.Node) -> Iterator[Change]:
    other = pairing.of_target.get(str(layer.name))
    if other is None:
        return
    wanted: dict[int, np.ndarray] = {}
    for index in _PARAMETERS.get(layer.op_type, (1,)):
        theirs = constant_of(input_of(other, index))
        ours = input_of(layer, index)
        computed = ours is not None and constant_of(ours) is None
        if theirs is not None and not computed and not alike(theirs, constant_of(ours)):
            wanted[index] = theirs
    if wanted:
        places = ", ".join(role(layer.op_type, index) for index in wanted)
        title = f"parameters of {layer.name} ({layer.op_type}, {places}) copied from the source"
        yield Change(
            strategy, str(layer.name), title, partial(_set_inputs, layer=str(layer.name), wanted=wanted)
        )


def _set_inputs(graph: ir.Model, layer: str, wanted: dict[int, np.ndarray]) -> None:
    for index, array in wanted.items():
        edits.set_input(graph, layer, index, array)


def _hyperparameters(strategy: str, pairing: Pairing, layer: ir.Node) -> Iterator[Change]:
    other = pairing.of_target.get(str(layer.name))
    if other is not None and (names := _unequal(layer, other)):
        title = f"{', '.join(names)} of {layer.name} ({layer.op_type}) set as in the source"
        yield Change(strategy, str(layer.name), title, partial(_match, layer=str(layer.name), other=other))


def _unequal(layer: ir.Node, other: ir.Node) -> list[str]:
    def of(node: ir.Node, name: str) -> object:
        return edits.plain(node.attributes[name].value) if name in node.attributes else None

    names = [name for name in _HYPERPARAMETERS if of(layer, name) != of(other, name)]
    if layer.op_type == "Clip":
        names += [
            n for i, n in _BOUNDS.items() if not alike(*(constant_of(input_of(x, i)) for x in (layer, other)))
        ]
    return list(dict.fromkeys(names))


def _match(graph: ir.Model, layer: str, other: ir.Node) -> None:
    """Copy, add or delete hyper-parameters of a layer until they are those of the source's."""
    found = edits.node_of(graph, layer)
    names = _unequal(found, other)
    for name in names:
        edits.set_attribute(graph, layer, other.attributes.get(name), name)
    for index, name in _BOUNDS.items() if found.op_type == "Clip" else ():
        theirs = constant_of(input_of(other, index))
        if name not in names:
            continue
        if theirs is not None:
            edits.set_input(graph, layer, index, theirs)
        elif index < len(found.inputs) and index >= 1:
            found.replace_input_with(index, None)


def _spliced(pairing: Pairing, splice: Splice, graph: ir.Model) -> None:
    """Replace a segment, then look at the hyper-parameters of the anchors again."""
    for name in splice(graph):
        other = pairing.of_target.get(name)
        if other is not None and _unequal(edits.node_of(graph, name), other):
            _match(graph, name, other)


def _flatten(strategy: str, pairing: Pairing, layer: ir.Node) -> Iterator[Change]:
    """A Transpose before flattening where the tensor comes with its axes in another order than in the source."""
    other = pairing.of_target.get(str(layer.name))
    ours = _dims(pairing.target, layer)
    theirs = _dims(pairing.source, other) if other is not None else None
    if ours is None or theirs is None or ours == theirs or sorted(ours) != sorted(theirs):
        return
    order, left = [], list(range(len(ours)))
    for size in theirs:
        axis = next(a for a in left if ours[a] == size)
        left.remove(axis)
        order.append(axis)
    title = f"Transpose {order} before {layer.name} ({layer.op_type}), as the source flattens {list(theirs)}"
    yield Change(
        strategy,
        str(layer.name),
        title,
        partial(
            edits.insert_before,
            node=str(layer.name),
            index=0,
            op_type="Transpose",
            attributes={"perm": order},
        ),
    )


def _dims(graph: ir.Model, node: ir.Node) -> tuple[int, ...] | None:
    """Sizes of the first input of a node with a batch of one; None where they cannot be inferred."""
    try:
        bound = bind_batch(Model(graph), 1).ir
    except DlasError:
        bound = graph.clone()
        infer_shapes(bound)
    value = edits.node_of(bound, str(node.name)).inputs[0]
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else 1 for d in value.shape)
