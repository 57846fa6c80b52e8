"""Energy: ratios and shares, never joules."""

from __future__ import annotations

import pytest

from dlas.core.errors import OptionError
from dlas.core.figure import Source
from dlas.hardware.accelerator import Cycles, accelerator_for
from dlas.hardware.synthesis.energy import EnergyTable, energy

CYCLES = Cycles(
    {"total": 2_000, "compute": 1_000}, macs=60_000, multipliers=64, bytes_in=4_000, bytes_out=1_000
)


def test_parts_follow_from_activity_and_table() -> None:
    found = energy(accelerator_for("vm:units=1"), CYCLES, clock_mhz=100)
    assert found.parts == {
        "products": 60_000 * 1.0,
        "buffers": (1_000 + 1_000 * (16 + 16) / 4)
        * 5.0,  # written once; a word of pixels and one of weights per cycle
        "memory": 5_000 * 160.0,
        "leakage": pytest.approx(20e-6 * 0.2 * 1e12),
    }
    assert sum(f.value for f in found.shares.values()) == pytest.approx(1.0)


def test_shifts_and_short_codes_take_less_than_products() -> None:
    shifts, products = (
        energy(accelerator_for(f"{name}:units=1"), CYCLES, clock_mhz=100) for name in ("vm-shift", "vm")
    )
    assert shifts.parts["products"] == products.parts["products"] / 2
    assert shifts.parts["buffers"] < products.parts["buffers"]
    ratio = shifts.relative_to(products)
    assert 0 < ratio.value < 1
    assert ratio.unit == "ratio"
    assert ratio.source is Source.ESTIMATED
    luts = energy(accelerator_for("vm:units=1"), CYCLES, clock_mhz=100, product="lut")
    assert luts.parts["products"] == pytest.approx(1.6 * products.parts["products"])


def test_the_table_can_be_replaced() -> None:
    free = energy(accelerator_for("vm:units=1"), CYCLES, clock_mhz=100, table=EnergyTable(dram_byte_pj=0.0))
    assert free.parts["memory"] == 0


def test_json_holds_no_energy_only_shares() -> None:
    found = energy(accelerator_for("sa"), CYCLES, clock_mhz=100).to_dict()
    assert set(found) == {"shares"}
    assert {f["unit"] for f in found["shares"].values()} == {"fraction"}


def test_bad_input() -> None:
    vm = accelerator_for("vm")
    with pytest.raises(OptionError, match="product"):
        energy(vm, CYCLES, clock_mhz=100, product="magic")
    with pytest.raises(OptionError, match="clock_mhz"):
        energy(vm, CYCLES, clock_mhz=0)
    with pytest.raises(OptionError, match="takes energy"):
        energy(vm, CYCLES, clock_mhz=1).relative_to(energy(vm, Cycles(), clock_mhz=1))
