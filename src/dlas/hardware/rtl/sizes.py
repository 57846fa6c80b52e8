"""Sizes and names that designs, drivers and cycle models agree on; nothing here needs Amaranth."""

from __future__ import annotations

BUS_BYTES = 16  # four DMA channels of 32 bits side by side
BUS_BITS = 8 * BUS_BYTES
REQUANTIZE_LATENCY = 8  # cycles from a sum to its byte
MODES = ("double", "single", "away")  # roundings of requantisation; the code of a mode is its place
