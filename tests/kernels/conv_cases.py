"""Random convolutions, and one node by one kernel on every instruction set and number of threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from onnx_oracle import near

from dlas.kernels.extension import isa_levels
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.reference.conv import conv2d
from dlas.kernels.single import Bench


def acted(y: np.ndarray, act: int, low: float, high: float) -> np.ndarray:
    """Activation number 0 (none), 1 (Relu), 2 (Clip) or 4 (Sigmoid) of ``y``."""
    if act == 1:
        return np.maximum(y, 0)
    if act == 2:
        return np.clip(y, np.float32(low), np.float32(high))
    if act == 4:
        return (1 / (1 + np.exp(-y.astype(np.float64)))).astype(np.float32)
    return y


def same_for_all_machines(
    name: str,
    node: Node,
    arrays: Sequence[np.ndarray | None],
    expected: Sequence[np.ndarray | None],
    tolerance: float = 2e-5,
) -> None:
    """Kernel ``name`` gives ``expected`` on every instruction set, and the same bits with two threads."""
    for isa in isa_levels():
        found = [Bench(kernels.get(name)(), node, arrays, context).run() for context in _contexts(isa)]
        for one, two, right in zip(*found, expected, strict=True):
            if right is not None:
                near(one, right, tolerance)
                assert one.tobytes() == two.tobytes()


def random_convolutions(
    rng: np.random.Generator, count: int, *, sparsity: float = 0.0
) -> Iterator[tuple[Node, list[np.ndarray | None], np.ndarray]]:
    """``count`` convolutions: node, inputs and what comes out."""
    while count:
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        per_group, per_filter = int(rng.integers(1, 7)), int(rng.integers(1, 20))
        kernel = [int(v) for v in rng.integers(1, 5, 2)]
        if rng.random() < 0.25:
            kernel = [1, int(rng.choice([1, 5]))]
        strides, dilations = ([int(v) for v in rng.integers(1, 6 - t, 2)] for t in (0, 2))
        if rng.random() < 0.5:
            strides = [1, 1]
        pads = [int(v) for v in rng.integers(0, 3, 4)]
        size = [int(v) for v in rng.integers(1, 20, 2)]
        out = [
            (size[a] + pads[a] + pads[2 + a] - (kernel[a] - 1) * dilations[a] - 1) // strides[a] + 1
            for a in (0, 1)
        ]
        if min(out) < 1:
            continue
        count -= 1
        x = _normal(rng, int(rng.integers(1, 4)), groups * per_group, *size)
        w = _normal(rng, groups * per_filter, per_group, *kernel)
        if sparsity:
            w[rng.random(w.shape) < sparsity] = 0
        b = _normal(rng, groups * per_filter) if rng.random() < 0.7 else None
        window = {"strides": strides, "pads": pads, "dilations": dilations}
        y = conv2d(x, w, b, **window, groups=groups)
        residual = _normal(rng, *y.shape) if rng.random() < 0.3 else None
        act = int(rng.choice([0, 1, 2, 4]))
        attributes = {**window, "group": groups, "kernel_shape": kernel}
        node = Node(
            "Conv",
            "n",
            {**attributes, "act": act, "act_low": -0.5, "act_high": 0.7},
            (
                Operand(x.shape),
                Operand.of(w),
                None if b is None else Operand.of(b),
                None if residual is None else Operand(residual.shape),
            ),
            (Operand(y.shape),),
        )
        expected = acted(y if residual is None else y + residual, act, -0.5, 0.7)
        yield node, [x, w, b, residual], expected


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


_made: dict[tuple[str, int], Context] = {}


def _contexts(isa: str) -> list[Context]:
    for threads in (1, 2):
        if (isa, threads) not in _made:
            _made[isa, threads] = Context.here(threads, isa)
    return [_made[isa, 1], _made[isa, 2]]
