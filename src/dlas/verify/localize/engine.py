"""Localisation from two graphs and the samples they are fed with to a list of faults."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from dlas.core.errors import DlasError, ModelError, UnsupportedError
from dlas.core.telling import Tell
from dlas.verify.differential import is_classifier
from dlas.verify.localize.alignment import turned
from dlas.verify.localize.case import Case, Change, Proposal
from dlas.verify.localize.hints import upstream_hint
from dlas.verify.localize.network import Network, named
from dlas.verify.localize.search import Explained, explain
from dlas.verify.localize.walk import WEIGHTED, Region, State, Walk

FLOAT, _HALF, _INTEGER = 1e-3, 0.02, 0.1  # relative L2 (60, 34 and 20 dB) that arithmetic alone may cost
_FINE = 2e-5  # float32: one operator in another order of summation stays below this
_FEW = 0.25  # share of tensors that agree loosely up to which that is no matter of precision in general
_ENCODED = 0.03  # relative L2 (30 dB) of one operator whose result is stored in few bits
_BYTES = 384 * 2**20  # activations held of each of the two networks
_LEAST_ROWS = 4
_REPRODUCER = 3  # nodes at most
_DOUBTED_S = 30.0  # for explanations where the two networks seem to have nothing in common
_TRIED = 40  # changes that did not help: then another one would hardly
_ANYTHING = {"values differ", "several differ", "other shape"}  # said of any two constants


@dataclass(frozen=True)
class Fault:
    """One place where the target does something else than the source.

    Attributes:
        fault: Class: input, layout, parameter, attribute, graph, precision or unexplained.
        kind: What exactly, in a few words.
        detail: The same with names and values.
        target_node: Operator of the target, by name.
        target_op: Its type.
        source_node: Operator of the source; empty where it has none.
        tensor: Tensor of the target where it shows.
        before: Relative L2 of the isolated replay.
        after: The same with the change.
        flips: Labels that come right when this place alone is put right; None where outputs are no class scores.
        hint: What it looks like, for the tracker of the converter.
        trials: Changes that were tried.
        reproducer: An ONNX file of at most three nodes, as bytes; empty where the place is larger.
        samples: ``input:NAME`` and ``expected`` arrays to run the reproducer with.
        change: Edits the target's graph in place; None where nothing was found.
    """

    fault: str
    kind: str
    detail: str
    target_node: str
    target_op: str
    source_node: str
    tensor: str
    before: float
    after: float
    flips: int | None
    hint: str
    trials: int
    reproducer: bytes = b""
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)
    change: Change | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON; arrays and the change are left out."""
        keys = (
            "fault", "kind", "detail", "target_node", "target_op", "source_node", "tensor", "flips", "hint", "trials",
        )  # fmt: skip
        errors = {"error_before": _finite(self.before), "error_after": _finite(self.after)}
        return {**{k: getattr(self, k) for k in keys}, **errors}


@dataclass(frozen=True)
class Found:
    """All that localisation says.

    Attributes:
        faults: In the order of execution.
        flips: Labels that differ between source and target on the rows used.
        rows: Rows used.
        matched: Tensors of the target that agree with one of the source.
        tensors: Operators of the target that depend on its input.
        tolerance: Relative L2 up to which tensors were taken as the same.
        typical: Median relative L2 of the tensors that agree.
        notes: Anything else.
        runs: Runs of a whole network on these rows that it took, source and target together. Operators that were run
            without the rest count as their share of the network; changes tried on a region cut out do not count.
    """

    faults: list[Fault]
    flips: int | None
    rows: int
    matched: int
    tensors: int
    tolerance: float
    typical: float
    notes: list[str]
    runs: float = 0.0


def find(
    source: ir.Model,
    target: ir.Model,
    source_inputs: Mapping[str, np.ndarray],
    target_inputs: Mapping[str, np.ndarray],
    *,
    budget_s: float = 300.0,
    explained: bool = True,
    labels: bool = True,
    tell: Tell = lambda text: None,
) -> Found:
    """Localise every fault of ``target`` against ``source``.

    Args:
        source: Graph that is right, nodes uniquely named (:func:`named`).
        target: Graph in question, likewise.
        source_inputs: ``(rows, ...)`` by input of the source.
        target_inputs: The same samples by input of the target.
        budget_s: Seconds for the search for explanations.
        explained: Whether to search for them at all.
        labels: Whether to count the labels that each fault costs, a run of the target each.
        tell: Receives one line per step.

    Raises:
        ModelError: The source gives NaN, the two have different outputs, or nothing in common.
        UnsupportedError: Control flow.
    """
    deadline = monotonic() + budget_s
    a, b = Network(_real_outputs(source)), Network(_real_outputs(target))
    pairs = _paired(a, b)
    tolerance = tolerated(source, target)
    x, y = _limited(a, b, source_inputs, target_inputs)
    tell(f"walk through {len(b.steps)} operators on {len(next(iter(x.values())))} rows")
    walk = Walk(a, b, x, y, tolerance, pairs, tell=tell)
    _refuse_bad_source(walk)
    regions, state = walk.regions(
        lambda regions, state: _refuse_another_network(walk, state, regions, deadline, tell)
    )
    errors = [
        m.error
        for m in state.matches.values()
        if math.isfinite(m.error) and m.target not in {r.target for r in regions}
    ]
    typical = float(np.median(errors)) if errors else 0.0
    fine = _FINE if tolerance == FLOAT else min(tolerance, max(_FINE, 10 * typical, _ENCODED))
    mild = _mild(walk, state, regions, fine) if tolerance == FLOAT else []
    if 0 < len(mild) <= _FEW * len(state.matches):
        # Where nearly all agree as closely as arithmetic allows, so must the rest: a small fault that is let pass
        # where it begins comes up wherever it happens to be largest.
        walk = Walk(a, b, x, y, fine, pairs, walk.known, tell)
        regions, state = walk.regions()
        mild = [r for r in regions if r.error <= tolerance]
        regions = [r for r in regions if r.error > tolerance]
    before = _answers(b, y) if labels else {}
    right = {o: walk.known.values[s] for o, s in pairs.items() if s in walk.known.values}
    wanted = right if labels else {}
    faults = []
    for number, region in enumerate([*regions, *mild], 1):
        place = region.target_nodes[-1] if region.target_nodes else region.target
        tell(f"explain place {number} of {len(regions) + len(mild)}: {place}")
        case = Case(walk, state, region, fine)
        reason = (
            explain(case, deadline, tell) if explained else Explained(None, region.error, region.error, 0)
        )
        faults.append(_fault(walk, case, region, reason, wanted, before, region in mild))
    order = {n.name: i for i, n in enumerate(b.steps)}
    faults.sort(key=lambda f: order.get(f.target_node, -1))
    notes = [f"{n}: {reason}" for n, reason in state.failed.items() if "before it" not in reason][:5]
    if len(x[next(iter(x))]) < len(next(iter(source_inputs.values()))):
        notes.append(f"{len(next(iter(x.values())))} rows were used, so that activations fit into memory")
    count = len(next(iter(x.values())))
    runs = sum(n.work / max(1, count * len(n.steps)) for n in (a, b))
    return Found(
        faults,
        _flips(wanted, before),
        count,
        len(state.matches),
        len(b.steps),
        tolerance,
        typical,
        notes,
        runs,
    )


def _fault(
    walk: Walk,
    case: Case,
    region: Region,
    reason: Explained,
    wanted: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray],
    mild: bool,
) -> Fault:
    proposal = reason.proposal
    node = proposal.node if proposal else (region.target_nodes[0] if region.target_nodes else "")
    operator = next((n for n in walk.target.steps if n.name == node), None)
    if proposal:
        words = (proposal.fault, proposal.kind, proposal.detail, proposal.source_node)
    elif mild:
        words = ("precision", "rounding", f"{node}: a small difference that nothing explains", "")
    else:
        words = (
            "unexplained",
            "unexplained",
            f"{', '.join(region.target_nodes[:4])}: nothing tried explains it",
            "",
        )
    right = {region.target: turned(walk.known.values[region.source], region.order, region.shape)}
    flips = None
    if (total := _flips(wanted, before)) is not None:
        try:
            patched = _answers(walk.target, {**walk.target_inputs, **right})
        except DlasError:
            patched = before
        left = _flips(wanted, patched)
        flips = total - left if left is not None else None
    reproducer, samples = _reproducer(case, node)
    return Fault(
        *words[:3],
        node,
        operator.op_type if operator is not None else "",
        words[3] or (region.source_nodes[-1] if region.source_nodes else ""),
        region.target,
        reason.before,
        reason.after,
        flips,
        upstream_hint(words[0], words[1], node, case),
        reason.trials,
        reproducer,
        samples,
        proposal.change if proposal else None,
    )


def _mild(walk: Walk, state: State, regions: list[Region], fine: float) -> list[Region]:
    """Tensors that agree, but not as closely as another order of summation would explain."""
    taken = {r.target for r in regions}
    found = []
    for name, match in state.matches.items():
        if (
            match.error <= fine
            or name in taken
            or not math.isfinite(match.error)
            or name in walk.target_inputs
        ):
            continue
        known = (state.matches.keys() | walk.target_inputs.keys()) - {name}
        done = ({m.source for m in state.matches.values()} | walk.source_inputs.keys()) - {match.source}
        shape = state.values[name].shape[1:]
        ours = walk.target.between([name], known)
        theirs = walk.source.between([match.source], done)
        found.append(
            Region(
                name,
                match.source,
                match.order,
                tuple(shape),
                tuple(str(n.name) for n in ours),
                tuple(str(n.name) for n in theirs),
                match.error,
            )
        )
    return found


def _paired(source: Network, target: Network) -> dict[str, str]:
    if set(source.outputs) == set(target.outputs):
        return {name: name for name in target.outputs}
    if len(target.outputs) < len(source.outputs):
        raise ModelError(
            f"the target has {len(target.outputs)} outputs, the source {len(source.outputs)}",
            "compare networks with the same outputs",
        )
    return dict(zip(target.outputs, source.outputs, strict=False))  # surplus outputs stand for nothing


def tolerated(*graphs: ir.Model) -> float:
    """Relative L2 up to which tensors of these networks are taken as the same; ``FLOAT`` where nothing is rounded."""
    types = {n.op_type for g in graphs for n in g.graph}
    if types & {"QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv"}:
        return _INTEGER
    halves = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    weights = {v.dtype for g in graphs for v in g.graph.initializers.values()}
    if "DequantizeLinear" in types:
        return _INTEGER
    return _HALF if weights & halves else FLOAT


def _real_outputs(graph: ir.Model) -> ir.Model:
    """A copy in which outputs that a QuantizeLinear writes are decoded, so that they compare."""
    copy = graph.clone()
    for i, output in enumerate(list(copy.graph.outputs)):
        node = output.producer()
        if node is None or node.op_type != "QuantizeLinear":
            continue
        real = ir.Value(name=f"{output.name}.real", shape=output.shape, type=ir.TensorType(ir.DataType.FLOAT))
        copy.graph.append(
            ir.Node(
                "",
                "DequantizeLinear",
                [output, *node.inputs[1:]],
                outputs=[real],
                name=f"{output.name}.decode",
            )
        )
        copy.graph.outputs[i] = real
    return copy


def _limited(
    a: Network, b: Network, x: Mapping[str, np.ndarray], y: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """As many rows as fit into memory, with an axis for the batch of one."""
    rows = len(next(iter(x.values())))
    largest = 0
    for network in (a, b):
        total = 0
        for node in network.steps:
            for output in node.outputs:
                shape = output.shape
                if shape is not None and all(isinstance(d, int) for d in shape):
                    total += 4 * int(np.prod([int(d) for d in shape], dtype=np.int64))  # type: ignore[arg-type]
        largest = max(largest, total)
    if largest:
        rows = min(rows, max(_LEAST_ROWS, _BYTES // largest))
    return (
        {n: _batched(v[:rows], a, n) for n, v in x.items()},
        {n: _batched(v[:rows], b, n) for n, v in y.items()},
    )


def _batched(rows: np.ndarray, network: Network, name: str) -> np.ndarray:
    value = next(v for v in network.ir.graph.inputs if v.name == name)
    first = value.shape[0] if value.shape is not None and len(value.shape) else 1
    if isinstance(first, int) and first > 1:
        raise UnsupportedError(
            f"input {name!r} takes {first} samples at once",
            "export the network with a batch of one or a free one",
        )
    return np.ascontiguousarray(rows[:, None])


def _refuse_bad_source(walk: Walk) -> None:
    for output in walk.source.outputs:
        if output in walk.pairs.values() and output not in walk.known.values:
            raise ModelError(
                f"the source's own output {output!r} is not finite or no floating point",
                "localisation needs a source whose answers are numbers",
            )


def _refuse_another_network(
    walk: Walk, state: State, regions: list[Region], deadline: float, tell: Tell
) -> None:
    """Raise where hardly anything agrees and only other weights would change that.

    One mistake that is made at every layer, such as kernels turned round, is a fault of the conversion all the same.
    """
    begun = monotonic()
    for number, region in enumerate(regions, 1):
        tell(f"hardly anything agrees: look for a reason at place {number} of {len(regions)}")
        until = min(deadline, begun + _DOUBTED_S * number / len(regions))
        found = explain(Case(walk, state, region, walk.tolerance), until, tell)
        if found.proposal is not None and _telling(found.proposal):
            return
        if found.proposal is None and found.trials < _TRIED and monotonic() > until:
            return  # there was no time to tell
    raise ModelError(
        "the networks do not correspond: hardly a layer of the target gives what a layer of the source gives, on the "
        "same samples, and no change but other weights makes it so",
        "give a conversion of this very source, and samples of the right kind",
    )


def _telling(proposal: Proposal) -> bool:
    """Whether a change says what went wrong, and does not just put the source's weights or layers in place."""
    copied = _ANYTHING.intersection(proposal.kind.split(" and ")) or WEIGHTED.intersection(
        proposal.kind.split()
    )
    return proposal.fault != "unexplained" and not copied


def _answers(network: Network, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    try:
        return network.compute(network.outputs, given)
    except DlasError:
        return {}


def _flips(wanted: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray]) -> int | None:
    if not wanted:
        return None
    name = next(iter(wanted))
    right = wanted[name].reshape(len(wanted[name]), -1)
    got = answers.get(name)
    if not is_classifier(right):
        return None
    if got is None or got.reshape(len(got), -1).shape != right.shape:
        return len(right)
    return int((right.argmax(1) != got.reshape(len(got), -1).argmax(1)).sum())


def _reproducer(case: Case, node: str) -> tuple[bytes, dict[str, np.ndarray]]:
    """The region as an ONNX file of its own where it is small enough, with one sample and what it should give."""
    if not case.nodes or len(case.nodes) > _REPRODUCER:
        return b"", {}
    proto = ir.to_proto(case.small)
    proto.producer_name = "dlas"
    proto.graph.name = f"reproducer of {node}"
    samples = {f"input:{name}": values[0] for name, values in case.given.items()}
    samples["expected"] = case.wanted[0]
    output = proto.graph.output[0]
    if not output.type.HasField("tensor_type"):
        kind = onnx.helper.np_dtype_to_tensor_dtype(case.wanted.dtype)
        output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, kind, None))
    with contextlib.suppress(onnx.shape_inference.InferenceError):
        proto = onnx.shape_inference.infer_shapes(proto)
    if not (kind := proto.graph.output[0].type.tensor_type).HasField("shape"):
        kind.shape.SetInParent()  # the checker of onnx wants one
        for size in case.wanted.shape[1:]:
            kind.shape.dim.add(dim_value=size)
    return proto.SerializeToString(), samples


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


__all__ = ["Fault", "Found", "find", "named"]
