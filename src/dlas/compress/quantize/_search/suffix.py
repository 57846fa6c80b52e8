"""Runs of a network of which only a few weights change: what does not depend on them is computed once.

The part of the graph that depends on the changing weights becomes a network of its own. Its inputs are the weights
and the values that enter it, which are kept for all calibration rows: as codes of 8 bits where the graph rounds them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir

from dlas.compress.calibration import open_session
from dlas.compress.quantize._int8.scheme import constant
from dlas.core.errors import DataError
from dlas.graph.reference import explained

Kept = dict[str, list[np.ndarray]]
"""Values by name, one array per part of the rows."""

Running = Callable[[Kept, Mapping[str, np.ndarray]], Kept]
"""Given kept values and arrays that are the same for all rows, the outputs."""


class Rows:
    """The calibration rows in parts of one run each.

    Args:
        name: Name of the network's one input.
        rows: ``(N, ...)`` in the network's form.
        batch: Rows per run.
        fixed: Rows that the network insists on, or 0; the last part then repeats rows.
        threads: Runs at a time. The answers do not depend on it.
    """

    def __init__(self, name: str, rows: np.ndarray, batch: int, fixed: int = 0, threads: int = 1) -> None:
        self.name, self.rows, self.threads = name, rows, threads
        step = fixed or batch
        self.parts = [rows[start : start + step] for start in range(0, len(rows), step)]
        if fixed:
            self.parts = [np.resize(part, (fixed, *rows.shape[1:])) for part in self.parts]

    def __len__(self) -> int:
        return len(self.rows)

    def first(self) -> Rows:
        """The first part alone."""
        return Rows(self.name, self.parts[0], len(self.parts[0]))

    def joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Values with one row per calibration row, put together."""
        return np.concatenate(parts)[: len(self.rows)]

    def opened(self, graph: ir.Model, outputs: Sequence[str]) -> Running:
        """A part of a network made runnable; its inputs are the network's own, kept values, or arrays for all rows.

        What it gives raises DataError where the network fails on the rows.
        """
        session = open_session(graph, outputs)
        named = {str(v.name) for v in graph.graph.inputs}

        def run(kept: Kept, same: Mapping[str, np.ndarray]) -> Kept:
            given = {
                name: values for name, values in {self.name: self.parts, **kept}.items() if name in named
            }

            def one(part: int) -> list[np.ndarray]:
                try:
                    feeds = {name: values[part] for name, values in given.items()}
                    return session.run(list(outputs), {**feeds, **same})  # type: ignore[return-value]
                except Exception as error:
                    raise DataError(
                        f"the network cannot process the calibration rows: {explained(error, 'them').message}",
                        "check that the rows fit the network",
                    ) from error

            if self.threads > 1:
                with ThreadPoolExecutor(self.threads) as pool:
                    found = list(pool.map(one, range(len(self.parts))))
            else:
                found = [one(part) for part in range(len(self.parts))]
            return {name: [values[i] for values in found] for i, name in enumerate(outputs)}

        return run


def dependent(graph: ir.Graph, layers: Collection[ir.Node]) -> set[ir.Node]:
    """The nodes whose results depend on those of ``layers``, and these; nodes are in topological order."""
    found = set(layers)
    for node in graph:
        if any(value is not None and value.producer() in found for value in node.inputs):
            found.add(node)
    return found


def entering(graph: ir.Graph, part: Collection[ir.Node]) -> list[ir.Value]:
    """What a part of a graph reads of the rest of it, in a fixed order; constants do not count.

    Codes where a DequantizeLinear makes the value of them: they are the same numbers in a quarter of the memory.
    """
    found: dict[ir.Value, None] = {}
    for node in graph:
        for value in node.inputs if node in part else ():
            if value is None or constant(value) is not None or value.producer() in part:
                continue
            maker = value.producer()
            codes = maker.inputs[0] if maker is not None and maker.op_type == "DequantizeLinear" else None
            if codes is None or constant(codes) is None:
                found.setdefault(value if codes is None else codes)
    return list(found)


def part_of(
    graph: ir.Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], free: Sequence[str]
) -> ir.Model:
    """A copy of what lies between values; the initializers named in ``free`` become inputs too."""
    part = ir.convenience.extract(graph.graph, inputs, outputs)
    for name in free:
        value = part.initializers.pop(name)
        value.const_value = None
        part.inputs.append(value)
    return ir.Model(part, ir_version=graph.ir_version)
