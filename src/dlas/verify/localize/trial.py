"""Put a value in place of a tensor of the target for a moment, and see whether the operators behind it agree again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from dlas.core.errors import DlasError
from dlas.verify.localize.alignment import Candidates, Match, Order, orders, relative, squeezed, turned
from dlas.verify.localize.network import Network, inputs_of

ROWS = 4
CONFIRMED = 3  # an operator with weights agrees behind a value, or three without: no chance any more
_AHEAD = 12  # operators behind a region in which agreement must come back
_MISSES = 2  # Transposes that are not at fault, on the way to one that is
_FAR = 60  # operators between a Transpose and where it shows

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
        """How well the operators behind ``u`` agree with those behind the source's tensor once it is put right.

        A Relu alone says little: behind a value from elsewhere it gives what stands behind a Relu there. ``CONFIRMED``
        is as good as more, and what is given where an output of the network is reached.
        """
        if self.pairs.get(u) == match.source and u in self.target.outputs:
            return CONFIRMED
        below = self.descendants(match.source)
        count, seen = 0, set[str]()
        for name, result, rest in self._behind(u, values, state, _AHEAD):
            found = self._of(name, result, below)
            if found is None:
                continue
            if found[0] not in seen:  # a Transpose goes on with the same
                count += CONFIRMED if self._weighted(name) else 1
                seen.add(found[0])
            if count >= CONFIRMED or (name in self.target.outputs and self.pairs.get(name) == found[0]):
                return CONFIRMED
            rest[name] = found[1]
        return count

    def _weighted(self, name: str) -> bool:
        """Whether a tensor is made with weights of its own."""
        maker = self.target.maker(name)
        arrays = [self.target.constants.get(n) for n in inputs_of(maker)] if maker is not None else []
        return any(a is not None and a.size > 1 and a.dtype.kind == "f" for a in arrays)

    def misturned(self, first: ir.Node, matches: Matches, state: Values) -> tuple[Match, np.ndarray] | None:
        """A Transpose before ``first`` that is to blame for it.

        Tensors count as the same in any order of their axes, so one that a Transpose has turned wrongly goes on as
        right until an operator takes the order to be another one. Where another order behind that Transpose makes
        this operator agree, and all between that agreed still do, it is the one at fault.
        """
        best: tuple[Match, np.ndarray] | None = None
        misses = 0
        for u in self._turns(first, matches):
            maker = self.target.maker(u)
            before = (
                next((matches[n].order for n in self.target.fed(maker) if n in matches), None)
                if maker
                else None
            )
            found = next(self._other_ways(u, before, first, matches, state), None)
            if found is None:
                misses += 1
                if misses > _MISSES:
                    break
                continue
            if found[0].order == before:
                return found  # without this one all is well; another one would have to turn otherwise
            best = best or found
        return best

    def _other_ways(
        self, u: str, before: Order | None, first: ir.Node, matches: Matches, state: Values
    ) -> Iterator[tuple[Match, np.ndarray]]:
        """Orders of ``u`` with which ``first`` agrees; the one that it had ``before`` is tried first."""
        present, match = state[u], matches[u]
        right = self.known.values[match.source]
        small = squeezed(right).shape[1:]
        ways = [w for w in orders(small, tuple(small[a] for a in match.order)) if w != match.order]
        for way in sorted(ways, key=lambda w: w != before):
            values = turned(right, way, present.shape[1:]).astype(present.dtype)
            if self._holds(u, values, first, matches, state):
                yield Match(u, match.source, way, relative(values, present)), values

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

    def _turns(self, first: ir.Node, matches: Matches) -> Iterator[str]:
        """Results of the Transposes before an operator, the nearest first."""
        left, seen = list(self.target.fed(first)), set[str]()
        while left and len(seen) < _FAR:
            name = left.pop(0)
            maker = self.target.maker(name)
            if name in seen or maker is None:
                continue
            seen.add(name)
            if maker.op_type == "Transpose" and name in matches:
                yield name
            left += self.target.fed(maker)

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
