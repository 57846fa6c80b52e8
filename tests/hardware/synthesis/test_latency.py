"""Latency of a board by term."""

from __future__ import annotations

import pytest

from dlas.core.errors import OptionError, UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.hardware.accelerator import Cycles
from dlas.hardware.synthesis.boards import board_for
from dlas.hardware.synthesis.latency import cpu_time, latency

CYCLES = Cycles({"total": 200_000}, macs=10_000_000, multipliers=64, bytes_in=1_440_000, bytes_out=160_000)


def test_every_term_is_visible_and_says_where_it_is_from() -> None:
    found = latency(CYCLES, Figure(3.0, "ms", Source.MEASURED), clock_mhz=100, dma_efficiency=0.8)
    assert found.accelerator.value == pytest.approx(2.0)
    assert found.dma.value == pytest.approx(0.25)  # 100,000 words, a quarter of a cycle each
    assert found.total.value == pytest.approx(5.25)
    sources = {name: figure.source for name, figure in found.figures.items()}
    assert sources == {
        "accelerator_ms": "simulated",
        "dma_ms": "estimated",
        "cpu_ms": "measured",
        "latency_ms": "estimated",
    }
    assert found.to_dict()["dma_ms"]["unit"] == "ms"


def test_an_ideal_bus_adds_nothing() -> None:
    assert (
        latency(CYCLES, Figure(0.0, "ms", Source.MEASURED), clock_mhz=100, dma_efficiency=1.0).dma.value == 0
    )


def test_a_processor_is_modelled_by_its_cores_and_clock() -> None:
    found = cpu_time(26_000_000, board_for("pynq-z1"))
    assert found.value == pytest.approx(10.0)
    assert found.source is Source.ESTIMATED
    assert "Cortex-A9" in found.note
    with pytest.raises(UnsupportedError, match="no processor"):
        cpu_time(1, board_for("ecp5-85"))


def test_bad_numbers_are_refused() -> None:
    cpu = Figure(0.0, "ms", Source.MEASURED)
    with pytest.raises(OptionError, match="clock_mhz"):
        latency(CYCLES, cpu, clock_mhz=0)
    with pytest.raises(OptionError, match="dma_efficiency"):
        latency(CYCLES, cpu, clock_mhz=100, dma_efficiency=1.5)
    with pytest.raises(OptionError, match="in ms"):
        latency(CYCLES, Figure(1.0, "s", Source.MEASURED), clock_mhz=100)
