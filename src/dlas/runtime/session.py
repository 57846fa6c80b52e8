"""What runs inside a worker process: one artifact, built or opened, its answers, its times and its memory.

Call these through ``core.worker.Worker.call("dlas.runtime.session:open", ...)``; arguments and results are text,
numbers, arrays and dictionaries of these. The opened artifact lives in this module until :func:`close`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.errors import DlasError, ShapeError, UnsupportedError
from dlas.core.figure import Source
from dlas.core.timing import Protocol, Sampler
from dlas.core.worker import child_memory, reset_peak
from dlas.graph.format import load_model
from dlas.hardware.target import Target, target_for
from dlas.runtime.artifact import Signature
from dlas.runtime.backend import Executable, backend_for, deployable


@dataclass
class _Session:
    executable: Executable
    signature: Signature
    target: Target
    memory: dict[str, Any]
    feed: dict[str, np.ndarray]
    sampler: Sampler | None = None


_session: _Session | None = None


def build(backend: str, model_path: str, target: str, folder: str, batch: int = 1) -> dict[str, Any]:
    """Compile the network in ``model_path`` into the existing, empty ``folder``.

    Args:
        backend: Choice as text (``tvm:opt=O3``).
        model_path: A file of any format dlas reads.
        target: Choice as text (``host:isa=x86-64-v3``).
        folder: Where the artifact goes.
        batch: Rows per run.

    Returns:
        ``notes`` (list of text), ``artifact_bytes``, ``seconds``.

    Raises:
        UnsupportedError: The back end cannot run this network on this target.
    """
    device = target_for(target)
    engine = backend_for(backend)
    path = Path(model_path)
    # A network full of NaN is a result like another: its answers tell.
    model = load_model(path, **({"allow_nan": True} if path.suffix == ".onnx" else {}))
    model = deployable(model)
    reason = engine.refusal(model, device)
    if reason:
        raise UnsupportedError(f"{engine.name} cannot run {model.name} on {target}: {reason}")
    begun = time.perf_counter()
    engine.build(model, device, Path(folder), batch=batch)
    seconds = time.perf_counter() - begun
    size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    return {"notes": list(Signature.read(Path(folder)).notes), "artifact_bytes": size, "seconds": seconds}


def open(backend: str, folder: str, target: str = "host", threads: int = 1) -> dict[str, Any]:
    """Load an artifact; an earlier one is closed.

    Returns:
        ``notes`` (list of text), ``batch``, ``inputs`` and ``outputs`` (name, shape, dtype each),
        ``baseline_rss_bytes`` (memory of the process with all libraries imported and no network).
    """
    global _session
    close()
    device = target_for(target)
    reason = device.unusable()
    if reason:
        raise UnsupportedError(f"target {target}: {reason}")
    engine = backend_for(backend)
    signature = Signature.read(Path(folder))
    for module in engine.requires:
        importlib.import_module(module)
    first = signature.random_inputs()
    resets = reset_peak()
    baseline = child_memory()
    executable = engine.load(Path(folder), device, threads=threads)
    executable.run(first)
    used = _memory(baseline, child_memory(), resets)
    _session = _Session(executable, signature, device, used, first)
    return {
        "notes": list(executable.notes),
        "batch": signature.batch,
        "inputs": [asdict(p) for p in signature.inputs],
        "outputs": [asdict(p) for p in signature.outputs],
        "baseline_rss_bytes": baseline["rss_bytes"],
    }


def outputs(x: np.ndarray) -> np.ndarray:
    """First output for every row of ``x``, a network with one input; ``(rows, ...)``."""
    return next(iter(all_outputs(x).values()))


def all_outputs(x: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output for every row of ``x`` (an array for a network with one input, else arrays by name).

    Rows go through in batches as built; the last one is filled up with copies of its last row, whose answers are
    dropped. The first batch becomes what timed runs compute on, unless sampling has begun.

    Raises:
        ShapeError: ``x`` does not fit the network, has no rows, or an output does not have one row per input row.
    """
    session = _opened()
    inputs = _named(session.signature, x)
    counts = {len(a) if a.ndim else 0 for a in inputs.values()}
    if len(counts) != 1 or counts == {0}:
        raise ShapeError(f"inputs have {sorted(counts)} rows: expected the same number of at least 1 in each")
    rows, batch = counts.pop(), session.signature.batch
    parts: dict[str, list[np.ndarray]] = {p.name: [] for p in session.signature.outputs}
    for start in range(0, rows, batch):
        taken = {name: _filled(a[start : start + batch], batch) for name, a in inputs.items()}
        count = min(batch, rows - start)
        found = session.executable.run(taken)
        for name, array in found.items():
            if array.ndim == 0 or len(array) != batch:
                raise ShapeError(
                    f"output {name!r} is {list(array.shape)} for {batch} rows: expected one row per row"
                )
            parts[name].append(array[:count])
        if start == 0 and session.sampler is None:
            session.feed = {name: np.array(a) for name, a in taken.items()}
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def feed(x: np.ndarray | Mapping[str, np.ndarray]) -> None:
    """Set what timed runs compute on (one batch); without it, on the first batch answered, else on random numbers.

    Raises:
        ShapeError: It is not one batch as built.
    """
    session = _opened()
    inputs = _named(session.signature, x)
    session.signature.check(inputs)
    session.feed, session.sampler = dict(inputs), None


def warm_up(protocol: Mapping[str, Any] | None = None) -> None:
    """Warm up for :func:`sample`; ``protocol`` holds fields of :class:`dlas.core.timing.Protocol`."""
    _sampler(_opened()).warm_up(Protocol(**(protocol or {})))


def sample(seconds: float, min_samples: int = 1, max_seconds: float | None = None) -> list[float]:
    """Milliseconds per run, one entry per sample; see :meth:`dlas.core.timing.Sampler.sample`."""
    limit = float("inf") if max_seconds is None else max_seconds
    return _sampler(_opened()).sample(seconds, min_samples, limit)


def profile(repeats: int = 30) -> list[dict[str, Any]]:
    """Rows of ``name``, ``op``, ``milliseconds`` and ``source``; UnsupportedError where the back end cannot tell."""
    session = _opened()
    rows = session.executable.profile(session.feed, repeats)
    return [{**asdict(row), "source": str(row.source)} for row in rows]


def steps(runs: int = 50) -> dict[str, Any]:
    """What :func:`dlas.runtime.engine.profile.measure_steps` says of the opened artifact, which is of the engine."""
    from dlas.runtime.engine.profile import measure_steps

    session = _opened()
    return measure_steps(session.executable, session.feed, runs)


def modelled() -> dict[str, dict[str, Any]]:
    """Figures of a device that is not here; empty where timing this process is right."""
    return {name: figure.to_dict() for name, figure in _opened().executable.modelled().items()}


def memory() -> dict[str, Any]:
    """Memory of loading and the first run, taken by :func:`open` before any data set came into this process.

    Returns:
        ``peak_bytes``: the most this process held resident, less what it held with the libraries imported and no
        network loaded. ``process_bytes``: the most it held altogether. ``source`` (measured) and ``note``. Figures
        that the back end itself gives stand under their names as dictionaries.
    """
    session = _opened()
    own = {name: figure.to_dict() for name, figure in session.executable.memory().items()}
    return {**session.memory, **own}


def energy(seconds: float = 1.0) -> dict[str, Any]:
    """Energy per run on the target's counter; empty where it has none that can be read.

    Returns:
        ``mj_per_run`` (whole processor package, idle power included), ``runs``, ``source`` and ``note``.
    """
    session = _opened()
    reader = session.target.energy_reader()
    if reader is None:
        return {}
    run = session.executable.runner(session.feed)
    for _ in range(3):
        run()
    runs, start = 0, reader.read_joules()
    until = time.perf_counter() + seconds
    while runs == 0 or time.perf_counter() < until:
        run()
        runs += 1
    joules = reader.read_joules() - start
    return {
        "mj_per_run": 1e3 * joules / runs,
        "runs": runs,
        "source": str(Source.MEASURED),
        "note": "whole processor package, idle power included",
    }


def hold_to(threads: int) -> None:
    """Let this process, with all threads it has by now, stay on this many of its processors."""
    allowed = sorted(os.sched_getaffinity(0))[:threads]
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread), allowed)


def close() -> None:
    """Close the artifact; calling it again does nothing."""
    global _session
    if _session is not None:
        _session.executable.close()
        _session = None


def _memory(before: Mapping[str, int], after: Mapping[str, int], resets: bool) -> dict[str, Any]:
    """Where the system does not let the peak be reset, an earlier, higher one hides part of ours."""
    start = before["rss_bytes" if resets else "peak_rss_bytes"]
    peak = after["peak_rss_bytes"]
    note = "resident, above the process with its libraries" + ("" if resets else "; a lower bound")
    return {
        "peak_bytes": max(0, peak - start),
        "process_bytes": peak,
        "source": str(Source.MEASURED),
        "note": note,
    }


def _opened() -> _Session:
    if _session is None:
        raise DlasError("no artifact is open in this process", "call dlas.runtime.session:open first")
    return _session


def _sampler(session: _Session) -> Sampler:
    if session.sampler is None:
        session.sampler = Sampler(session.executable.runner(session.feed))
    return session.sampler


def _named(signature: Signature, x: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if isinstance(x, Mapping):
        return dict(x)
    if len(signature.inputs) != 1:
        names = [p.name for p in signature.inputs]
        raise ShapeError(
            f"one array was given, the network has {len(names)} inputs", f"give them by name: {names}"
        )
    return {signature.inputs[0].name: x}


def _filled(rows: np.ndarray, batch: int) -> np.ndarray:
    missing = batch - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows


__all__ = [
    "all_outputs", "build", "close", "energy", "feed", "hold_to", "memory", "modelled", "open", "outputs", "profile",
    "sample", "steps", "warm_up",
]  # fmt: skip
