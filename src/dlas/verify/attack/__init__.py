"""Robustness: how far small changes made on purpose bring a network down."""

from __future__ import annotations

from dlas.verify.attack.attack import (
    EPS,
    USUAL,
    Attack,
    Job,
    NoGradientError,
    attacks,
    parse_attacks,
    parse_eps,
)
from dlas.verify.attack.engine import attack_networks
from dlas.verify.attack.report import AttackReport, AttackResult, ModelResult

__all__ = [
    "EPS",
    "USUAL",
    "Attack",
    "AttackReport",
    "AttackResult",
    "Job",
    "ModelResult",
    "NoGradientError",
    "attack_networks",
    "attacks",
    "parse_attacks",
    "parse_eps",
]
