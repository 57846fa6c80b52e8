"""The rows that activations are calibrated on, and the values they take inside a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.compress.calibration import calibration_rows, open_session
from dlas.compress.quantize._activations.network import Place, places
from dlas.core.errors import DataError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.data.preprocess import iterate
from dlas.graph.model import Model
from dlas.graph.passes import tidy
from dlas.graph.reference import explained


@dataclass(frozen=True)
class Calibration:
    """Training rows, and the values they take inside a network.

    Attributes:
        model: The network they are prepared for.
        data: The rows.
        size: Rows per batch.
    """

    model: Model
    data: Dataset
    size: int

    @classmethod
    def of(cls, model: Model, data: Dataset | None, rows: int, batch: int) -> Calibration:
        """``rows`` training rows at even distances, in batches of ``batch``.

        Raises:
            DataError: There are none, fewer than the network takes at a time, or they do not fit its input.
            UnsupportedError: The network has several inputs.
        """
        chosen = calibration_rows(model, data, rows)
        count = len(chosen)
        shape = model.inputs[0].shape
        fixed = shape[0] if shape and isinstance(shape[0], int) else 0
        if fixed > count:
            raise DataError(
                f"{model.name} takes {fixed} rows at a time, calibration got {count}", "give more rows"
            )
        if fixed:
            chosen = calibration_rows(model, data, count - count % fixed)
        return cls(model, chosen, fixed or batch)

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.data)

    @property
    def spec(self) -> str:
        """Name of the input."""
        return self.model.inputs[0].name

    @property
    def labels(self) -> np.ndarray | None:
        """Of the rows, if they have any."""
        return None if self.data.labels is None else np.asarray(self.data.labels, np.int64)

    def batches(self) -> Iterator[np.ndarray]:
        """The rows as the network takes them."""
        return iterate(self.data, self.model, self.size)

    def values(
        self, graph: ir.Model, found: list[Place], told: Callable[[float], object] | None = None
    ) -> Iterator[list[np.ndarray]]:
        """The values at ``found``, before any quantiser behind them, channels on axis 1, batch by batch.

        Raises:
            DataError: One is not finite, or the network cannot process the rows.
        """
        session = open_session(graph, [p.value for p in found])
        done = 0
        for batch in self.batches():
            seen = _run(session, [p.value for p in found], {self.spec: batch})
            for place, x in zip(found, seen, strict=True):
                if not np.isfinite(x).all():
                    raise DataError(
                        f"calibration: layer {place.layer!r} yields values that are not finite",
                        "check the rows and the network's preprocessing, or the weights of that layer",
                    )
            yield [p.forward(np.asarray(x)) for p, x in zip(found, seen, strict=True)]
            done += len(batch)
            if told is not None:
                told(min(1.0, done / self.count))


def found_in(model: Model, where: str, only: str) -> tuple[ir.Model, list[Place]]:
    """An editable copy of the network and the values to quantise in it; see :func:`~._activations.places`."""
    opset = model.ir.graph.opset_imports.get("", 0)
    if opset < 13:
        raise UnsupportedError(
            f"{model.name} uses ONNX opset {opset}; quantising activations needs 13 or newer",
            "convert it to opset 18 first",
        )
    graph = model.editable()
    tidy(graph)
    return graph, places(graph, model, where, only)


def _run(session: Any, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return session.run(names, feed)
    except Exception as error:
        raise DataError(
            f"the network cannot process the calibration rows: {explained(error, 'them').message}",
            "check that the rows fit the network",
        ) from error
