"""Apache TVM (Relax): imports the ONNX graph, compiles it for an instruction-set level and exports a shared library.

The code is untuned: TVM ships no CPU schedules, so it is far slower than the other engines and uses one thread; it is
here as the base of tuning and as a back end whose optimisation level and instruction set can be chosen. The levels
follow the Relay levels of Louloudakis et al. (DeltaNN, 2023), which compared TVM at each of them.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

from dlas.core.environment import usable_cores, x86_level
from dlas.core.files import atomic_path
from dlas.core.lazy import optional_import
from dlas.core.options import option
from dlas.graph.model import Model
from dlas.graph.passes import bind_batch
from dlas.hardware.target import Target
from dlas.runtime.artifact import (
    Signature,
    SignedExecutable,
    artifact_file,
    damaged,
    foreign_operators,
    refused,
    unbound_dimensions,
)
from dlas.runtime.backend import Backend, LayerTiming, backends
from dlas.runtime.backends._tvm_graph import readable_by_tvm

_FILE = "lib.so"
# In all these ways its front end and compiler say that they cannot; crashes end the worker instead.
FAILURES = (
    NotImplementedError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError, RuntimeError,
    OSError,
)  # fmt: skip
_PLUMBING = "vm.builtin."  # shape checks and allocations of the virtual machine


@dataclass(frozen=True)
class TvmOptions:
    """Options of TVM."""

    opt: str = option(
        "O2",
        "Relax passes: O0 lowering only, O1 constants, O2 fusion, O3 simplified before fusion",
        choices=("O0", "O1", "O2", "O3"),
    )


@backends.register("tvm")
class Tvm(Backend):
    """Compiles the network ahead of time for the target's instruction set."""

    name = "tvm"
    summary = "Apache TVM (Relax), untuned: ahead-of-time code for a chosen instruction set"
    Options = TvmOptions
    requires: ClassVar[Mapping[str, str]] = {"tvm": "tvm"}
    distribution = "apache-tvm"
    isa_aware = True
    options: TvmOptions

    def supports(self, model: Model, target: Target) -> str:
        """Unknown operator domains, unbound dimensions, and a missing compiler (which links) are refused."""
        if not (shutil.which("g++") or shutil.which("clang++")):
            return "it needs a C++ compiler (g++ or clang++) to link its code"
        return target.unusable() or foreign_operators(model) or unbound_dimensions(model)

    def build(self, model: Model, target: Target, folder: Path, *, batch: int = 1) -> None:
        """Compile to ``lib.so``, weights inside.

        Raises:
            UnsupportedError: The front end does not know an operator, or compilation fails.
        """
        optional_import("tvm", extra="tvm", needed_for="the back end tvm")
        import tvm

        signature = Signature.of(model, batch)
        bound = bind_batch(model, batch)
        try:
            module = imported(bound)
            module = tvm.transform.Sequential([p for part in passes_of(self.options.opt) for p in part])(
                module
            )
            library = tvm.compile(module, target=tvm.target.Target(code_target(target.isa)))
        except FAILURES as error:
            raise refused("TVM", error) from error
        with atomic_path(folder / _FILE) as path:
            library.export_library(str(path))
        signature.write(folder)

    def load(self, folder: Path, target: Target, *, threads: int = 1) -> TvmExecutable:
        """Load the library into a virtual machine.

        Raises:
            ModelError: The artifact is damaged.
        """
        optional_import("tvm", extra="tvm", needed_for="the back end tvm")
        path = artifact_file(folder, _FILE)
        return TvmExecutable(Signature.read(folder), path, _settle_threads(threads))


class TvmExecutable(SignedExecutable):
    """A Relax virtual machine over a compiled library."""

    def __init__(self, signature: Signature, path: Path, notes: Sequence[str]) -> None:
        super().__init__(signature, notes)
        self._path = path
        self._machine: Any = _machine(path)
        self._main: Any = self._machine["main"]

    def runner(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """The compiled function on tensors made beforehand."""
        self._check(inputs)
        return partial(self._main, *self._tensors(inputs))

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 30) -> tuple[LayerTiming, ...]:
        """Median time per fused function, from a hook around every call of the virtual machine.

        The hook is Python code: it adds some microseconds to each function. Calls of one function are added up.
        """
        self._check(inputs)
        machine = _machine(self._path)  # the hook cannot be taken off again
        runs: list[dict[str, float]] = []
        begun = 0.0

        def hook(_: object, name: str, before: bool, *_rest: object) -> int:
            nonlocal begun
            now = perf_counter()
            if before:
                begun = perf_counter()
            elif not str(name).startswith(_PLUMBING):
                runs[-1][str(name)] += now - begun
            return 0

        machine.set_instrument(hook)
        call = partial(machine["main"], *self._tensors(inputs))
        for _ in range(repeats + 3):
            runs.append(defaultdict(float))
            call()
        kept = runs[3:]
        return tuple(
            LayerTiming(name, _operator(name), 1e3 * median(r[name] for r in kept)) for name in kept[0]
        )

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        found = self._main(*self._tensors(inputs))
        listed = [found] if len(self.signature.outputs) == 1 and hasattr(found, "numpy") else list(found)
        return [np.array(t.numpy()) for t in listed]

    def _tensors(self, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        import tvm

        return [tvm.runtime.tensor(np.ascontiguousarray(inputs[p.name])) for p in self.signature.inputs]

    def _free(self) -> None:
        self._main = self._machine = None


def imported(model: Model) -> Any:
    """A network without dynamic dimensions as a Relax module; raises one of ``FAILURES``."""
    from tvm.relax.frontend.onnx import from_onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_onnx(readable_by_tvm(model.to_proto()))  # type: ignore[arg-type]  # it is misdeclared


def passes_of(level: str) -> tuple[list[Any], list[Any]]:
    """The Relax passes of a level: those on operators, and those that begin with lowering them to tensor programs.

    What remains to be lowered after them is the job of ``tvm.compile``.
    """
    from tvm import relax

    passes = relax.transform
    if level == "O0":
        return [], [passes.LegalizeOps()]
    if level == "O1":
        return [], [passes.LegalizeOps(), passes.FoldConstant()]
    first = [passes.DecomposeOpsForInference(), passes.CanonicalizeBindings(), passes.FoldConstant()]
    return first if level == "O3" else [], [relax.get_pipeline("zero")]


def code_target(isa: str) -> dict[str, Any]:
    """TVM target for an instruction-set level; ``native`` is this processor by LLVM's name for it."""
    import tvm

    known = isa
    if isa == "native":
        known = tvm.target.codegen.llvm_get_system_cpu() or x86_level()
    return {"kind": "llvm", "mcpu": known, "num-cores": usable_cores()}


def _machine(path: Path) -> Any:
    import tvm
    from tvm import relax

    try:
        return relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())  # type: ignore[arg-type]
    except FAILURES as error:
        raise damaged(path, error) from error


_pool_threads: int | None = None


def _settle_threads(threads: int) -> tuple[str, ...]:
    """Ask for ``threads``; TVM reads the number once, when its pool starts, so the first caller decides."""
    global _pool_threads
    if _pool_threads is None:
        _pool_threads = threads
        os.environ["TVM_NUM_THREADS"] = str(threads)
        # Left alone, TVM would tie the calling thread to one core, and with it everything else in the process.
        os.environ.setdefault("TVM_BIND_THREADS", "0")
    notes = []
    if threads > 1:
        notes.append("untuned code runs on one thread")
    if threads != _pool_threads:
        notes.append(f"the thread pool of this process stays at {_pool_threads}")
    return tuple(notes)


def _operator(function: str) -> str:
    """``fused_conv2d2_add1_relu`` -> ``conv2d_add_relu``: numbers tell functions of one kind apart."""
    return re.sub(r"\d+(?=_|$)", "", function.removeprefix("fused_"))
