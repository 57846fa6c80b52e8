"""The pipeline that turns sums into bytes, against its twin in NumPy, in Amaranth's own simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dlas.kernels.reference.requantize import quantize_multiplier, scale_sum

pytest.importorskip("amaranth")
CASES = 150


def cases(mode: str) -> list[tuple[np.ndarray, int, int, int]]:
    """Sums, bias, multiplier, shift: factors of all sizes, and results that are exact halves."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(CASES):
        real = float(2.0 ** rng.uniform(-20, 3))
        multiplier, shift = quantize_multiplier(real)
        size = int(min(2**24, 300 / real))
        sums, bias = rng.integers(-size - 1, size + 1, 2), int(rng.integers(-size // 4 - 1, size // 4 + 1))
        if i % 5 == 0:
            sums, bias, multiplier, shift = (2 * rng.integers(-40, 40, 2) + 1) * 2**10, 0, 2**30, -10
        found.append((sums, bias, multiplier, shift))
    return found


@pytest.mark.parametrize("mode", ["double", "single", "away"])
@pytest.mark.parametrize("built", ["alone", "together"])
def test_equals_the_reference(mode: str, built: str) -> None:
    from amaranth.sim import Simulator

    from dlas.hardware.rtl.requantize import Requantize
    from dlas.hardware.rtl.sizes import MODES

    design = Requantize(2, (mode,) if built == "alone" else MODES)
    simulator = Simulator(design)
    simulator.add_clock(1e-6)
    given, found = cases(mode), []

    async def bench(ctx: Any) -> None:
        ctx.set(design.mode, MODES.index(mode))
        ctx.set(design.zero_point, -7)
        ctx.set(design.low, -100)
        ctx.set(design.high, 99)
        for i in range(CASES + design.latency - 1):
            if i < CASES:
                sums, bias, multiplier, shift = given[i]
                for port, value in (("bias", bias), ("multiplier", multiplier), ("shift", shift)):
                    ctx.set(getattr(design, port), value)
                for lane in range(2):
                    ctx.set(design.sums[lane], int(sums[lane]))
            await ctx.tick()
            if i >= design.latency - 1:
                found.append([ctx.get(design.bytes[lane]) for lane in range(2)])

    simulator.add_testbench(bench)
    simulator.run()
    wanted = [np.clip(scale_sum(s + b, m, e, mode) - 7, -100, 99).tolist() for s, b, m, e in given]
    assert found == wanted
    assert len({tuple(row) for row in wanted}) > 20
