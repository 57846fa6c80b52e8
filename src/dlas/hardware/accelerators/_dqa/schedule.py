"""How many cycles the activation quantiser takes, phase by phase, for a host that never hesitates."""

from __future__ import annotations

import numpy as np

from dlas.hardware.accelerators._dqa.channel import Stored
from dlas.hardware.accelerators._dqa.geometry import DEQUANTIZER_LATENCY, ENCODER_LATENCY, LANES, Geometry
from dlas.hardware.rtl.sizes import BUS_BITS


def store_cycles(geometry: Geometry, stored: Stored, counts: np.ndarray, attempts: int) -> dict[str, int]:
    """Every counter of the hardware, of values to their stored form.

    Args:
        geometry: Sizes.
        stored: What comes out.
        counts: ``(8,)``: how often each residue occurs.
        attempts: How often a table was made until its codes were short enough.
    """
    g, rows = geometry, geometry.rows(stored.count)
    # A join takes two cycles, and so does finding that one subtree is left; then a cycle to check the lengths.
    joining = 2 * int(np.count_nonzero(counts)) + 1
    phases = {
        "load": rows,
        "quantize": rows + 1 + g.quantizer_latency + 1,  # a cycle to read, one to give what is left of a word
        "table": attempts * joining + g.longest + 2,
        "encode": rows + 1 + ENCODER_LATENCY + 1 if stored.payload_bits else 0,
    }
    # Codes that fill their last word give it a cycle before the end of their phase.
    early = stored.payload_bits > 0 and stored.payload_bits % BUS_BITS == 0
    total = 1 + sum(phases.values()) + 1 - early
    return _counters(total, phases, g.high_words(stored.count) + 1 + len(stored.payload))


def restore_cycles(geometry: Geometry, stored: Stored) -> dict[str, int]:
    """Every counter of the hardware, of a stored channel to its values."""
    g, rows = geometry, geometry.rows(stored.count)
    phases = {
        "table": g.longest + 2,
        "decode": rows * (LANES // g.decoders) + (len(stored.payload) > 0),  # a cycle for the first word
        "dequantize": 1 + rows + DEQUANTIZER_LATENCY,
    }
    return _counters(1 + sum(phases.values()) + 1, phases, rows)


def _counters(total: int, phases: dict[str, int], store: int) -> dict[str, int]:
    names = ("load", "quantize", "table", "encode", "decode", "dequantize")
    return {"total": total, **{name: phases.get(name, 0) for name in names}, "store": store}
