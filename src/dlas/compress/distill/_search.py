"""How many channels a student keeps: the widths that fit a budget and lose least of what matters.

Four ways to the same budget, so that they can be compared. ``stairs``: from the full network one stair down after the
other, always the one that loses least score per cost saved. ``rounded``, as published: channels leave by their score
over the whole network until the predicted cost fits; then every group is widened to the last channel of its stair,
which costs nothing. After either the whole network is measured; while it is over the budget it goes down more stairs,
and what the last one left of the budget is spent again. ``fisher``: the channels that are left by score, not widened.
``width``: the same share of every group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dlas.compress.distill._table import Table, Widths
from dlas.core.errors import OptionError

SEARCHES = ("stairs", "rounded", "fisher", "width")
_ROUNDS = 3
_TRIES = 40
_HEADROOM = 0.995


@dataclass(frozen=True)
class Found:
    """Where a search ended.

    Attributes:
        widths: Channels kept, per group.
        predicted: Cost of the layers by the table, plus what the table does not cover.
        measured: Cost of the network as a whole.
        pruned: Widths before they were widened to the ends of their stairs; the same where nothing was.
        tries: Networks that were measured.
    """

    widths: Widths
    predicted: float
    measured: float
    pruned: Widths
    tries: int


class Search:
    """Finds widths for a budget.

    Args:
        table: What layers cost.
        scores: Per group, what each channel is worth, ``(channels,) float64``.
        whole: Measures the network of given widths.
        tolerance: Two costs are on one stair if the larger is at most this share above the smaller.
        slack: Share by which the measured cost may exceed the budget.
        least: Channels that stay in every group at least.
        tell: Receives one line per network measured.
    """

    def __init__(
        self,
        table: Table,
        scores: Sequence[np.ndarray],
        whole: Callable[[Widths], float],
        *,
        tolerance: float = 0.02,
        slack: float = 0.02,
        least: int = 1,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.table, self._whole, self._tell = table, whole, tell
        self.tolerance, self.slack = tolerance, slack
        self._measured: dict[Widths, float] = {}
        self.full = table.full
        self.least: Widths = tuple(min(least, size) for size in self.full)
        # What the weakest channels of a group are worth together: entry k is the price of losing k of them.
        self._worth = [np.concatenate([[0.0], np.cumsum(np.sort(s))]) for s in scores]
        self.alone = table.total(self.full)
        self._rest = max(0.0, self.whole(self.full) - self.alone)
        self._factor = (self.whole(self.full) - self._rest) / self.alone if self.alone else 1.0

    def whole(self, widths: Widths) -> float:
        """Measured cost of the network of given widths."""
        if widths not in self._measured:
            self._measured[widths] = float(self._whole(widths))
        return self._measured[widths]

    def predicted(self, widths: Widths) -> float:
        """Cost by the table, and what the full network takes beyond it; less where it takes less than its layers."""
        return self.table.total(widths) * self._factor + self._rest

    def lost(self, widths: Widths) -> float:
        """Score that the channels take with them which are gone."""
        return float(
            sum(w[size - kept] for w, size, kept in zip(self._worth, self.full, widths, strict=True))
        )

    @property
    def score(self) -> float:
        """Score of all channels together."""
        return float(sum(w[-1] for w in self._worth))

    def run(self, budget: float, how: str) -> Found:
        """The widths that fit the budget.

        Raises:
            OptionError: Not even the narrowest network does; says what that one costs.
        """
        floor = self.whole(self.least)
        if floor > budget * (1 + self.slack):
            raise OptionError(
                "budget",
                f"{budget:.4g} {self.table.costs.unit}",
                f"at least {floor:.4g} {self.table.costs.unit}, which the network takes with "
                f"{min(self.least)} channel(s) in every group",
            )
        if how in ("rounded", "stairs"):
            return self._down(budget, how)
        return self._within(budget, self._by_score if how == "fisher" else self._by_share)

    def _within(self, budget: float, choose: Callable[[float], Widths]) -> Found:
        """Ask for less and less until the measured network fits."""
        aim, widths = budget, self.least
        for _ in range(_TRIES):
            widths = choose(aim)
            measured = self.whole(widths)
            self._tell(f"{self._text(measured)} measured, {self._text(self.predicted(widths))} predicted")
            if measured <= budget * (1 + self.slack) or widths == self.least:
                break
            aim *= min(budget / measured, 1.0) * _HEADROOM
        else:
            widths = self.least
        return self._found(widths, widths)

    def _down(self, budget: float, how: str) -> Found:
        """Widen to the ends of the stairs, then stairs down until the measured network fits."""
        pruned = self._by_score(budget) if how == "rounded" else self.full
        widths = self._widened(pruned)
        while True:
            if self.predicted(widths) <= budget * (1 + self.slack) or how == "rounded":
                measured = self.whole(widths)
                self._tell(f"{self._text(measured)} measured, {self._text(self.predicted(widths))} predicted")
                if measured <= budget * (1 + self.slack):
                    return self._found(self._filled(widths, budget), pruned)
            widths = self._stair_down(widths) or self._one_fewer(widths)

    def _filled(self, widths: Widths, budget: float) -> Widths:
        """What the last, coarse stair left of the budget spent again, on the channels that are worth most for it."""
        factor = self.whole(widths) / max(self.predicted(widths), 1e-12)
        refused: set[Widths] = set()
        while True:
            wider = [w for w in self._stairs_up(widths) if w not in refused]
            wider = [w for w in wider if self.predicted(w) * factor <= budget]
            if not wider:
                return widths
            now = self.predicted(widths)
            best = max(
                wider,
                key=lambda w: (self.lost(widths) - self.lost(w)) / max(self.predicted(w) - now, 1e-9 * now),
            )
            if self.whole(best) <= budget * (1 + self.slack):
                widths = best
                self._tell(f"{self._text(self.whole(best))} measured, what was left is used")
            else:
                refused.add(best)

    def _stairs_up(self, widths: Widths) -> list[Widths]:
        """For each group, the last channel of its next higher stair."""
        found = []
        for at, kept in enumerate(widths):
            if kept < self.full[at]:
                bound = self.table.around(at, _with(widths, at, kept + 1)) * (1 + self.tolerance)
                wider = (_with(widths, at, n) for n in range(self.full[at], kept, -1))
                found.append(next(w for w in wider if self.table.around(at, w) <= bound))
        return found

    def _found(self, widths: Widths, pruned: Widths) -> Found:
        return Found(widths, self.predicted(widths), self.whole(widths), pruned, len(self._measured))

    def _by_score(self, budget: float) -> Widths:
        """The fewest channels gone, least score first over the whole network, whose predicted cost fits."""
        places, prices = [], []
        for at, worth in enumerate(self._worth):
            free = self.full[at] - self.least[at]
            places += [at] * free
            prices += np.diff(worth)[:free].tolist()
        order = np.argsort(np.asarray(prices), kind="stable")
        groups = np.asarray(places, np.int64)[order]

        def after(count: int) -> Widths:
            gone = np.bincount(groups[:count], minlength=len(self.full))
            return tuple(int(size - n) for size, n in zip(self.full, gone, strict=True))

        return self._fewest(after, len(groups), budget)

    def _by_share(self, budget: float) -> Widths:
        """The largest share of every group whose predicted cost fits."""
        steps = max(self.full, default=1)

        def after(count: int) -> Widths:
            kept = (-(-size * (steps - count) // steps) for size in self.full)
            return tuple(max(n, k) for n, k in zip(self.least, kept, strict=True))

        return self._fewest(after, steps, budget)

    def _fewest(self, after: Callable[[int], Widths], most: int, budget: float) -> Widths:
        low, high = -1, most
        while high - low > 1:
            middle = (low + high) // 2
            if self.predicted(after(middle)) <= budget:
                high = middle
            else:
                low = middle
        return after(high)

    def _widened(self, widths: Widths) -> Widths:
        """Every group at the last channel of its stair; again while one group's stair moves another's."""
        for _ in range(_ROUNDS):
            before = widths
            for at in range(len(widths)):
                bound = self.table.around(at, widths) * (1 + self.tolerance)
                for kept in range(self.full[at], widths[at], -1):
                    wider = _with(widths, at, kept)
                    if self.table.around(at, wider) <= bound:
                        widths = wider
                        break
            if widths == before:
                break
        return widths

    def _stair_down(self, widths: Widths) -> Widths | None:
        """One group at the end of its next lower stair: the one that loses least score per cost saved."""
        best: tuple[float, Widths] | None = None
        for at, kept in enumerate(widths):
            now = self.table.around(at, widths)
            for fewer in range(kept - 1, self.least[at] - 1, -1):
                lower = _with(widths, at, fewer)
                saved = now - self.table.around(at, lower)
                if saved > now * self.tolerance / (1 + self.tolerance):
                    price = (self.lost(lower) - self.lost(widths)) / saved
                    if best is None or price < best[0]:
                        best = (price, lower)
                    break
        return None if best is None else best[1]

    def _one_fewer(self, widths: Widths) -> Widths:
        """Without the channel of the least score, where the table knows no lower stair."""
        prices = {
            at: w[size - kept + 1] - w[size - kept]
            for at, (w, size, kept) in enumerate(zip(self._worth, self.full, widths, strict=True))
            if kept > self.least[at]
        }
        at = min(prices, key=lambda at: prices[at])  # the narrowest network fits: there is one to take away
        return _with(widths, at, widths[at] - 1)

    def _text(self, cost: float) -> str:
        return f"{cost:.4g} {self.table.costs.unit}"


def _with(widths: Widths, at: int, kept: int) -> Widths:
    return (*widths[:at], kept, *widths[at + 1 :])
