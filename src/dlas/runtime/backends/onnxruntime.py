"""ONNX Runtime on the CPU: optimises the graph when it is loaded and runs it with its own kernels.

The thread pool is private to the session: ``threads`` inside an operator, operators one after the other.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dlas.compress.unsigned import unsigned_activations
from dlas.core.environment import relevant_flags
from dlas.core.files import scratch_folder, write_atomic
from dlas.core.options import option
from dlas.graph.model import Model
from dlas.hardware.target import Target
from dlas.runtime.artifact import (
    ONNX_FILE,
    Signature,
    SignedExecutable,
    artifact_file,
    damaged,
    foreign_operators,
    refused,
    unbound_dimensions,
)
from dlas.runtime.backend import Backend, LayerTiming, backends

_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}
_LOG_ERRORS = 3
_VNNI = {"avx512_vnni", "avx_vnni"}


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """Options of ONNX Runtime."""

    level: str = option("all", "graph optimisation level", choices=tuple(_LEVELS))
    unsigned: bool = option(
        True, "store int8 activations as uint8 where the processor is an x86: same numbers, faster"
    )


@backends.register("onnxruntime")
class OnnxRuntime(Backend):
    """Runs the ONNX file as it is, on the CPU provider."""

    name = "onnxruntime"
    summary = "ONNX Runtime, CPU provider: the graph as it is, optimised at load"
    Options = OnnxRuntimeOptions
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "all"}
    distribution = "onnxruntime"
    fixed_batch = False
    options: OnnxRuntimeOptions

    def supports(self, model: Model, target: Target) -> str:
        """Unknown operator domains and unbound dimensions are refused."""
        return (
            target.unusable()
            or foreign_operators(model, "com.microsoft", "ai.onnx.ml")
            or unbound_dimensions(model)
        )

    def build(self, model: Model, target: Target, folder: Path, *, batch: int = 1) -> None:
        """Write ``model.onnx``; the optimised graph is machine-dependent and made at load."""
        run, notes = model, []
        if self.options.unsigned and platform.machine() in ("x86_64", "AMD64"):
            graph = model.editable()
            count = unsigned_activations(graph)
            run = dataclasses.replace(model, ir=graph)
            notes = [f"{count} int8 activations are stored as uint8"] if count else []
        signature = Signature.of(model, batch, free_batch=True, notes=notes)
        write_atomic(folder / ONNX_FILE, run.to_bytes())
        signature.write(folder)

    def load(self, folder: Path, target: Target, *, threads: int = 1) -> OnnxRuntimeExecutable:
        """Create a session.

        Raises:
            UnsupportedError: ONNX Runtime has no kernel for an operator, or finds the network invalid.
            ModelError: The artifact is damaged.
        """
        path = artifact_file(folder, ONNX_FILE)
        signature = Signature.read(folder)
        make = functools.partial(_session, path, self.options.level, threads)
        return OnnxRuntimeExecutable(signature, make)


class OnnxRuntimeExecutable(SignedExecutable):
    """A session; a second one is made for profiling because profiling slows every run down."""

    def __init__(self, signature: Signature, make: Callable[..., Any]) -> None:
        super().__init__(signature)
        self._make = make
        self._session: Any = make()

    def runner(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Exactly ``session.run(None, feed)``."""
        self._check(inputs)
        return functools.partial(self._session.run, None, dict(inputs))

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 30) -> tuple[LayerTiming, ...]:
        """Median kernel time per node of the optimised graph; its names are those of the fused nodes."""
        self._check(inputs)
        with scratch_folder() as folder:
            session = self._make(profile_prefix=str(folder / "ort"))
            for _ in range(repeats + 3):
                session.run(None, dict(inputs))
            events = json.loads(Path(session.end_profiling()).read_text())
        return _layer_times(events, skip=3)

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        return self._session.run(None, dict(inputs))

    def _free(self) -> None:
        self._session = None


def _session(path: Path, level: str, threads: int, profile_prefix: str = "") -> Any:
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as states  # type: ignore[attr-defined]

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[level])
    settings.log_severity_level = _LOG_ERRORS
    if not _VNNI & set(relevant_flags()):
        # Without VNNI the faster int8 kernels saturate sums of two products at 16 bits; there the exact ones are used.
        # With it the exact ones only cost time: twice as much on a ResNet-20.
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if profile_prefix:
        settings.enable_profiling = True
        settings.profile_file_prefix = profile_prefix
    try:
        return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except states.InvalidProtobuf as error:
        raise damaged(path, error) from error
    except (
        states.NotImplemented,
        states.InvalidGraph,
        states.InvalidArgument,
        states.Fail,
        states.RuntimeException,
    ) as error:
        raise refused("ONNX Runtime", error) from error


def _layer_times(events: Sequence[Mapping[str, Any]], skip: int) -> tuple[LayerTiming, ...]:
    """Rows from a trace, in order of first execution; the first ``skip`` runs are the warm-up."""
    suffix = "_kernel_time"
    times: dict[str, list[float]] = defaultdict(list)
    ops: dict[str, str] = {}
    for event in events:
        label = event.get("name", "")
        if event.get("cat") == "Node" and label.endswith(suffix):
            name = label[: -len(suffix)]
            times[name].append(event["dur"] / 1e3)
            ops[name] = event.get("args", {}).get("op_name", "")
    return tuple(LayerTiming(name, ops[name], statistics.median(t[skip:] or t)) for name, t in times.items())
