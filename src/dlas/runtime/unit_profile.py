"""Which unit of an accelerator holds a network up, layer by layer.

The units work side by side, so a layer takes at least as long as its busiest unit. What a change to that unit can bring
at best follows from the next busiest one: that is what the loop of simulating and changing (SECDA, Haris et al. 2021)
asks after every simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dlas.graph.model import Model
from dlas.hardware.accelerator import Accelerator, Cycles
from dlas.hardware.verification import require
from dlas.runtime.offload import Offloaded, Placed

# Counters that are no work of a unit: the whole, words that the array could not take yet, and parts of another counter.
_NO_UNIT = ("total", "load_wait", "taps")
_INCOMING = "load"  # every counter of incoming words begins so; one bus brings them all


@dataclass(frozen=True)
class LayerUnits:
    """A layer on the accelerator.

    Attributes:
        name: Node.
        op: Operator.
        counted: What it took.
        busy: Cycles of work per unit.
        bound: The unit with most work.
        if_free: The most work of any other unit: cycles that are left at least if the bound one cost nothing.
        buffers: Bytes in use and bytes there are, per buffer.
    """

    name: str
    op: str
    counted: Cycles
    busy: Mapping[str, int]
    bound: str
    if_free: int
    buffers: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, layer: Placed) -> LayerUnits:
        """From what a layer counted."""
        busy = units_of(layer.cycles)
        bound = max(busy, key=lambda unit: busy[unit])
        rest = max((work for unit, work in busy.items() if unit != bound), default=0)
        return cls(layer.name, layer.op, layer.cycles, busy, bound, rest, layer.buffers)

    @property
    def cycles(self) -> int:
        """First word in to last word out."""
        return self.counted.total

    @property
    def overhead(self) -> int:
        """Cycles in which not even the busiest unit works: filling, draining, waiting for each other."""
        return self.cycles - self.busy[self.bound]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        plain = {k: v for k, v in asdict(self).items() if k != "counted"}
        return {**plain, "cycles": self.cycles, "overhead": self.overhead}


@dataclass(frozen=True)
class UnitProfile:
    """A network on an accelerator, by unit.

    Attributes:
        model: Name of the network.
        accelerator: As spelled.
        level: ``tlm`` or ``rtl``.
        verified: Whether model and RTL are known to be equal, in words.
        layers: Those on the accelerator, in order.
        on_cpu: Names of layers with products that stay on the CPU, with the reason.
    """

    model: str
    accelerator: str
    level: str
    verified: str
    layers: tuple[LayerUnits, ...]
    on_cpu: Mapping[str, str]

    @property
    def cycles(self) -> int:
        """Of all layers."""
        return sum(layer.cycles for layer in self.layers)

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the units, in the order of the counters."""
        return tuple(dict.fromkeys(unit for layer in self.layers for unit in layer.busy))

    def busy(self, unit: str) -> float:
        """Share of all cycles in which a unit works."""
        return sum(layer.busy.get(unit, 0) for layer in self.layers) / max(self.cycles, 1)

    def bound(self, unit: str) -> float:
        """Share of all cycles in layers that a unit bounds."""
        return sum(layer.cycles for layer in self.layers if layer.bound == unit) / max(self.cycles, 1)

    def best(self, unit: str) -> float:
        """Speed-up at most if a unit cost nothing: what overlaps badly today stays."""
        left = sum(
            min(layer.cycles, layer.if_free + layer.overhead) if layer.bound == unit else layer.cycles
            for layer in self.layers
        )
        return self.cycles / max(left, 1)

    @property
    def overhead(self) -> float:
        """Share of all cycles in which the busiest unit of a layer waits."""
        return sum(layer.overhead for layer in self.layers) / max(self.cycles, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON; cycles and shares are simulated."""
        return {
            "model": self.model,
            "accelerator": self.accelerator,
            "level": self.level,
            "verified": self.verified,
            "source": "simulated",
            "cycles": self.cycles,
            "overhead": self.overhead,
            "units": {
                unit: {"busy": self.busy(unit), "bound": self.bound(unit), "speedup_if_free": self.best(unit)}
                for unit in self.units
            },
            "layers": [layer.to_dict() for layer in self.layers],
            "on_cpu": dict(self.on_cpu),
        }


def units_of(cycles: Cycles) -> dict[str, int]:
    """Cycles of work per unit; ``bus in`` brings weights and inputs, the other units bear their counters' names."""
    found = {"bus in": 0}
    for name, count in cycles.counters.items():
        if name in _NO_UNIT:
            continue
        unit = "bus in" if name.startswith(_INCOMING) else "bus out" if name == "store" else name
        found[unit] = found.get(unit, 0) + count
    return found


def profile_units(model: Model, accelerator: Accelerator, *, level: str = "tlm") -> UnitProfile:
    """Run one random row and say which unit bounds which layer.

    Args:
        model: The network, in integers.
        accelerator: With its options.
        level: ``tlm`` or ``rtl``.

    Raises:
        UnsupportedError: The network is not quantised, or nothing of it can be offloaded.
        CheckFailedError: The accelerator is known to differ from its RTL.
        OptionError: There is no such level.
    """
    verified = require(accelerator)
    offloaded = Offloaded(model, accelerator, level=level)
    try:
        offloaded.run(offloaded.executable.signature.random_inputs())
    finally:
        offloaded.close()
    return UnitProfile(
        model.name,
        accelerator.spelled(),
        level,
        verified,
        tuple(LayerUnits.of(layer) for layer in offloaded.layers if not layer.reason),
        {layer.name: layer.reason for layer in offloaded.layers if layer.reason},
    )
