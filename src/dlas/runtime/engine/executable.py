"""The engine's Executable: a program behind the signature of a Model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dlas.core.figure import Figure, Source
from dlas.kernels.kernel import Node
from dlas.runtime.artifact import Signature, SignedExecutable
from dlas.runtime.backend import LayerTiming
from dlas.runtime.engine.plan import Plan
from dlas.runtime.engine.program import Bound, Program, Step


class EngineExecutable(SignedExecutable):
    """Runs a :class:`Program`.

    Attributes:
        program: The program.
        plan: What was decided, and why.
    """

    def __init__(self, signature: Signature, program: Program, plan: Plan, notes: Sequence[str] = ()) -> None:
        super().__init__(signature, notes)
        self.program = program
        self.plan = plan

    def runner(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """One inference from these arrays into buffers of its own, nothing else."""
        self._check(inputs)
        program, bound, run = self.program, self._bind(inputs), self.program.run

        def once() -> None:
            if program.bound is not bound:  # another run or runner came between
                program.bind(bound)
            run()

        return once

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 30) -> tuple[LayerTiming, ...]:
        """Median time of every step, with a clock around each."""
        times = self.times(inputs, repeats)
        return tuple(
            LayerTiming(step.name, f"{step.op}={step.impl}", 1e-6 * float(taken))
            for step, taken in zip(self.program.steps, np.median(times, axis=0), strict=True)
        )

    def times(self, inputs: Mapping[str, np.ndarray], repeats: int = 30) -> np.ndarray:
        """Nanoseconds per run and step, ``(repeats, steps) float64``."""
        self._check(inputs)
        self._bind(inputs)
        for _ in range(3):
            self.program.run()
        return np.array([self.program.step_times() for _ in range(repeats)])

    def memory(self) -> dict[str, Figure]:
        """The arena, the least it could be, and the weights as the network stores them."""
        plan = self.program.memory
        weights = sum(
            o.constant.nbytes
            for step in self.program.steps
            for o in (step.node.inputs if isinstance(step.node, Node) else ())
            if o is not None and o.constant is not None
        )
        note = f"{plan.ratio:.2f} x the lower bound"
        return {
            "arena_bytes": Figure(plan.arena_bytes, "bytes", Source.MEASURED, note=note),
            "arena_lower_bound_bytes": Figure(plan.lower_bound_bytes, "bytes", Source.ESTIMATED),
            "weight_bytes": Figure(weights, "bytes", Source.MEASURED),
        }

    @property
    def steps(self) -> list[Step]:
        """What runs, in order."""
        return self.program.steps

    def _bind(self, inputs: Mapping[str, np.ndarray]) -> Bound:
        given = [np.ascontiguousarray(inputs[p.name]) for p in self.signature.inputs]
        wanted = [np.empty(o.shape, o.dtype) for o in self.program.network.outputs.values()]
        bound = Bound(given, wanted)
        self.program.bind(bound)
        return bound

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        bound = self._bind(inputs)
        self.program.run()
        return bound.outputs

    def _free(self) -> None:
        self.program.close()
