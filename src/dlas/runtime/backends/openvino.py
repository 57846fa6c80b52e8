"""OpenVINO on the CPU.

On processors with AMX or AVX512-BF16 OpenVINO computes in bfloat16 unless told otherwise; here the precision is always
stated, float32 by default. Quantised networks run on int8 kernels whatever the precision of the rest.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np

from dlas.core.lazy import optional_import
from dlas.core.options import option
from dlas.graph.model import Model
from dlas.hardware.target import Target
from dlas.runtime.artifact import (
    ONNX_FILE,
    Signature,
    SignedExecutable,
    artifact_file,
    foreign_operators,
    refused,
    unbound_dimensions,
    write_onnx,
)
from dlas.runtime.backend import Backend, LayerTiming, backends


@dataclass(frozen=True)
class OpenVinoOptions:
    """Options of OpenVINO."""

    precision: str = option("f32", "arithmetic of the floating-point layers", choices=("f32", "bf16", "f16"))


@backends.register("openvino")
class OpenVino(Backend):
    """Reads the ONNX file and compiles it for the CPU when it is loaded."""

    name = "openvino"
    summary = "OpenVINO CPU plug-in, one stream, latency hint, stated precision"
    Options = OpenVinoOptions
    requires: ClassVar[Mapping[str, str]] = {"openvino": "openvino"}
    distribution = "openvino"
    options: OpenVinoOptions

    def supports(self, model: Model, target: Target) -> str:
        """Unknown operator domains and unbound dimensions are refused."""
        return target.unusable() or foreign_operators(model, "com.microsoft") or unbound_dimensions(model)

    def build(self, model: Model, target: Target, folder: Path, *, batch: int = 1) -> None:
        """Write ``model.onnx``; compiling is machine-dependent and done at load."""
        signature = Signature.of(model, batch)
        write_onnx(model, folder)
        signature.write(folder)

    def load(self, folder: Path, target: Target, *, threads: int = 1) -> OpenVinoExecutable:
        """Compile for the CPU with the batch as built.

        Raises:
            UnsupportedError: OpenVINO cannot translate or compile the network.
        """
        path = artifact_file(folder, ONNX_FILE)
        signature = Signature.read(folder)
        settings = {
            "INFERENCE_PRECISION_HINT": self.options.precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
        }
        make = functools.partial(_compile, path, signature, settings)
        return OpenVinoExecutable(signature, self.options.precision, make)


class OpenVinoExecutable(SignedExecutable):
    """One infer request; a second network with counters is compiled for profiling."""

    def __init__(self, signature: Signature, precision: str, make: Callable[..., Any]) -> None:
        super().__init__(signature)
        self._make = make
        compiled = make()
        self._request: Any = compiled.create_infer_request()
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != precision:
            self.notes = (*self.notes, f"precision {precision} is not available here, OpenVINO uses {used}")

    def runner(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """One synchronous request with its inputs already in place."""
        self._check(inputs)
        self._request.infer(_ordered(self.signature, inputs))
        return self._request.infer

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 30) -> tuple[LayerTiming, ...]:
        """Median time of every node that was executed; fused nodes are counted with the node they joined."""
        self._check(inputs)
        request = self._make(counters=True).create_infer_request()
        feed = _ordered(self.signature, inputs)
        times: dict[str, list[float]] = defaultdict(list)
        kinds: dict[str, str] = {}
        for turn in range(repeats + 3):
            request.infer(feed)
            for row in request.get_profiling_info():
                if turn >= 3 and row.status == row.Status.EXECUTED:
                    times[row.node_name].append(row.real_time.total_seconds() * 1e3)
                    kinds[row.node_name] = row.node_type
        return tuple(LayerTiming(name, kinds[name], median(t)) for name, t in times.items())

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        self._request.infer(_ordered(self.signature, inputs))
        return [
            np.array(self._request.get_output_tensor(i).data, dtype=port.dtype)
            for i, port in enumerate(self.signature.outputs)
        ]

    def _free(self) -> None:
        self._request = None


def _ordered(signature: Signature, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [np.ascontiguousarray(inputs[p.name]) for p in signature.inputs]


def _compile(path: Path, signature: Signature, settings: Mapping[str, Any], *, counters: bool = False) -> Any:
    openvino = optional_import("openvino", extra="openvino", needed_for="the back end openvino")
    core = openvino.Core()
    try:
        network = core.read_model(str(path))
        shapes = {i: openvino.PartialShape(list(p.shape)) for i, p in enumerate(signature.inputs)}
        network.reshape(shapes)
        return core.compile_model(network, "CPU", {**settings, "PERF_COUNT": counters})
    except RuntimeError as error:
        raise refused("OpenVINO", _last_line(error)) from error


def _last_line(error: RuntimeError) -> RuntimeError:
    """OpenVINO's messages begin with source positions and end with the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return RuntimeError(lines[-1] if lines else "no reason given")
