"""8-bit layers with weights: exactly the integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from int8_cases import ISAS, ROUNDINGS, check, needs_native, random_convolution

from dlas.core.errors import UnsupportedError
from dlas.kernels.kernel import Context, Operand, kernels
from dlas.kernels.single import Bench

pytestmark = needs_native

KERNELS = [("QConv", "int8-conv"), ("QDepthwise", "int8-depthwise"), ("QDense", "int8-dense")]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("op", "kernel"), KERNELS)
def test_equal_to_exact_integers_on_random_shapes(op: str, kernel: str, isa: str):
    for seed in range(200):
        rng = np.random.default_rng([seed, 8])
        node, x, y = random_convolution(rng, op, ROUNDINGS[seed % len(ROUNDINGS)])
        check(kernel, node, [x], y, isa)


@pytest.mark.parametrize(("op", "kernel"), KERNELS)
def test_equal_without_vnni_on_the_best_instruction_set(op: str, kernel: str):
    for seed in range(100):
        rng = np.random.default_rng([seed, 9])
        node, x, y = random_convolution(rng, op, ROUNDINGS[seed % len(ROUNDINGS)])
        check(kernel, replace(node, attributes={**node.attributes, "vnni": 0}), [x], y, ISAS[0])


@pytest.mark.skipif("x86-64-v4" not in ISAS, reason="only the widest instruction set has tiles")
@pytest.mark.parametrize(("op", "kernel"), [KERNELS[0], KERNELS[2]])
def test_tiles_of_amx_as_a_model_of_their_instructions(op: str, kernel: str):
    for seed in range(100):
        rng = np.random.default_rng([seed, 10])
        node, x, y = random_convolution(rng, op, ROUNDINGS[seed % len(ROUNDINGS)])
        check(kernel, replace(node, attributes={**node.attributes, "amx": 2}), [x], y, "x86-64-v4")


@pytest.mark.parametrize("isa", ISAS)
def test_a_bias_of_any_size_and_channels_that_are_switched_off(isa: str):
    """LiteRT's converter leaves biases of 2**30 with tiny factors in channels without weights."""
    rng = np.random.default_rng(3)
    node, x, _ = random_convolution(rng, "QConv", "double")
    weight = node.constant(1)
    assert weight is not None
    count = len(weight)
    bias = rng.choice([-(2**30), 2**30, 5], count).astype(np.int32)
    zero = node.attributes["x_zero_point"]
    silent = replace(
        node,
        attributes={
            **node.attributes,
            "multipliers": (2**30 + 12345,) * count,
            "shifts": (-25,) * count,
            "y_zero_point": 3,
            "act_min": 0,
            "act_max": 100,
        },
        inputs=(node.inputs[0], Operand.of(np.zeros_like(weight)), Operand.of(bias)),
    )
    from dlas.kernels.reference.requantize import scale_sum

    number = np.clip(scale_sum(bias.astype(np.int64), 2**30 + 12345, -25) + 3, 0, 100)
    expected = np.broadcast_to(number[:, None, None], node.output.shape).astype(node.output.dtype)
    assert len(set(number.tolist())) > 1
    check("int8-conv", silent, [x], expected, isa)
    assert zero == silent.attributes["x_zero_point"]


@pytest.mark.parametrize("isa", ISAS)
def test_extreme_sums_do_not_saturate_on_the_way(isa: str):
    """The largest products of bytes there are, side by side: 16-bit sums would saturate."""
    from dlas.kernels.kernel import Node

    for value, weight in ((255, -128), (255, 127), (0, -128)):
        x = np.full((1, 64, 3, 5), value, np.uint8)
        w = np.full((20, 64, 1, 1), weight, np.int8)
        total = value * weight * 64
        attributes = {
            "kernel_shape": (1, 1), "strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0), "group": 1,
            "x_zero_point": 0, "y_zero_point": 0, "rounding": "double",
            "multipliers": (2**30,), "shifts": (-13,),
        }  # fmt: skip
        node = Node(
            "QConv",
            "c",
            attributes,
            (Operand(x.shape, "uint8"), Operand.of(w)),
            (Operand((1, 20, 3, 5), "int8"),),
        )
        expected = np.full((1, 20, 3, 5), np.clip(np.round(total / 2**14), -128, 127), np.int8)
        check("int8-conv", node, [x], expected, isa)


@pytest.mark.parametrize(
    ("op", "kernel", "change"),
    [
        ("QConv", "int8-conv", "float input"),
        ("QConv", "int8-conv", "weights that are not constant"),
        ("QConv", "int8-conv", "multipliers"),
        ("QDepthwise", "int8-depthwise", "two filters for each channel"),
        ("QDense", "int8-dense", "float input"),
    ],
)
def test_what_a_kernel_cannot_compute_is_refused_with_a_reason(op: str, kernel: str, change: str):
    node, x, _ = random_convolution(np.random.default_rng(1), op, "double")
    weight = node.constant(1)
    assert weight is not None
    attributes, inputs = dict(node.attributes), list(node.inputs)
    if change == "float input":
        inputs[0] = Operand(x.shape, "float32")
    elif change == "weights that are not constant":
        inputs[1] = Operand(weight.shape, "int8")
    elif change == "multipliers":
        attributes["multipliers"], attributes["shifts"] = (2**30,) * (len(weight) + 1), (0,)
    else:
        inputs[1] = Operand.of(np.concatenate([weight, weight]))
    wrong = replace(node, attributes=attributes, inputs=tuple(inputs))
    given: list[np.ndarray | None] = [x] + [None] * (len(inputs) - 1)
    if change == "weights that are not constant":
        given[1] = weight
    with pytest.raises(UnsupportedError, match=r"\w+"):
        Bench(kernels.get(kernel)(), wrong, given, Context.here(1))
