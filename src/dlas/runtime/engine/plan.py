"""Plan files: which kernel computes which node, for which network and which machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.environment import cpu_model
from dlas.core.errors import ModelError
from dlas.core.files import write_atomic
from dlas.kernels.kernel import Context
from dlas.kernels.layout import Layout
from dlas.runtime.engine.network import Network
from dlas.runtime.engine.program import Program
from dlas.runtime.engine.select import Choice, named

VERSION = 2


@dataclass(frozen=True)
class Plan:
    """What a selection decided.

    Attributes:
        network: Fingerprint of the lowered network (operators, shapes, attributes, weights).
        machine: Processor, instruction set and threads it was made for.
        backend: A back end that runs the whole network instead, or empty.
        policy: Policy that made it.
        impls: One ``[node, kernel, input layouts, output layouts]`` per call.
        measured_ms: Lower quartile of the milliseconds of each candidate that the policy timed, by name.
        memory: Arena and offsets in bytes, for the reader's eye.
    """

    network: str
    machine: dict[str, Any]
    backend: str
    policy: str
    impls: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = ()
    measured_ms: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, network: Network, choices: Sequence[Choice], program: Program | None, policy: str, **more: Any
    ) -> Plan:
        """The plan of a selection."""
        impls = tuple(
            (
                call.name,
                choice.name,
                tuple(str(x) for x in choice.form.inputs),
                tuple(str(x) for x in choice.form.outputs),
            )
            for call, choice in zip(network.calls, choices, strict=True)
        )
        memory = {}
        if program is not None:
            memory = {"arena_bytes": program.memory.arena_bytes, "offsets": program.memory.offsets}
        return cls(
            fingerprint(network),
            more.pop("machine"),
            more.pop("backend", ""),
            policy,
            impls,
            memory=memory,
            **more,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {"dlas_plan": VERSION, **asdict(self)}

    def write(self, path: Path) -> None:
        """Store as JSON."""
        write_atomic(path, json.dumps(self.to_dict(), indent=1).encode())

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a plan file; raises ModelError when it is missing, damaged or of another version."""
        try:
            stored = json.loads(path.read_text())
            if stored.pop("dlas_plan") != VERSION:
                raise ValueError("another version of the format")
            impls = tuple((str(n), str(k), tuple(i), tuple(o)) for n, k, i, o in stored.pop("impls"))
            return cls(impls=impls, **stored)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{path} is no plan: {' '.join(str(error).split())[:120]}",
                "make one with `dlas optimize MODEL -o PLAN`",
            ) from error

    def check(self, network: Network) -> None:
        """Raises ModelError where this is the plan of another network."""
        found = fingerprint(network)
        if self.network != found:
            raise ModelError(
                f"the plan is not of this network: it is of {self.network[:12]}, {network.name} is {found[:12]}",
                "make one for it with `dlas optimize`",
            )

    def choices(self, network: Network, context: Context) -> list[Choice]:
        """The stored choices for ``network``, call by call.

        Raises:
            ModelError: It is the plan of another network, or a kernel of it is not here.
        """
        self.check(network)
        if len(self.impls) != len(network.calls):
            raise ModelError(
                f"the plan names {len(self.impls)} nodes, {network.name} has {len(network.calls)}"
            )
        found = []
        for call, (node, name, ins, outs) in zip(network.calls, self.impls, strict=True):
            layouts = (tuple(Layout(x) for x in ins), tuple(Layout(x) for x in outs))
            fitting = [c for c in named(call, name, context) if (c.form.inputs, c.form.outputs) == layouts]
            if not fitting:
                raise ModelError(f"the plan wants {name} for {node!r}, which is not here in these layouts")
            found.append(fitting[0])
        return found


def machine(threads: int, isa: str) -> dict[str, Any]:
    """What a timing or a plan depends on beside the network."""
    return {"cpu": cpu_model(), "isa": isa, "threads": threads}


def fingerprint(network: Network) -> str:
    """SHA-256 of operators, shapes, attributes and weights."""
    digest = hashlib.sha256()
    for call in network.calls:
        head = (call.node.op, sorted(call.node.attributes.items()), call.inputs, call.outputs)
        digest.update(repr(head).encode())
        for operand in (*call.node.inputs, *call.node.outputs):
            if operand is None:
                continue
            digest.update(repr((operand.shape, operand.dtype)).encode())
            if operand.constant is not None:
                digest.update(np.ascontiguousarray(operand.constant).tobytes())
    return digest.hexdigest()
