"""Differential testing: one network run two ways gives the same answers, or it is said where it does not."""

from __future__ import annotations

from dlas.verify.differential.outputs import (
    DEGENERATE_SHARE,
    EQUAL_RELATIVE_L2,
    SIGNIFICANT,
    WRONG_RELATIVE_L2,
    Comparison,
    NoiseFloor,
    Verdict,
    compare_outputs,
    excess_p,
    floor_between,
    is_classifier,
    sqnr_db,
)

__all__ = [
    "DEGENERATE_SHARE",
    "EQUAL_RELATIVE_L2",
    "SIGNIFICANT",
    "WRONG_RELATIVE_L2",
    "Comparison",
    "NoiseFloor",
    "Verdict",
    "compare_outputs",
    "excess_p",
    "floor_between",
    "is_classifier",
    "sqnr_db",
]
