"""Running single nodes by native kernels in every form, on every instruction set, with one and two threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from dlas.kernels.extension import isa_levels, missing_native
from dlas.kernels.kernel import Context, Kernel, Node, Operand
from dlas.kernels.single import Bench

needs_native = pytest.mark.skipif(bool(missing_native()), reason=missing_native())


def contexts() -> list[tuple[Context, Context]]:
    """One and two threads on each instruction set."""
    return [(Context.here(1, isa), Context.here(2, isa)) for isa in isa_levels()]


def cases_for(shapes: int = 200) -> int:
    """Cases on each instruction set, so that there are ``shapes`` on all of them together."""
    return -(-shapes // (1 if missing_native() else min(3, len(isa_levels()))))


def node_of(
    op: str,
    arrays: Sequence[np.ndarray | None],
    constants: Sequence[int] = (),
    *,
    outputs: Sequence[tuple[tuple[int, ...], str]],
    attributes: Mapping[str, Any] | None = None,
) -> Node:
    """A node whose inputs numbered in ``constants`` are constant."""
    inputs = []
    for index, array in enumerate(arrays):
        if array is None:
            inputs.append(None)
        elif index in constants:
            inputs.append(Operand.of(array))
        else:
            inputs.append(Operand(array.shape, array.dtype.name))
    return Node(op, "one", attributes or {}, tuple(inputs), tuple(Operand(s, d) for s, d in outputs))


def check(
    kernel: Kernel,
    pairs: Sequence[tuple[Context, Context]],
    op: str,
    arrays: Sequence[np.ndarray | None],
    expected: Sequence[np.ndarray],
    constants: Sequence[int] = (),
    *,
    tolerance: float = 2e-6,
    **attributes: Any,
) -> int:
    """Compare every form on every instruction set; returns how many forms were run."""
    outputs = [(e.shape, e.dtype.name) for e in expected]
    node = node_of(op, arrays, constants, outputs=outputs, attributes=attributes)
    runs = 0
    for one, two in pairs:
        assert not kernel.refuses(node, one), kernel.refuses(node, one)
        for form in kernel.forms(node, one):
            assert kernel.cost(node, form, one) > 0
            found = Bench(kernel, node, arrays, one, form).run()
            again = Bench(kernel, node, arrays, two, form).run()
            for y, y2, wanted in zip(found, again, expected, strict=True):
                where = f"{op} {attributes} {[a.shape for a in arrays if a is not None]} {one.isa} {form}"
                assert y.dtype == wanted.dtype, where
                assert y.shape == wanted.shape, where
                assert y.tobytes() == y2.tobytes(), f"threads: {where}"
                _close(y, wanted, tolerance, where)
            runs += 1
    return runs


def _close(y: np.ndarray, wanted: np.ndarray, tolerance: float, where: str) -> None:
    if not tolerance or wanted.dtype.kind != "f":
        np.testing.assert_array_equal(y, wanted, where)
        return
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(y[~finite], wanted[~finite], where)
    scale = max(1.0, float(np.abs(wanted[finite]).max())) if finite.any() else 1.0
    np.testing.assert_allclose(
        y[finite], wanted[finite], rtol=tolerance, atol=tolerance * scale, err_msg=where
    )
