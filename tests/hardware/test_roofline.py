"""The limits of the processor: what is measured, what is remembered, what follows from them."""

from __future__ import annotations

import pytest

from dlas.core.errors import OptionError
from dlas.core.figure import Figure, Source
from dlas.hardware.cpu import roofline as module
from dlas.hardware.cpu.roofline import Roofline, roofline
from dlas.kernels.extension import native

built = pytest.mark.skipif(native() is None, reason="the native kernels were not built")


def made(threads: int = 1) -> Roofline:
    def figures(unit: str, **values: float) -> dict[str, Figure]:
        return {k: Figure(v, unit, Source.MEASURED) for k, v in values.items()}

    return Roofline(
        "x86-64-v4",
        threads,
        figures("GFLOP/s", fp32=100.0, int8=400.0),
        figures("GB/s", l1=200.0, l2=100.0, l3=50.0, dram=10.0),
        {"l1": 32 << 10, "l2": 1 << 20, "l3": 32 << 20},
    )


def test_the_smallest_cache_that_holds_the_data_counts() -> None:
    roof = made()
    assert [roof.level(b) for b in (1, 32 << 10, (32 << 10) + 1, 16 << 20, 33 << 20)] == [
        "l1", "l1", "l2", "l3", "dram",
    ]  # fmt: skip
    assert roof.attainable(1000, 10000) == pytest.approx(20.0)
    assert roof.attainable(1e6, 10e6) == pytest.approx(5.0)
    assert roof.attainable(1e6, 10e6, working_set=1000) == pytest.approx(20.0)
    assert roof.attainable(1e9, 1000) == 100.0
    assert roof.attainable(1e9, 1000, kind="int8") == 400.0
    assert roof.attainable(1e9, 0) == 100.0
    # Two threads have a cache each.
    assert made(2).level((60 << 10) / 2) == "l1"
    assert made(2).attainable(1000, 60 << 10) == pytest.approx(1000 / (60 << 10) * 200)


def test_seconds() -> None:
    roof = made()
    assert roof.seconds(1e9, 1000) == pytest.approx(0.01)
    assert roof.seconds(0, 100e6) == pytest.approx(0.01)


def test_bad_numbers() -> None:
    for flops, nbytes in ((-1, 1), (1, float("nan")), (float("inf"), 1)):
        with pytest.raises(OptionError):
            made().attainable(flops, nbytes)
    with pytest.raises(OptionError, match="fp32, int8"):
        made().attainable(1, 1, kind="fp64")


def test_round_trip() -> None:
    assert Roofline.from_dict(made().to_dict()) == made()


@built
def test_measured_once_and_sane(monkeypatch: pytest.MonkeyPatch) -> None:
    first = roofline(seconds=0.005)
    assert {"fp32", "int8"} <= set(first.peaks)
    assert set(first.bandwidths) == {"l1", "l2", "l3", "dram"}
    assert all(f.source is Source.MEASURED and f.value > 0 for f in first.peaks.values())
    assert 1 < first.peaks["fp32"].value < 5000  # GFLOP/s of one core
    assert first.peaks["int8"].value > first.peaks["fp32"].value
    assert first.bandwidths["l1"].value > first.bandwidths["dram"].value
    assert first.capacities["l1"] < first.capacities["l2"] < first.capacities["l3"]
    monkeypatch.setattr(module, "_measure", lambda *_: pytest.fail("measured again"))
    assert roofline() == first


@built
def test_bad_arguments() -> None:
    with pytest.raises(OptionError, match="threads"):
        roofline(0)
    with pytest.raises(OptionError, match="isa"):
        roofline(isa="x86-64-v9")
    with pytest.raises(OptionError, match="seconds"):
        roofline(seconds=float("nan"))
