"""Put a value in place of a tensor of the target for a moment, and see whether the operators behind it agree again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from dlas.core.errors import DlasError
from dlas.verify.localize.alignment import Candidates, Match, Order, orders, relative, squeezed, turned
from dlas.verify.localize.network import Network

ROWS = 4
CONFIRMED = 4  # tensors that agree behind a value: more than a chance or a way back to where it came from
_AHEAD = 12  # operators behind a region in which agreement must come back
_FAR = 60  # operators behind a Transpose that are looked at

Matches = Mapping[str, Match]
Values = Mapping[str, np.ndarray]


class Trial:
    """Tries values on a few rows.

    Args:
        source: The network that is right.
        target: The one in question.
        known: All tensors of the source.
        tolerance: Relative L2 up to which two tensors are the same.
        pairs: Names of the source's outputs by those of the target's.
    """

    def __init__(
        self,
        source: Network,
        target: Network,
        known: Candidates,
        tolerance: float,
        pairs: Mapping[str, str],
    ) -> None:
        self.source, self.target, self.known = source, target, known
        self.tolerance, self.pairs = tolerance, pairs
        self._below: dict[str, set[str]] = {}

    def agreement(self, u: str, match: Match, values: np.ndarray, state: Values) -> int:
        """How many tensors behind ``u`` agree with ones behind the source's tensor once it is put right.

        A single one says little: a value that belongs further up is on its way there soon. ``CONFIRMED`` is as good
        as more, and what is given where an output of the network is reached.
        """
        if self.pairs.get(u) == match.source and u in self.target.outputs:
            return CONFIRMED
        below = self.descendants(match.source)
        count = 0
        for name, result, rest in self._behind(u, values, state, _AHEAD):
            found = self._of(name, result, below)
            if found is None:
                continue
            count += 1
            if count >= CONFIRMED or (name in self.target.outputs and self.pairs.get(name) == found[0]):
                return CONFIRMED
            rest[name] = found[1]
        return count

    def misturned(self, first: ir.Node, matches: Matches, state: Values) -> tuple[Match, np.ndarray] | None:
        """A Transpose before ``first`` that is to blame for it.

        Tensors count as the same in any order of their axes, so one that a Transpose has turned wrongly goes on as
        right until an operator takes the order to be another one. Where another order behind that Transpose makes
        this operator agree, and all between that agreed still do, it is the one at fault.
        """
        for name in self.target.fed(first):
            origin = self._origin(name, matches)
            if origin is None:
                continue
            u, ways = origin
            present = state[u]
            source = matches[u].source
            right = self.known.values[source]
            for way in ways:
                values = turned(right, way, present.shape[1:]).astype(present.dtype)
                if self._holds(u, values, first, matches, state):
                    return Match(u, source, way, relative(values, present)), values
        return None

    def lacking(self, first: ir.Node, matches: Matches, state: Values) -> tuple[Match, np.ndarray] | None:
        """A tensor that ``first`` and others read which should be the source's next one.

        An operator that is missing shows at every reader; it is one fault all the same.
        """
        done = {m.source for m in matches.values()}
        for name in self.target.fed(first):
            if name not in matches or self.target.maker(name) is None or len(self.target.readers(name)) < 2:
                continue
            order, present = matches[name].order, state[name]
            for node in self.source.readers(matches[name].source):
                for other in (str(o.name) for o in node.outputs if o.name):
                    if other in done or other not in self.known.values:
                        continue
                    right = self.known.values[other]
                    if right.shape != self.known.values[matches[name].source].shape:
                        continue
                    values = turned(right, order, present.shape[1:]).astype(present.dtype)
                    if self._holds(name, values, first, matches, state):
                        return Match(name, other, order, relative(values, present)), values
        return None

    def _origin(self, name: str, matches: Matches) -> tuple[str, list[Order]] | None:
        """The result of the Transpose that gave a tensor its order of axes, and the other orders it could have."""
        seen = set[str]()
        while name in matches and name not in seen:
            seen.add(name)
            order = matches[name].order
            maker = self.target.maker(name)
            if maker is None:
                return None
            fed = [n for n in self.target.fed(maker) if n in matches]
            if maker.op_type == "Transpose" and fed:
                source = squeezed(self.known.values[matches[name].source])
                target = tuple(source.shape[1:][a] for a in order)
                ways = [w for w in orders(source.shape[1:], target) if w != order]
                # What went in is the likeliest.
                return name, sorted(ways, key=lambda w: w != matches[fed[0]].order)
            name = next((n for n in fed if matches[n].order == order), "")
        return None

    def _holds(self, u: str, values: np.ndarray, first: ir.Node, matches: Matches, state: Values) -> bool:
        """Whether ``first`` agrees, and all behind ``u`` that agreed before, with ``values`` in its place."""
        wanted = {str(o.name) for o in first.outputs if o.name}
        last = self.target.position[next(iter(wanted))]
        below = self.descendants(matches[u].source)
        for name, result, rest in self._behind(u, values, state, _FAR):
            if self.target.position[name] > last and not wanted:
                return True
            if name in wanted:
                found = self._of(name, result, below)
                wanted.discard(name)
            elif name in matches:
                found = self._of(name, result, {matches[name].source})
            else:
                continue
            if found is None:
                return False
            rest[name] = found[1]
        return not wanted

    def _behind(
        self, u: str, values: np.ndarray, state: Values, most: int
    ) -> Iterator[tuple[str, np.ndarray, dict[str, np.ndarray]]]:
        """Results that depend on ``u``, in the order of execution; what is put into the last item is gone on with."""
        known: dict[str, np.ndarray] = {u: values[:ROWS]}
        for node in self.target.steps[self.target.position[u] + 1 :]:
            fed = self.target.fed(node)
            if not known.keys() & set(fed):
                continue
            most -= 1
            if most < 0:
                return
            given = {n: known[n] if n in known else state[n][:ROWS] for n in fed if n in known or n in state}
            if len(given) < len(fed):
                continue
            try:
                found = self.target.run(node, given)
            except DlasError:
                continue
            for name, result in found.items():
                known[name] = result
                yield name, result, known

    def _of(self, name: str, result: np.ndarray, among: Iterable[str]) -> tuple[str, np.ndarray] | None:
        """The source's tensor among some that a result agrees with, and its values in the result's shape."""
        if not np.issubdtype(result.dtype, np.floating) or not np.isfinite(result).all():
            return None
        small = squeezed(result)
        for other in self.known.of_shape(small.shape[1:]):
            if other not in among:
                continue
            right = self.known.values[other][: len(small)]
            wanted = squeezed(right)
            if not wanted.any():
                continue
            for way in orders(wanted.shape[1:], small.shape[1:]):
                if relative(wanted.transpose(0, *(a + 1 for a in way)), small) <= self.tolerance:
                    return other, turned(right, way, result.shape[1:]).astype(result.dtype)
        return None

    def descendants(self, tensor: str) -> set[str]:
        """Tensors of the source that depend on one of it."""
        if tensor not in self._below:
            found, left = set[str](), [tensor]
            while left:
                for node in self.source.readers(left.pop()):
                    fresh = {str(o.name) for o in node.outputs if o.name} - found
                    found |= fresh
                    left += fresh
            self._below[tensor] = found
        return self._below[tensor]
