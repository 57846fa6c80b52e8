"""Walk through the target with the source's values in hand, and stop where it does something else.

Every operator of the target is computed from the *source's* values wherever a tensor is known to correspond (isolated
replay), so an error is seen where it is made and nowhere downstream. Tensors that correspond to nothing are no
fault as long as a later one does: fused and rewritten operators have other intermediate results. Where an output of
the network is not reached that way, the earliest operator with known inputs and an unknown result begins a faulty
region. Which tensor of the source its result should have been is found by trying: with the right one put in its
place, the operators behind it agree again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from dlas.core.errors import DlasError
from dlas.core.telling import Tell, now_and_then
from dlas.verify.localize.alignment import Candidates, Match, Order, orders, relative, squeezed, turned
from dlas.verify.localize.network import Network, Values
from dlas.verify.localize.trial import CONFIRMED, ROWS, Trial

_REACH = 6  # operators from the border of a region to its end, on either side
_TRIALS = 80
_LATE = 0.3  # share of the tolerance that is left to agreement behind many operators that agree with nothing
_APART = 2
_MOVING = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape", "Identity", "Flatten", "Squeeze"}
)
_ALIKE = 0.8  # cosine between a wrong result and the right one of the same operator
_NEAR = 2.5  # how many operators more a pair may span that agrees behind
_SAME = 1e-5  # relative L2 up to which a node computes the same alone and after those before it
_ARITHMETIC = 1e-3  # tolerance above which values are rounded too coarsely for that
_FAULTS = 60  # a target with more is another network
# Operators with weights of their own: what the others give follows from what they are fed with.
WEIGHTED = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "LSTM",
        "GRU",
        "RNN",
        "QLinearConv",
        "ConvInteger",
        "MatMulInteger",
    }
)
_REGIONS = 4  # after which it can be told whether the two networks have anything in common
_FEWEST = 3  # operators with weights to tell it by
_FOREIGN = 0.1  # share of them that agree where nothing is in common
_ASTRAY = 0.5  # relative L2 from which a result does not even resemble the right one


@dataclass(frozen=True)
class Region:
    """Operators of the target that do something else than the source.

    Attributes:
        target: Name of the tensor the region ends with, in the target.
        source: Name of the tensor that it should be, in the source.
        order: Axes of the source's tensor in the order of the target's.
        shape: Sizes that the target's tensor should have.
        target_nodes: Names of the operators of the target between known tensors and ``target``.
        source_nodes: The source's, likewise; empty where the target does something that the source does not.
        error: Relative L2 of the result under replay; infinite where it cannot be computed or has another shape.
    """

    target: str
    source: str
    order: Order
    shape: tuple[int, ...]
    target_nodes: tuple[str, ...]
    source_nodes: tuple[str, ...]
    error: float


@dataclass
class State:
    """What is known after a walk.

    Attributes:
        values: Results of the target under replay, ``(rows, ...)``; those of matched tensors are the source's.
        matches: Tensors of the target that agree with one of the source.
        failed: Operators of the target that cannot be computed, with the reason.
    """

    values: dict[str, np.ndarray] = field(default_factory=dict)
    matches: dict[str, Match] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class _Ahead:
    """What the target itself goes on to compute from values that are known.

    Attributes:
        values: Results of nodes that were not walked through yet.
        valid: Tensors whose values under replay are those that ``values`` were computed from.
    """

    values: dict[str, np.ndarray]
    valid: set[str]

    def passed(self, node: ir.Node, replayed: Mapping[str, np.ndarray]) -> None:
        """Compare the results of a node with what it gives under replay."""
        for name in (str(o.name) for o in node.outputs):
            own, other = self.values.pop(name, None), replayed.get(name)
            if own is None or other is None or own.shape != other.shape:
                continue
            if own is other or relative(other, own) <= _SAME:
                self.valid.add(name)


class Walk:
    """Source and target on the same rows.

    Args:
        source: The network that is right.
        target: The one in question.
        source_inputs: ``(rows, ...)`` by name of input.
        target_inputs: The same samples as the target wants them.
        tolerance: Relative L2 up to which two tensors are the same.
        pairs: Names of the source's outputs by those of the target's.
        known: All tensors of the source, where another walk on the same rows has them.
        tell: Receives a line now and then.
    """

    def __init__(
        self,
        source: Network,
        target: Network,
        source_inputs: Values,
        target_inputs: Values,
        tolerance: float,
        pairs: Mapping[str, str],
        known: Candidates | None = None,
        tell: Tell = lambda text: None,
    ) -> None:
        self.source, self.target = source, target
        self._tell = now_and_then(tell)
        self.tolerance, self.pairs = tolerance, dict(pairs)
        self.source_inputs, self.target_inputs = dict(source_inputs), dict(target_inputs)
        self.known = known or Candidates(self._source_values())
        self.trial = Trial(source, target, self.known, tolerance, self.pairs)

    def _source_values(self) -> Iterator[tuple[str, np.ndarray]]:
        yield from self.source_inputs.items()
        if self.tolerance <= _ARITHMETIC:
            self._tell(f"run {len(self.source.steps)} operators of the source")
            if together := self.source.at_once(self.source.steps, self.source_inputs):
                yield from together.items()
                return
        for number, (_, found) in enumerate(self.source.trace(self.source_inputs), 1):
            self._tell(f"run operator {number} of {len(self.source.steps)} of the source")
            yield from found.items()

    def follow(self, forced: Mapping[str, tuple[Match, np.ndarray]]) -> State:
        """Compute the whole target; ``forced`` gives tensors their correspondence and value where they have none."""
        state = State(dict(self.target_inputs))
        for name, values in self.target_inputs.items():
            match = self.known.find(name, values, self.tolerance)
            if match is not None:
                state.matches[name] = match
        return self._on(state, forced, 0)

    def _on(self, state: State, forced: Mapping[str, tuple[Match, np.ndarray]], start: int) -> State:
        """Go on from the node at ``start`` with what is known of those before it."""
        place = self.target.position
        earlier = {str(n.name) for n in self.target.steps[:start]}
        state = State(
            {n: v for n, v in state.values.items() if place.get(n, -1) < start},
            {n: m for n, m in state.matches.items() if place.get(n, -1) < start},
            {n: reason for n, reason in state.failed.items() if n in earlier},
        )
        made = (m for n, m in state.matches.items() if place.get(n, -1) >= 0)
        after = max((self.known.place(m.source) for m in made), default=0)
        ahead = self._ahead(state, forced, start)
        for number, node in enumerate(self.target.steps[start:], start + 1):
            self._tell(f"replay operator {number} of {len(self.target.steps)}")
            after = self._step(node, state, forced, after, ahead)
        return state

    def _ahead(self, state: State, forced: Mapping[str, tuple[Match, np.ndarray]], start: int) -> _Ahead:
        """The nodes from ``start`` on in one run of the target, from what is known before them."""
        given = {**{n: v for n, (_, v) in forced.items()}, **state.values}
        outputs = [(n, {str(o.name) for o in n.outputs if o.name}) for n in self.target.steps[start:]]
        nodes = [node for node, names in outputs if not names <= forced.keys()]
        apart = any(names & forced.keys() and not names <= forced.keys() for _, names in outputs)
        values = {} if apart or self.tolerance > _ARITHMETIC else self.target.at_once(nodes, given)
        return _Ahead(values, set(given))

    def _step(
        self,
        node: ir.Node,
        state: State,
        forced: Mapping[str, tuple[Match, np.ndarray]],
        after: int,
        ahead: _Ahead,
    ) -> int:
        found, matches = self._foreseen(node, state, after, ahead)
        found = found or self._results(node, state)
        for name in (str(o.name) for o in node.outputs if o.name):
            if name in forced:
                match, values = forced[name]
                state.values[name], state.matches[name] = values, match
                continue
            if name not in found:
                continue
            match = matches[name] if name in matches else self._match(name, found[name], after)
            if match is None or (match.error > _LATE * self.tolerance and self._late(name, state)):
                state.values[name] = found[name]
                continue
            state.matches[name] = match
            after = max(after, self.known.place(match.source))
            right = self.known.values[match.source]
            state.values[name] = turned(right, match.order, found[name].shape[1:]).astype(found[name].dtype)
        ahead.passed(node, state.values)
        return after

    def _match(self, name: str, values: np.ndarray, after: int) -> Match | None:
        return self.known.find(name, values, self.tolerance, after, self.pairs.get(name, name))

    def _foreseen(
        self, node: ir.Node, state: State, after: int, ahead: _Ahead
    ) -> tuple[dict[str, np.ndarray], dict[str, Match | None]]:
        """Results of a node in ``ahead``, and what they match, where replaying it by itself would tell the same.

        That is where they agree as closely as arithmetic allows, or where what the node is fed with agrees with
        nothing, so that this is only the wrong result of wrong values. Otherwise nothing.
        """
        fed = self.target.fed(node)
        found = {n: ahead.values[n] for n in (str(o.name) for o in node.outputs) if n in ahead.values}
        if not found or not ahead.valid.issuperset(fed):
            return {}, {}
        wrong = any(n not in state.matches and n not in self.target_inputs for n in fed)
        matches = {n: self._match(n, values, after) for n, values in found.items()}
        same = all(wrong if m is None else m.error <= _SAME for m in matches.values())
        return (found, matches) if same else ({}, {})

    def _late(self, name: str, state: State) -> bool:
        """Whether so many operators before a tensor agree with nothing that a rough agreement may be chance."""
        known = state.matches.keys() | self.target_inputs.keys()
        between = self.target.between([name], known - {name})
        return sum(n.op_type not in _MOVING for n in between) > _APART

    def _results(self, node: ir.Node, state: State) -> dict[str, np.ndarray]:
        if any(name not in state.values for name in self.target.fed(node)):
            state.failed[str(node.name)] = "an operator before it failed"
            return {}
        try:
            return self.target.run(node, state.values)
        except DlasError as error:
            state.failed[str(node.name)] = str(error)
            return {}

    def healthy(self, state: State, output: str) -> bool:
        """Whether an output of the target agrees with its counterpart."""
        match = state.matches.get(output)
        wanted = self.pairs.get(output)
        if wanted is None:
            return True
        if match is not None and match.source == wanted:
            return True
        if output not in state.values or wanted not in self.known.values:
            return False
        # Another tensor of the source may hold the same values.
        return self.known.fit(output, wanted, squeezed(state.values[output]), self.tolerance) is not None

    def regions(
        self, foreign: Callable[[list[Region], State], None] = lambda regions, state: None
    ) -> tuple[list[Region], State]:
        """All faulty regions, in the order of execution, and the state with every one of them put right.

        Args:
            foreign: Called once with what is known so far where hardly anything agrees; it may raise.
        """
        forced: dict[str, tuple[Match, np.ndarray]] = {}
        found: list[Region] = []
        state = self.follow(forced)
        while True:
            bad = [o for o in self.target.outputs if not self.healthy(state, o) and o not in forced]
            told = len(found) == _REGIONS or (not bad and len(found) < _REGIONS)
            if told and self._foreign(found, state):
                foreign(found, state)
            if not bad or len(found) >= _FAULTS:
                order = {name: i for i, name in enumerate(n.name for n in self.target.steps)}
                found.sort(key=lambda r: order.get(r.target_nodes[-1], -1) if r.target_nodes else -1)
                return found, state
            region, match, values = self._region(state, bad)
            forced[region.target] = (match, values)
            found.append(region)
            state = self._on(state, forced, max(0, self.target.position[region.target]))

    def _foreign(self, regions: list[Region], state: State) -> bool:
        """Whether, up to the last region, hardly an operator with weights does what one of the source does."""
        wrong = {r.target: r.error for r in regions}
        last = max((self.target.position[name] for name in wrong), default=-1)
        seen = [n for n in self.target.steps[: last + 1] if n.op_type in WEIGHTED]
        if len(seen) < _FEWEST:
            return False
        alike = 0
        for node in seen:
            own = [str(o.name) for o in node.outputs]
            # A bias may be an operator of its own; the source has nothing that is the result without it.
            sums = [n for name in own for n in self.target.readers(name) if n.op_type == "Add"]
            biased = [str(n.outputs[0].name) for n in sums if len(self.target.fed(n)) == 1]
            names = [*own, *biased]
            alike += any(wrong[n] < _ASTRAY if n in wrong else n in state.matches for n in names)
        return alike <= _FOREIGN * len(seen)

    def _region(self, state: State, bad: list[str]) -> tuple[Region, Match, np.ndarray]:
        unknown = self._unknown(state, bad)
        first = next(
            node
            for node in self.target.steps
            if any(o.name in unknown for o in node.outputs)
            and all(n in state.matches or n in self.target_inputs for n in self.target.fed(node))
        )
        before = self.trial.misturned(first, state.matches, state.values) or self.trial.lacking(
            first, state.matches, state.values
        )
        if before is not None:
            match, values = before
            return self._described(match.target, match, values, state)
        best: tuple[int, Match, np.ndarray] | None = None
        near: tuple[float, Match, np.ndarray] | None = None
        for rank, u, s in self._pairs(first, unknown, state):
            if near is not None and rank > near[0] + _NEAR:
                # Where the next operators are at fault as well, agreement comes back far behind, if at all.
                break
            for match, values in self._placements(u, s, state):
                score = self.trial.agreement(u, match, values, state.values)
                if score >= CONFIRMED:
                    return self._described(u, match, values, state)
                if score > (best[0] if best else 0):
                    best = score, match, values
                if near is None and self._resembles(u, s, values, state):
                    near = rank, match, values
        if best is not None or near is not None:
            _, match, values = best or near  # type: ignore[misc]
            return self._described(match.target, match, values, state)
        output = bad[0]
        match, values = next(self._placements(output, self.pairs[output], state))
        return self._described(output, match, values, state)

    def _unknown(self, state: State, outputs: list[str]) -> set[str]:
        """Tensors without counterpart that ``outputs`` depend on through others of the kind."""
        found, left = set[str](), list(outputs)
        while left:
            name = left.pop()
            if name in found or (name in state.matches and name not in outputs):
                continue
            found.add(name)
            maker = self.target.maker(name)
            left += self.target.fed(maker) if maker is not None else []
        return found

    def _resembles(self, u: str, s: str, right: np.ndarray, state: State) -> bool:
        """Whether ``u`` comes from an operator of the same type as ``s`` and points the same way."""
        maker, producer, present = self.target.maker(u), self.source.maker(s), state.values.get(u)
        if maker is None or producer is None or maker.op_type != producer.op_type:
            return False
        if present is None or present.shape != right.shape or present.dtype.kind != "f":
            return False
        a, b = present.reshape(-1).astype(np.float64), right.reshape(-1).astype(np.float64)
        norms = float(np.sqrt(np.einsum("i,i->", a, a) * np.einsum("i,i->", b, b)))
        return bool(np.isfinite(norms)) and norms > 0 and float(np.einsum("i,i->", a, b)) / norms >= _ALIKE

    def _pairs(self, first: ir.Node, unknown: set[str], state: State) -> list[tuple[float, str, str]]:
        """Tensors that may end the region, with what they may have to be: the smallest regions first."""
        ends = _forward(self.target, [str(o.name) for o in first.outputs if o.name in unknown], unknown)
        begins = [state.matches[n].source for n in self.target.fed(first) if n in state.matches]
        wanted = _forward(self.source, begins or list(self.source.inputs), None)
        done = {m.source for m in state.matches.values()}
        ranked: list[tuple[float, str, str]] = []
        for u, steps in ends.items():
            maker = self.target.maker(u)
            for s, others in wanted.items():
                if s not in self.known.values or (s in done and others > 0):
                    continue
                producer = self.source.maker(s)
                same = maker is not None and producer is not None and maker.op_type == producer.op_type
                final = self.pairs.get(u) == s
                # An operator that should not be there comes before a pair of unlike ones.
                rank = steps + others - (0.6 if same else 0.0) - (0.3 if final else 0.0)
                ranked.append((rank, u, s))
        ranked.sort(key=lambda r: r[0])
        return ranked[:_TRIALS]

    def _placements(self, u: str, s: str, state: State) -> Iterator[tuple[Match, np.ndarray]]:
        """Ways to lay the source's tensor ``s`` out as ``u``; the ones nearest to what the target has come first."""
        right = self.known.values[s]
        small = squeezed(right)
        present = state.values.get(u)
        if present is not None and present.ndim > 1 and np.issubdtype(present.dtype, np.floating):
            mine = squeezed(present)
            ways = list(orders(small.shape[1:], mine.shape[1:]))
            usual = self._usual(u, state, small.ndim - 1)
            scored = sorted(
                ((relative(small[:ROWS].transpose(0, *(a + 1 for a in w)), mine[:ROWS]), w) for w in ways),
                key=lambda e: (e[1] != usual, e[0]),
            )
            for _, way in scored[:6]:
                values = turned(right, way, present.shape[1:]).astype(present.dtype)
                error = relative(values, present)
                yield Match(u, s, way, error), values
            if ways:
                return
        identity = self._usual(u, state, small.ndim - 1) or tuple(range(small.ndim - 1))
        shape = tuple(right.shape[1:])
        if identity != tuple(range(len(identity))) and len(identity) == len(shape) - 1 and shape[0] == 1:
            shape = (1, *(shape[1:][a] for a in identity))
        yield Match(u, s, identity, float("inf")), turned(right, identity, shape)

    def _usual(self, u: str, state: State, rank: int) -> Order | None:
        """The order of axes that the nearest tensor before ``u`` with as many axes has."""
        maker = self.target.maker(u)
        left = list(self.target.fed(maker)) if maker is not None else []
        seen = set[str]()
        while left:
            name = left.pop(0)
            if name in seen:
                continue
            seen.add(name)
            match = state.matches.get(name)
            if match is not None and len(match.order) == rank and not match.ambiguous:
                return match.order
            before = self.target.maker(name)
            if before is not None and len(seen) < 20:
                left += self.target.fed(before)
        return None

    def _described(
        self, u: str, match: Match, values: np.ndarray, state: State
    ) -> tuple[Region, Match, np.ndarray]:
        ours = self.target.between([u], {**state.matches, **dict.fromkeys(self.target_inputs)}.keys() - {u})
        done = {m.source for m in state.matches.values()} | set(self.source_inputs)
        theirs = self.source.between([match.source], done)
        present = state.values.get(u)
        fits = present is not None and present.shape == values.shape
        region = Region(
            u,
            match.source,
            match.order,
            tuple(values.shape[1:]),
            tuple(str(n.name) for n in ours),
            tuple(str(n.name) for n in theirs),
            relative(values, present) if fits and present is not None else float("inf"),
        )
        return region, match, values


def _forward(network: Network, start: list[str], within: set[str] | None) -> dict[str, int]:
    """Tensors reached from ``start`` (at 0) with the number of operators in between, up to a fixed reach."""
    steps = dict.fromkeys(start, 0)
    left = list(start)
    while left:
        name = left.pop(0)
        if steps[name] >= _REACH:
            continue
        for node in network.readers(name):
            for output in (str(o.name) for o in node.outputs if o.name):
                if output not in steps and (within is None or output in within):
                    steps[output] = steps[name] + 1
                    left.append(output)
    return steps
