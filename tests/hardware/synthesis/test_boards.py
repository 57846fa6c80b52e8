"""Whether a design fits a board."""

from __future__ import annotations

import dataclasses

import pytest

from dlas.core.errors import OptionError, UnknownNameError
from dlas.hardware.synthesis.area import Area
from dlas.hardware.synthesis.boards import BOARDS, board_for, fits

SMALL = Area("xc7", False, 4000, 0, 3000, 3000, 480, 80, 49.5, {}, "")


def test_a_small_design_fits_the_zynq_and_takes_a_share_of_it() -> None:
    found = fits(SMALL, "pynq-z1")
    assert found.fits
    assert found.reason == ""
    assert found.shares["dsps"] == pytest.approx(80 / 220)
    assert found.shares["luts"] == pytest.approx(4000 / (0.8 * 53_200))
    assert found.shares["bram_tiles"] == pytest.approx(49.5 / 140)
    assert found.to_dict()["fits"] is True


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"luts": 42_561}, "42561 luts, 42560 can be used"),
        ({"luts": 42_000, "memory_luts": 600}, "42600 luts, 42560 can be used"),
        ({"dsps": 221}, "221 dsps, 220 can be used"),
        ({"bram_tiles": 140.5}, "140.5 bram tiles, 140 can be used"),
        ({"flip_flops": 106_401}, "106401 flip flops, 106400 can be used"),
    ],
)
def test_what_there_is_not_enough_of_is_named(change: dict[str, int], reason: str) -> None:
    found = fits(dataclasses.replace(SMALL, **change), "pynq-z2")
    assert not found.fits
    assert found.reason == reason
    assert fits(dataclasses.replace(SMALL, **change), "kv260").fits


def test_just_within_the_limits_fits() -> None:
    assert fits(dataclasses.replace(SMALL, luts=42_560, dsps=220, bram_tiles=140.0), "pynq-z1").fits


def test_cells_of_one_family_say_nothing_about_another() -> None:
    with pytest.raises(OptionError, match="cells of ecp5"):
        fits(SMALL, "ecp5-85")
    assert fits(dataclasses.replace(SMALL, family="ecp5"), "ecp5-85").fits


def test_boards_are_found_by_name() -> None:
    assert board_for("kv260").dsps == 1248
    assert set(BOARDS) == {"pynq-z1", "pynq-z2", "kv260", "ecp5-85"}
    with pytest.raises(UnknownNameError, match="pynq-z1"):
        board_for("pynq-z3")
