"""A network as the engine sees it: operators in the order they run, over named values with known shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from dlas.kernels.kernel import Node, Operand

# A plain tensor of another shape is the same bytes.
ALIASES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})


@dataclass(frozen=True)
class Call:
    """One operator of a network.

    Attributes:
        node: What it computes; constants carry their values.
        inputs: Names of the values it reads; an empty name is an input that was left out.
        outputs: Names of the values it makes.
    """

    node: Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name in the network."""
        return self.node.name

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the inputs that are neither constant nor left out."""
        pairs = zip(self.inputs, self.node.inputs, strict=True)
        return tuple(name for name, o in pairs if o is not None and o.constant is None)

    @property
    def is_alias(self) -> bool:
        """Whether it only gives its first input another shape."""
        return self.node.op in ALIASES


@dataclass(frozen=True)
class Network:
    """Calls in an order in which they can run.

    Attributes:
        name: Name of the Model.
        calls: Every operator.
        inputs: Values fed from outside, in the Model's order.
        outputs: Values handed out, in the Model's order.
    """

    name: str
    calls: tuple[Call, ...]
    inputs: dict[str, Operand]
    outputs: dict[str, Operand]

    @property
    def readers(self) -> dict[str, list[int]]:
        """Places of the calls that read each value, once per read."""
        found: dict[str, list[int]] = {}
        for place, call in enumerate(self.calls):
            for name in call.reads:
                found.setdefault(name, []).append(place)
        return found

    @property
    def makers(self) -> dict[str, int]:
        """Place of the call that makes each value."""
        return {name: place for place, call in enumerate(self.calls) for name in call.outputs}

    @property
    def operands(self) -> dict[str, Operand]:
        """Shape and dtype of every value."""
        found = dict(self.inputs)
        for call in self.calls:
            found.update(zip(call.outputs, call.node.outputs, strict=True))
        return found

    def with_calls(self, calls: Iterable[Call]) -> Network:
        """The same network with other calls."""
        return replace(self, calls=tuple(calls))

    def count(self) -> Counter[str]:
        """How often each operator occurs."""
        return Counter(call.node.op for call in self.calls)
