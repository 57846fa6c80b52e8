"""Which paths give the same labels: every pair of them, symmetric, zero on the diagonal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlas.core.statistics import wilson


@dataclass(frozen=True, eq=False)
class LabelMatrix:
    """Label differences between all paths that gave one.

    Attributes:
        names: Paths, the source first.
        counts: ``(n, n) int64`` rows whose labels differ.
        rows: Rows compared.
    """

    names: tuple[str, ...]
    counts: np.ndarray
    rows: int

    @classmethod
    def of(cls, labels: Mapping[str, np.ndarray]) -> LabelMatrix:
        """From the label of every row, ``(N,)``, by path."""
        table = np.stack(list(labels.values()))
        return cls(tuple(labels), (table[:, None] != table[None]).sum(axis=2), table.shape[1])

    def interval(self, i: int, j: int) -> tuple[float, float]:
        """95 % Wilson interval of the share of rows on which two paths differ."""
        return wilson(int(self.counts[i, j]), self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary: shares, and the two ends of their intervals."""
        size = range(len(self.names))
        ends = [[self.interval(i, j) if i != j else (0.0, 0.0) for j in size] for i in size]
        return {
            "paths": list(self.names),
            "rows": self.rows,
            "label_diff": [[int(n) / self.rows for n in row] for row in self.counts],
            "low": [[low for low, _ in row] for row in ends],
            "high": [[high for _, high in row] for row in ends],
        }
