"""8-bit layers without weights: exactly what the references give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from int8_cases import ISAS, check, needs_native, random_bytes, random_window

from dlas.kernels.kernel import Node, Operand
from dlas.kernels.reference import qlinear, quantized, quantized_elementwise
from dlas.runtime.engine._quantized_factors import Grid, addition, bounds, exponentials, mean, product

pytestmark = needs_native


def grid(rng: np.random.Generator) -> Grid:
    return Grid(float(np.float32(rng.uniform(0.01, 0.3))), int(rng.integers(-128, 128)), "int8")


def scales(**grids: Grid) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, g in grids.items():
        found |= {f"{name}_scale": g.scale, f"{name}_zero_point": g.zero_point}
    return found


def shape_of(rng: np.random.Generator) -> tuple[int, ...]:
    if rng.random() < 0.3:
        return tuple(int(v) for v in rng.integers(1, 70, 2))
    return tuple(int(v) for v in (rng.integers(1, 3), rng.integers(1, 80), *rng.integers(1, 7, 2)))


def mapped(y: np.ndarray) -> np.ndarray:
    return y.transpose(0, 2, 3, 1) if y.ndim == 4 else y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", ["QAdd", "QMul"])
def test_two_maps(op: str, isa: str):
    for seed in range(200):
        rng = np.random.default_rng([seed, 1])
        rounding = ("double", "single", "xnnpack")[seed % 3]
        ga, gb, gy = grid(rng), grid(rng), grid(rng)
        shape = shape_of(rng)
        one_pixel = len(shape) == 4 and rng.random() < 0.3
        a = random_bytes(rng, shape, "int8")
        b = random_bytes(rng, (*shape[:2], 1, 1) if one_pixel else shape, "int8")
        relu6 = bool(rng.integers(0, 2))
        compute = quantized_elementwise.add if op == "QAdd" else quantized_elementwise.mul
        expected = compute(
            a, b, **scales(a=ga, b=gb, y=gy), activation="relu6" if relu6 else "none", rounding=rounding
        )
        factors = (addition if op == "QAdd" else product)(ga, gb, gy, rounding)
        assert factors is not None
        low, high = bounds(gy, (0.0, 6.0) if relu6 else (None, None), rounding)
        attributes = factors | {
            "a_zero_point": ga.zero_point, "b_zero_point": gb.zero_point, "y_zero_point": gy.zero_point,
            "act_min": low, "act_max": high, "rounding": rounding,
        }  # fmt: skip
        node = Node(
            op,
            "n",
            attributes,
            (Operand(a.shape, "int8"), Operand(b.shape, "int8")),
            (Operand(shape, "int8"),),
        )
        check("int8-add" if op == "QAdd" else "int8-mul", node, [a, b], expected, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", ["QAveragePool", "QMaxPool"])
def test_pools(op: str, isa: str):
    done = 0
    for seed in range(660):
        rng = np.random.default_rng([seed, 2])
        window, size = random_window(rng)
        window["dilations"] = (1, 1)
        kernel, pads = window["kernel_shape"], window["pads"]
        if any(pads[i] >= kernel[i % 2] for i in range(4)) or any(
            size[a] + pads[a] + pads[2 + a] < kernel[a] for a in (0, 1)
        ):
            continue
        x = random_bytes(rng, (int(rng.integers(1, 3)), int(rng.integers(1, 140)), *size), "int8")
        low, high = sorted(int(v) for v in rng.integers(-128, 128, 2))
        compute = quantized.average_pool2d if op == "QAveragePool" else quantized.max_pool2d
        found = compute(mapped(x), kernel, strides=window["strides"], pads=pads, low=low, high=high)
        expected = found.transpose(0, 3, 1, 2)
        attributes = window | {"act_min": low, "act_max": high, "x_zero_point": 0}
        node = Node(op, "n", attributes, (Operand(x.shape, "int8"),), (Operand(expected.shape, "int8"),))
        check("int8-average-pool" if op == "QAveragePool" else "int8-max-pool", node, [x], expected, isa)
        done += 1
    assert done >= 200


@pytest.mark.parametrize("isa", ISAS)
def test_mean(isa: str):
    for seed in range(200):
        rng = np.random.default_rng([seed, 3])
        rounding = ("double", "single", "xnnpack")[seed % 3]
        gx, gy = grid(rng), grid(rng)
        shape = (int(rng.integers(1, 3)), int(rng.integers(1, 140)), *(int(v) for v in rng.integers(1, 9, 2)))
        x = random_bytes(rng, shape, "int8")
        expected = quantized.mean(x, (2, 3), **scales(x=gx, y=gy), keep_dims=True, rounding=rounding)
        attributes = mean(gx, gy, shape[2] * shape[3], rounding) | {
            "x_zero_point": gx.zero_point, "y_zero_point": gy.zero_point, "rounding": rounding,
        }  # fmt: skip
        node = Node("QMean", "n", attributes, (Operand(shape, "int8"),), (Operand(expected.shape, "int8"),))
        check("int8-mean", node, [x], expected, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_softmax(isa: str):
    for seed in range(200):
        rng = np.random.default_rng([seed, 4])
        rounding = ("double", "xnnpack")[seed % 2]
        gx = Grid(float(np.float32(10 ** rng.uniform(-3, 0.3))), 0, "int8")
        x = random_bytes(rng, (int(rng.integers(1, 4)), int(rng.integers(1, 300))), "int8")
        expected = quantized_elementwise.softmax(x, x_scale=gx.scale, rounding=rounding)
        inputs = (Operand(x.shape, "int8"), Operand.of(exponentials(gx, rounding)))
        node = Node("QSoftmax", "n", {}, inputs, (Operand(x.shape, "int8"),))
        check("int8-softmax", node, [x], expected, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_to_and_from_float32(isa: str):
    for seed in range(200):
        rng = np.random.default_rng([seed, 5])
        rounding = ("double", "xnnpack", "onnx")[seed % 3]
        g = grid(rng)
        x = rng.normal(0, 20, shape_of(rng)).astype(np.float32)
        x.reshape(-1)[::3] = np.float32(g.scale) * (np.round(x.reshape(-1)[::3]) + np.float32(0.5))
        x.reshape(-1)[:1] = rng.choice([np.inf, -np.inf, 1e30, -1e30])
        if rounding == "onnx":
            expected = qlinear.quantize_linear(np.clip(x, -1e6, 1e6), g.scale, np.int8(g.zero_point))
        else:
            expected = quantized_elementwise.quantize(x, g.scale, g.zero_point, rounding=rounding)
        attributes = {"scale": g.scale, "y_zero_point": g.zero_point, "rounding": rounding}
        node = Node("Quantize", "n", attributes, (Operand(x.shape),), (Operand(x.shape, "int8"),))
        check("quantize", node, [x], expected, isa)
        back = quantized_elementwise.dequantize(expected, g.scale, g.zero_point)
        attributes = {"scale": g.scale, "x_zero_point": g.zero_point}
        node = Node("Dequantize", "n", attributes, (Operand(x.shape, "int8"),), (Operand(x.shape),))
        check("dequantize", node, [expected], back, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_tables_and_moves(dtype: str, isa: str):
    for seed in range(150):
        rng = np.random.default_rng([seed, 6])
        x = random_bytes(rng, shape_of(rng), dtype)
        table = rng.integers(0, 256, 256).astype(np.uint8)
        expected = table[x.view(np.uint8)].view(np.int8)
        inputs = (Operand(x.shape, dtype), Operand.of(table))
        check("int8-table", Node("QTable", "n", {}, inputs, (Operand(x.shape, "int8"),)), [x], expected, isa)
        if x.ndim != 4:
            continue
        rows = np.ascontiguousarray(mapped(x))
        node = Node("QRows", "n", {}, (Operand(x.shape, dtype),), (Operand((len(x), rows[0].size), dtype),))
        check("int8-rows", node, [x], rows.reshape(len(x), -1), isa)
        node = Node("QImage", "n", {}, (Operand(rows.shape, dtype),), (Operand(x.shape, dtype),))
        check("int8-image", node, [rows], x, isa)
