"""Transposed convolution, blocked and plain, against the reference."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from conv_cases import acted
from onnx_oracle import near

from dlas.kernels.extension import isa_levels, native
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.layout import Layout
from dlas.kernels.reference.conv import conv_transpose2d
from dlas.kernels.single import Bench

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")

_Case = tuple[Node, list[np.ndarray | None], np.ndarray]


def _case(
    shape: tuple[int, ...],
    filters: int,
    kernel: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, ...] = (0, 0, 0, 0),
    *,
    dilations: tuple[int, int] = (1, 1),
    extra: tuple[int, int] = (0, 0),
    groups: int = 1,
    bias: bool = True,
    act: int = 0,
    seed: int = 0,
) -> _Case:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, dtype=np.float32)
    w = rng.standard_normal((shape[1], filters, *kernel), dtype=np.float32)
    w /= np.float32((shape[1] // groups * kernel[0] * kernel[1]) ** 0.5)
    b = rng.standard_normal(filters * groups, dtype=np.float32) if bias else None
    window = {"strides": list(strides), "pads": list(pads), "dilations": list(dilations)}
    y = conv_transpose2d(x, w, b, **window, output_padding=extra, groups=groups)
    attributes = {**window, "group": groups, "kernel_shape": list(kernel), "output_padding": list(extra)}
    attributes |= {"act": act, "act_low": -0.5, "act_high": 0.7}
    operands = (Operand(x.shape), Operand.of(w), None if b is None else Operand.of(b))
    node = Node("ConvTranspose", "n", attributes, operands, (Operand(y.shape),))
    return node, [x, w, b], acted(y, act, -0.5, 0.7)


def _cases(count: int) -> Iterator[_Case]:
    rng = np.random.default_rng(23)

    def two(low: int, high: int) -> tuple[int, int]:
        return int(rng.integers(low, high)), int(rng.integers(low, high))

    while count:
        groups = int(rng.choice([1, 1, 2, 3, 16]))
        per_group, filters = two(1, 20) if groups < 16 else two(1, 3)
        if rng.random() < 0.2:
            groups, per_group, filters = 2, 16, 32
        kernel, strides, dilations = two(1, 5), two(1, 5), two(1, 3)
        pads = tuple(int(v) for v in rng.integers(0, 3, 4))
        extra = tuple(int(rng.integers(0, max(strides[a], dilations[a]))) for a in (0, 1))
        size = two(1, 9) if rng.random() < 0.8 else (1, int(rng.integers(1, 40)))
        full = [
            (size[a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1 + extra[a] - pads[a] - pads[2 + a]
            for a in (0, 1)
        ]
        if min(full) < 1:
            continue
        count -= 1
        yield _case(
            (int(rng.integers(1, 4)), groups * per_group, *size),
            filters,
            kernel,
            strides,
            pads,
            dilations=dilations,
            extra=extra,  # type: ignore[arg-type]
            groups=groups,
            bias=rng.random() < 0.7,
            act=int(rng.choice([0, 1, 2, 4])),
            seed=count,
        )


def _check(case: _Case) -> set[Layout]:
    node, arrays, expected = case
    kernel, layouts = kernels.get("transpose-col2im")(), set()
    for isa in isa_levels():
        for form in kernel.forms(node, _contexts(isa)[0]):
            one, two = (Bench(kernel, node, arrays, c, form).run()[0] for c in _contexts(isa))
            near(one, expected, 2e-5)
            assert one.tobytes() == two.tobytes()
            layouts.add(form.outputs[0])
    return layouts


_made: dict[str, list[Context]] = {}


def _contexts(isa: str) -> list[Context]:
    return _made.setdefault(isa, [Context.here(threads, isa) for threads in (1, 2)])


def test_both_forms_equal_the_reference() -> None:
    blocked = sum(Layout.BLOCKED in _check(case) for case in _cases(200))
    assert blocked > 60


@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "strides", "pads"),
    [
        ((1, 100, 1, 1), 64, (4, 4), (1, 1), (0, 0, 0, 0)),  # a generator's first layer
        ((1, 64, 4, 4), 48, (4, 4), (2, 2), (1, 1, 1, 1)),
        ((1, 64, 8, 8), 3, (4, 4), (2, 2), (1, 1, 1, 1)),  # and its last
        ((1, 33, 5, 70), 17, (2, 2), (2, 2), (0, 0, 0, 0)),  # a decoder's step, and rows of several tiles
        ((2, 8, 3, 3), 4, (9, 9), (4, 4), (2, 2, 3, 3)),
    ],
)
def test_layers_of_known_networks(shape, filters, kernel, strides, pads) -> None:
    assert _check(_case(shape, filters, kernel, strides, pads, act=1)) == {Layout.BLOCKED, Layout.PLAIN}


def test_the_form_follows_the_number_of_channels() -> None:
    kernel, here = kernels.get("transpose-col2im")(), Context.here()
    wide = _case((1, 64, 4, 4), 64, (4, 4), (2, 2), (1, 1, 1, 1))[0]
    narrow = _case((1, 64, 32, 32), 1, (4, 4), (2, 2), (1, 1, 1, 1))[0]
    grouped = _case((1, 6, 4, 4), 1, (4, 4), (2, 2), groups=6)[0]
    assert kernel.forms(wide, here)[0].outputs == (Layout.BLOCKED,)
    assert kernel.forms(narrow, here)[0].outputs == (Layout.PLAIN,)
    assert [form.outputs[0] for form in kernel.forms(grouped, here)] == [Layout.PLAIN]


def test_it_needs_constant_weights() -> None:
    node, _, _ = _case((1, 4, 4, 4), 4, (2, 2))
    loose = Node(
        node.op,
        "n",
        node.attributes,
        (node.operand(0), Operand(node.operand(1).shape)),
        node.outputs,
    )
    assert "constant weights" in kernels.get("transpose-col2im")().refuses(loose, Context.here())
