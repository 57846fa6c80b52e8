"""Random convolutions, and what a kernel must make of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from dlas.kernels.extension import isa_levels, native
from dlas.kernels.kernel import ACTIVATIONS, Context, Kernel, Node, Operand, kernels
from dlas.kernels.reference.conv import conv2d
from dlas.kernels.single import Bench

ISAS = isa_levels() if native() is not None else []
needs_native = pytest.mark.skipif(not ISAS, reason="the native kernels were not built")

_ACTIVATE = {
    0: lambda y: y,
    1: lambda y: np.maximum(y, 0),
    2: lambda y: np.clip(y, -0.5, 0.75),
    3: lambda y: y * np.clip(y / 6 + 0.5, 0, 1),
    4: lambda y: 1 / (1 + np.exp(-y)),
    8: np.tanh,
}


@dataclass(frozen=True)
class Case:
    """A convolution; channels are those of one group."""

    groups: int
    ins: int
    outs: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    batch: int = 1
    bias: bool = True
    residual: bool = False
    act: int = 0

    @property
    def fits(self) -> bool:
        """Whether there is an output."""
        return min(self.output) > 0

    @property
    def output(self) -> tuple[int, int]:
        """Rows and columns."""
        return tuple(
            (self.size[a] + self.pads[a] + self.pads[a + 2] - (self.kernel[a] - 1) * self.dilations[a] - 1)
            // self.strides[a]
            + 1
            for a in (0, 1)
        )  # type: ignore[return-value]

    def arrays(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Input, weights, bias, residual."""
        rng = np.random.default_rng(seed)
        filters = self.groups * self.outs
        made = [
            rng.standard_normal((self.batch, self.groups * self.ins, *self.size)),
            rng.standard_normal((filters, self.ins, *self.kernel)) / np.sqrt(self.ins * np.prod(self.kernel)),
            rng.standard_normal(filters) if self.bias else None,
            rng.standard_normal((self.batch, filters, *self.output)) if self.residual else None,
        ]
        return tuple(None if a is None else a.astype(np.float32) for a in made)  # type: ignore[return-value]

    def node(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, add: np.ndarray | None) -> Node:
        """The node that a network would have."""
        attributes = {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": list(self.pads),
            "group": self.groups,
            "act": self.act,
            "act_low": -0.5,
            "act_high": 0.75,
        }
        inputs: tuple[Operand | None, ...] = (
            Operand(x.shape),
            Operand.of(w),
            None if b is None else Operand.of(b),
        )
        if add is not None:
            inputs = (*inputs, Operand(add.shape))
        return Node("Conv", "conv", attributes, inputs, (Operand((self.batch, len(w), *self.output)),))

    def expected(
        self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, add: np.ndarray | None
    ) -> np.ndarray:
        """By the reference."""
        y = conv2d(
            x, w, b, strides=self.strides, pads=self.pads, dilations=self.dilations, groups=self.groups
        )
        return _ACTIVATE[self.act](y if add is None else y + add)


def random_cases(count: int, seed: int, sizes: Iterator[tuple[int, int, int]], most: int = 14) -> list[Case]:
    """Windows, strides, dilations, pads, batches and endings at random.

    Args:
        count: Cases.
        seed: Of the random numbers.
        sizes: Endless (groups, channels in, channels out) of a group.
        most: Longest side of an input.
    """
    rng = np.random.default_rng(seed)
    found: list[Case] = []
    while len(found) < count:
        kernel = tuple(int(v) for v in rng.choice([1, 2, 3, 3, 3, 5, 7], 2))
        case = Case(
            *next(sizes),
            size=(int(rng.integers(1, most)), int(rng.integers(1, 2 * most))),
            kernel=kernel,
            strides=tuple(int(v) for v in rng.choice([1, 1, 1, 2, 2, 3], 2)),
            dilations=tuple(int(v) for v in rng.choice([1, 1, 1, 2, 3], 2)),
            pads=tuple(int(v) for v in rng.integers(0, 4, 4)),
            batch=int(rng.choice([1, 1, 1, 2, 3])),
            bias=bool(rng.integers(0, 4)),
            residual=bool(rng.integers(0, 3) == 0),
            act=int(rng.choice(list(_ACTIVATE))),
        )
        if case.fits:
            found.append(case)
    return found


def check(name: str, case: Case, isa: str, seed: int = 0) -> None:
    """One kernel on one case: right, and the same with two threads."""
    kernel: Kernel = kernels.get(name)()
    arrays = case.arrays(seed)
    node = case.node(*arrays)
    results = []
    for threads in (1, 2):
        context = context_of(isa, threads)
        bench = Bench(kernel, node, [arrays[0], None, None, arrays[3]][: len(node.inputs)], context)
        results.append(bench.run()[0])
    assert np.array_equal(*results, equal_nan=True), f"{case} on {isa} differs between 1 and 2 threads"
    wanted = case.expected(*arrays)
    assert results[0].shape == wanted.shape
    error = float(np.max(np.abs(results[0] - wanted)))
    assert error <= 2e-5, f"{case} on {isa} is off by {error:.3g}"


_contexts: dict[tuple[str, int], Context] = {}


def context_of(isa: str, threads: int = 1) -> Context:
    """One pool of threads for all tests of a file."""
    if (isa, threads) not in _contexts:
        _contexts[isa, threads] = Context.here(threads, isa)
    return _contexts[isa, threads]


def plain(case: Case, **changes: object) -> Node:
    """The node of a case with some fields changed, for what a kernel refuses."""
    changed = replace(case, **changes)  # type: ignore[arg-type]
    return changed.node(*changed.arrays())


assert set(_ACTIVATE) <= set(ACTIVATIONS.values())
