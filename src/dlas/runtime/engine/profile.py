"""Where the time of a network goes, step by step, against what the machine could do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.hardware.cpu.roofline import Roofline
from dlas.kernels.extension import BLOCK, need_native
from dlas.kernels.kernel import Context, Node
from dlas.kernels.layout import storage
from dlas.runtime.engine.work import (
    Work,
    attainable,
    bound_of,
    least_ms,
    level_of,
    peak_of,
    together,
    work_of,
)

if TYPE_CHECKING:
    from dlas.runtime.backend import Executable
    from dlas.runtime.engine.executable import EngineExecutable
    from dlas.runtime.engine.program import Key, Step

AGREE = 0.03
"""Steps and the call must add up to the whole within this share on a quiet machine."""
FEWER = (
    "above 100 %: winograd and sparse kernels do fewer products than are counted here, and what the step before left "
    "in a nearer cache need not be fetched"
)
_WORK = tuple(f.name for f in fields(Work))
_WARM = 5


@dataclass(frozen=True)
class Row:
    """One step.

    Attributes:
        name: Node it computes, or what it does.
        op: Operator.
        impl: Kernel or other engine.
        layout: Layouts it reads and leaves.
        milliseconds: Median time of one run.
        share: Of all steps together.
        work: Operations and bytes; None where they are not known.
        nodes: Nodes of the network it computes, where it computes several by another engine.
        level: Memory that holds the working set; empty without a roof.
        bound: What bounds the step by the roofline: ``products`` or the bytes of a memory; empty without a roof.
        attainable: GFLOP/s at most; None without a roof.
        fraction: Least time by the roofline over the time taken; None without a roof.
    """

    name: str
    op: str
    impl: str
    layout: str
    milliseconds: float
    share: float = 0.0
    work: Work | None = None
    nodes: tuple[str, ...] = ()
    level: str = ""
    bound: str = ""
    attainable: float | None = None
    fraction: float | None = None

    @property
    def gflops(self) -> float | None:
        """Operations per nanosecond."""
        if self.work is None or not self.work.operations or self.milliseconds <= 0:
            return None
        return self.work.operations / (1e6 * self.milliseconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON; what is not known is null."""
        work = self.work
        known: dict[str, Any] = dict.fromkeys(_WORK) if work is None else asdict(work)
        return {
            "name": self.name,
            "op": self.op,
            "impl": self.impl,
            "layout": self.layout,
            "milliseconds": self.milliseconds,
            "share": self.share,
            **known,
            "gflops": self.gflops,
            "intensity": None if work is None else work.intensity,
            "level": self.level,
            "bound": self.bound,
            "attainable_gflops": self.attainable,
            "fraction_of_attainable": self.fraction,
            "nodes": list(self.nodes),
        }


@dataclass(frozen=True)
class Profile:
    """A network on one back end, step by step.

    Attributes:
        model: Name of the network.
        backend: What computed it: ``engine``, or the back end to which the engine gave the whole network.
        threads: Threads.
        isa: Instruction set.
        policy: How the kernels were chosen.
        runs: Runs behind every median.
        rows: Steps in order.
        whole_ms: Median time of one run without a clock inside.
        cpu_ms: The same in processor time, with one thread; 0 where it was not taken.
        call_ms: Median time of a call that runs no step.
        clocked_ms: Median time of a run with a clock around every step.
        roof: What the machine can do; None where it was not measured.
        notes: What differs from what was asked.
        candidates: Milliseconds of the whole networks that the policy compared.
    """

    model: str
    backend: str
    threads: int
    isa: str
    policy: str
    runs: int
    rows: tuple[Row, ...]
    whole_ms: float
    cpu_ms: float = 0.0
    call_ms: float = 0.0
    clocked_ms: float = 0.0
    roof: Roofline | None = None
    notes: tuple[str, ...] = ()
    candidates: Mapping[str, float] = field(default_factory=dict)

    @property
    def steps_ms(self) -> float:
        """All steps together."""
        return sum(row.milliseconds for row in self.rows)

    @property
    def busy_ms(self) -> float:
        """Time of a run; its processor time where others took the processor away in between."""
        return self.cpu_ms if self.interrupted else self.whole_ms

    @property
    def interrupted(self) -> bool:
        """Whether a run with one thread took clearly longer than the processor worked on it."""
        return 0 < self.cpu_ms * (1 + AGREE) < self.whole_ms

    @property
    def difference(self) -> float:
        """Medians of all steps and the call over the whole (:attr:`busy_ms`), less 1."""
        return (self.steps_ms + self.call_ms) / self.busy_ms - 1 if self.busy_ms else 0.0

    @property
    def adds_up(self) -> bool:
        """Whether the difference is at most :data:`AGREE`."""
        return abs(self.difference) <= AGREE

    @property
    def clock_cost(self) -> float:
        """Time of a run with clocks over that of one without, less 1: what profiling itself costs."""
        return self.clocked_ms / self.busy_ms - 1 if self.busy_ms and self.clocked_ms else 0.0

    @property
    def work(self) -> Work | None:
        """Of all steps whose work is known."""
        known = [row.work for row in self.rows if row.work is not None]
        return together(known) if known else None

    @property
    def fraction(self) -> float | None:
        """Least time of all steps by the roofline over the time of the whole."""
        if self.roof is None or not self.whole_ms or any(row.work is None for row in self.rows):
            return None
        return sum(least_ms(row.work, self.roof) for row in self.rows if row.work) / self.busy_ms

    def summary(self) -> list[str]:
        """Speed of the whole in words, and how far that is from the limits."""
        work, roof, fraction = self.work, self.roof, self.fraction
        if work is None or not work.operations or not self.busy_ms:
            return []
        rate = work.operations / (1e6 * self.busy_ms)
        words = f"{rate:.4g} {'GOP/s' if work.kind == 'int8' else 'GFLOP/s'}"
        if roof is None or fraction is None:
            return [words]
        peak = roof.peaks[peak_of(work, roof)].value
        found = [
            f"{words}, {rate / peak:.0%} of the {work.kind} peak; {fraction:.0%} of what the roofline allows"
        ]
        if any(row.fraction is not None and row.fraction > 1.02 for row in self.rows):
            found.append(FEWER)
        return found

    def under(self, roof: Roofline) -> Profile:
        """The same with every step held against a machine's limits."""
        return replace(self, roof=roof, rows=tuple(_under(row, roof) for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "model": self.model,
            "backend": self.backend,
            "threads": self.threads,
            "isa": self.isa,
            "policy": self.policy,
            "runs": self.runs,
            "whole_ms": self.whole_ms,
            "cpu_ms": self.cpu_ms,
            "steps_ms": self.steps_ms,
            "call_ms": self.call_ms,
            "difference": self.difference,
            "clock_cost": self.clock_cost,
            "fraction_of_attainable": self.fraction,
            "candidates_ms": dict(self.candidates),
            "notes": list(self.notes),
            "roof": None if self.roof is None else self.roof.to_dict(),
            "layers": [row.to_dict() for row in self.rows],
        }


def _under(row: Row, roof: Roofline) -> Row:
    if row.work is None or not row.work.bytes or row.milliseconds <= 0:
        return row
    return replace(
        row,
        level=level_of(row.work, roof),
        bound=bound_of(row.work, roof),
        attainable=attainable(row.work, roof) if row.work.operations else None,
        fraction=least_ms(row.work, roof) / row.milliseconds,
    )


# --- measuring, in the process that holds the network -------------------------------------------------


def measure_steps(executable: Executable, inputs: Mapping[str, np.ndarray], runs: int) -> dict[str, Any]:
    """Time an Executable of the engine step by step, runs with and without clocks in turns.

    Returns:
        Fields of :class:`Profile` but ``model``, as plain values; rows are dictionaries of :class:`Row`.

        There are none where the whole network runs on another back end that cannot tell; the last note says so.
    """
    from dlas.runtime.engine.executable import EngineExecutable
    from dlas.runtime.engine.portfolio import Whole

    if isinstance(executable, EngineExecutable):
        return _own(executable, inputs, runs)
    backend = executable.name if isinstance(executable, Whole) else ""
    plan = executable.plan if isinstance(executable, Whole) else None
    whole = _median_ms(executable.runner(inputs), runs)
    notes = list(executable.notes)
    try:
        found = executable.profile(inputs, runs)
    except UnsupportedError as error:
        found = ()
        notes.append(error.message)
    return {
        "backend": backend,
        "threads": 0 if plan is None else plan.machine["threads"],
        "isa": "" if plan is None else plan.machine["isa"],
        "policy": "" if plan is None else plan.policy,
        "runs": runs,
        "rows": [
            {"name": r.name, "op": r.op, "impl": backend, "layout": "", "milliseconds": r.milliseconds}
            for r in found
        ],
        "whole_ms": whole,
        "notes": notes,
        "candidates": {} if plan is None else dict(plan.measured_ms),
    }


def _own(executable: EngineExecutable, inputs: Mapping[str, np.ndarray], runs: int) -> dict[str, Any]:
    program, plan = executable.program, executable.plan
    run = executable.runner(inputs)
    steps, whole, cpu = _take(run, program.step_times, runs)
    medians = np.median(steps, axis=0) * 1e-6
    block = BLOCK.get(plan.machine["isa"], 4)
    operands = program.network.operands
    call_ms = _call_ms()

    def stored(key: Key, node: Node | None) -> int:
        operand = operands.get(key[0]) or node.outputs[0]  # type: ignore[union-attr]  # a copy of an output
        place = storage(operand.shape, operand.dtype, key[1], block=block)
        return int(np.prod(place.shape, dtype=np.int64)) * np.dtype(place.dtype).itemsize

    rows = [
        {
            "name": step.name,
            "op": step.op,
            "impl": step.impl,
            "layout": _layout_text(step),
            "milliseconds": float(taken),
            "work": asdict(_step_work(step, stored)),
            "nodes": [call.name for call in step.calls],
        }
        for step, taken in zip(program.steps, medians, strict=True)
    ]
    return {
        "backend": "engine",
        "threads": plan.machine["threads"],
        "isa": plan.machine["isa"],
        "policy": plan.policy,
        "runs": len(steps),
        "rows": rows,
        "whole_ms": float(np.median(whole)) * 1e-6,
        "cpu_ms": float(np.median(cpu)) * 1e-6 if plan.machine["threads"] == 1 else 0.0,
        "call_ms": call_ms,
        "clocked_ms": float(np.median(steps.sum(axis=1))) * 1e-6 + call_ms,
        "notes": list(executable.notes),
        "candidates": dict(plan.measured_ms),
    }


def _take(
    run: Callable[[], object], step_times: Callable[[], list[float]], runs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nanoseconds, runs with and without clocks in turns.

    Returns:
        Of every step ``(runs, steps)``; of whole runs without clocks ``(runs,)``; their processor time ``(runs,)``.
    """
    for _ in range(_WARM):
        run()
        step_times()
    steps: list[list[float]] = []
    whole: list[int] = []
    cpu: list[int] = []
    for _ in range(runs):
        worked = thread_time_ns()
        start = perf_counter_ns()
        run()
        whole.append(perf_counter_ns() - start)
        cpu.append(thread_time_ns() - worked)
        steps.append(step_times())
    return np.array(steps), np.array(whole), np.array(cpu)


def _call_ms() -> float:
    """Time of a call that runs no step: what stands around the steps of every run."""
    empty = need_native().Program(Context.here(1).pool)
    empty.allocate(0)
    return _median_ms(empty.run, 200)


def _median_ms(run: Callable[[], object], runs: int) -> float:
    for _ in range(_WARM):
        run()
    found = []
    for _ in range(runs):
        start = perf_counter_ns()
        run()
        found.append(perf_counter_ns() - start)
    return float(np.median(found)) * 1e-6


def _layout_text(step: Step) -> str:
    before = dict.fromkeys(str(key[1]) for key in step.reads if key is not None)
    after = dict.fromkeys(str(key[1]) for key in step.writes)
    return " ".join(before) if list(before) == list(after) else f"{' '.join(before)} to {' '.join(after)}"


def _step_work(step: Step, stored: Callable[[Key, Node | None], int]) -> Work:
    if step.node is not None:
        keys = [key for key in (*step.reads, *step.writes) if key is not None]
        return work_of(step.node, [stored(key, step.node) for key in keys])
    inside = together([work_of(call.node) for call in step.calls])
    return replace(
        inside,
        bytes_in=sum(stored(key, None) for key in step.reads if key is not None),
        bytes_out=sum(stored(key, None) for key in step.writes),
    )


# --- the other side --------------------------------------------------------------------------------


def profile_of(model: str, measured: Mapping[str, Any], roof: Roofline | None = None) -> Profile:
    """A :class:`Profile` from what :func:`measure_steps` gave."""
    total = sum(row["milliseconds"] for row in measured["rows"]) or 1.0
    rows = []
    for row in measured["rows"]:
        work = None if row.get("work") is None else Work(**row["work"])
        more = {"work": work, "nodes": tuple(row.get("nodes", ())), "share": row["milliseconds"] / total}
        rows.append(Row(**{**row, **more}))
    found = Profile(model=model, **{**measured, "rows": tuple(rows), "notes": tuple(measured["notes"])})
    return found if roof is None else found.under(roof)
