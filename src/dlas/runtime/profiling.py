"""Profile one network on the engine, in a worker process of its own."""

from __future__ import annotations

from collections.abc import Callable

from dlas.core.files import scratch_folder
from dlas.core.options import Choice
from dlas.core.worker import WorkerFailure
from dlas.graph.model import Model
from dlas.hardware.target import measured_target
from dlas.runtime.backend import backend_for
from dlas.runtime.bench import WorkerSampler, build
from dlas.runtime.engine.profile import Profile, profile_of
from dlas.runtime.engine.work import roof_for


def profile(
    model: Model,
    *,
    choice: str = "engine",
    threads: int = 1,
    target: str = "host",
    runs: int = 50,
    timeout_s: float = 600.0,
    tell: Callable[[str], None] = lambda text: None,
) -> Profile:
    """Time ``model`` on the engine step by step (batch 1, random input), against the limits of this machine.

    Where the policy gave the whole network to another back end, the rows are that back end's own layers; where that
    cannot tell them, the engine's best program of own kernels is profiled instead, and a note says so.

    Args:
        model: The network.
        choice: The engine with its options, such as ``engine:policy=measure``.
        threads: Threads.
        target: Device.
        runs: Runs behind every median.
        timeout_s: Longest time for compiling, for choosing kernels and for timing.
        tell: Receives one line per step.

    Raises:
        UnsupportedError: The engine cannot run the network here.
        WorkerFailure: The worker died.
    """
    measured_target(target)
    backend_for(choice)
    measured = _measured(model, choice, threads, target, runs, timeout_s, tell)
    if not measured["rows"]:
        options = {**Choice.parse(choice).as_dict(), "policy": "measure"}
        why = f"{measured['backend']} is faster ({measured['whole_ms']:.4g} ms) but cannot tell the time of a layer"
        tell(why + ": profile own kernels instead")
        measured = _measured(
            model, str(Choice.of("engine", **options)), threads, target, runs, timeout_s, tell
        )
        measured["notes"].append(f"{why}; these are own kernels (policy measure)")
    tell("measure the limits of this machine")
    return profile_of(model.name, measured, roof_for(threads, measured["isa"] or "native"))


def _measured(
    model: Model,
    choice: str,
    threads: int,
    target: str,
    runs: int,
    timeout_s: float,
    tell: Callable[[str], None],
) -> dict:
    with scratch_folder() as folder:
        (folder / "model.onnx").write_bytes(model.to_bytes())
        tell(f"compile for {choice}")
        built = build(choice, folder, target, timeout_s)
        if isinstance(built, WorkerFailure):
            raise built
        sampler = WorkerSampler(threads, timeout_s)
        try:
            tell("choose kernels")
            sampler.open(choice, str(built), target, threads)
            tell(f"time {runs} runs")
            return sampler.call("steps", runs)
        finally:
            sampler.close()
