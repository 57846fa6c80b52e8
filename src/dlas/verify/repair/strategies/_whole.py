"""The strategies of FetaFix that change a network as a whole: its first weights, its inputs, its surplus outputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx_ir as ir

from dlas.verify.localize import edits
from dlas.verify.repair.strategies._matching import Change, Pairing, constant_of, input_of

_AXES = ("Concat", "Gather", "Unsqueeze")
_MOST_AXES = 5


def proposals(pairing: Pairing) -> Iterator[Change]:
    """What is tried before any layer: weights of the first convolution, inputs, outputs."""
    yield from _first_weights(pairing)
    yield from _inputs(pairing)
    yield from _outputs(pairing)


def _first_weights(pairing: Pairing) -> Iterator[Change]:
    """Weights of the first convolution turned as the source's are, where the target begins with a Transpose."""
    ours, theirs = (
        next((n for n in g.graph if n.op_type == "Conv"), None) for g in (pairing.target, pairing.source)
    )
    if ours is None or theirs is None or not _begins_with_transpose(pairing.target):
        return
    a, b = constant_of(input_of(ours, 1)), constant_of(input_of(theirs, 1))
    if a is None or b is None or sorted(a.shape) != sorted(b.shape) or a.ndim > _MOST_AXES:
        return
    fitting = [p for p in itertools.permutations(range(a.ndim)) if tuple(a.shape[i] for i in p) == b.shape]
    best = min(fitting, key=lambda p: float(np.abs(a.transpose(p).astype(np.float64) - b).max(initial=0.0)))
    if best != tuple(range(a.ndim)):
        turned = np.ascontiguousarray(a.transpose(best))
        title = f"weights of the first convolution {ours.name} turned by {list(best)}"
        edit = partial(edits.set_input, node=str(ours.name), index=1, array=turned)
        yield Change("first weights", str(ours.name), title, edit)


def _inputs(pairing: Pairing) -> Iterator[Change]:
    """The source's sizes at the inputs, Transposes (the first ones, then all) doing nothing, axes as in the source."""
    ours, theirs = _fed(pairing.target), _fed(pairing.source)
    if len(ours) != len(theirs) or all(_dims(a) == _dims(b) for a, b in zip(ours, theirs, strict=True)):
        return
    first = [str(n.name) for n in pairing.target.graph if n.op_type == "Transpose" and n.inputs[0] in ours]
    every = [str(n.name) for n in pairing.target.graph if n.op_type == "Transpose"]
    for names in dict.fromkeys((tuple(first), tuple(every))):
        for axes in (False, True):
            words = (
                f"input sizes as in the source, {len(names)} Transposes without effect" + ", axes too" * axes
            )
            edit = partial(_align, pairing=pairing, transposes=names, axes=axes)
            yield Change("inputs", "", words, edit)


def _align(graph: ir.Model, pairing: Pairing, transposes: tuple[str, ...], axes: bool) -> None:
    for value, other in zip(_fed(graph), _fed(pairing.source), strict=True):
        value.shape = other.shape.copy() if other.shape is not None else None
    for name in transposes:
        node = edits.node_of(graph, name)
        order = node.attributes.get("perm")
        value = node.inputs[0]
        rank = len(order.value) if order is not None else len(value.shape or ()) if value is not None else 0
        node.attributes["perm"] = ir.AttrInt64s("perm", list(range(rank)))
    for op_type in _AXES if axes else ():
        ours, theirs = (
            next((n for n in g.graph if n.op_type == op_type), None) for g in (graph, pairing.source)
        )
        if ours is None or theirs is None:
            continue
        for name in ("axis", "axes"):
            edits.set_attribute(graph, str(ours.name), theirs.attributes.get(name), name)
        wanted = constant_of(input_of(theirs, 1))
        if op_type == "Unsqueeze" and wanted is not None:
            edits.set_input(graph, str(ours.name), 1, wanted)


def _outputs(pairing: Pairing) -> Iterator[Change]:
    """Only as many outputs as the source has: those of the same name, or else of the same sizes."""
    ours, theirs = list(pairing.target.graph.outputs), list(pairing.source.graph.outputs)
    if len(ours) <= len(theirs):
        return
    kept: list[str] = []
    for other in theirs:
        left = [v for v in ours if str(v.name) not in kept]
        rules = (lambda v, o=other: v.name == o.name, lambda v, o=other: _dims(v) == _dims(o))
        found = next((v for rule in rules for v in left if rule(v)), None)
        if found is None:
            return
        kept.append(str(found.name))
    surplus = ", ".join(str(v.name) for v in ours if v.name not in kept)
    yield Change("outputs", "", f"surplus outputs dropped: {surplus}", partial(_keep_outputs, names=kept))


def _keep_outputs(graph: ir.Model, names: list[str]) -> None:
    kept = [edits.value_of(graph, name) for name in names]
    graph.graph.outputs.clear()
    graph.graph.outputs.extend(kept)


def _fed(graph: ir.Model) -> list[ir.Value]:
    return [v for v in graph.graph.inputs if v.name not in graph.graph.initializers]


def _dims(value: ir.Value) -> list[int]:
    """Sizes; symbolic ones count as 1."""
    return [d if isinstance(d, int) else 1 for d in value.shape or ()]


def _begins_with_transpose(graph: ir.Model) -> bool:
    """Whether an input of the network is read by a Transpose and by nothing else."""
    return any([u.op_type for u, _ in v.uses()] == ["Transpose"] for v in _fed(graph))
