"""IREE: the ONNX graph through MLIR, compiled ahead of time for a chosen instruction set.

One thread runs in the caller's own thread (``local-sync``); more share IREE's task system (``local-task``), whose size
is settled once per process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.core.files import write_atomic
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

_FILE = "module.vmfb"
_NEEDED_FOR = "the back end iree"
_ENTRY = "main"  # the graph's own name may be anything, a function's may not


@dataclass(frozen=True)
class IreeOptions:
    """Options of IREE."""

    opt: str = option("O2", "optimisation level of the compiler", choices=("O0", "O1", "O2", "O3"))


@backends.register("iree")
class Iree(Backend):
    """Imports the graph with IREE's own ONNX importer and compiles it with LLVM."""

    name = "iree"
    summary = "IREE, llvm-cpu: ahead-of-time code for a chosen instruction set"
    Options = IreeOptions
    requires: ClassVar[Mapping[str, str]] = {"iree.compiler": "iree", "iree.runtime": "iree"}
    distribution = "iree-base-compiler"
    isa_aware = True
    options: IreeOptions

    def supports(self, model: Model, target: Target) -> str:
        """Unknown operator domains and unbound dimensions are refused; the compiler names the rest at build."""
        return target.unusable() or foreign_operators(model) or unbound_dimensions(model)

    def build(self, model: Model, target: Target, folder: Path, *, batch: int = 1) -> None:
        """Compile to ``module.vmfb``, weights inside.

        Raises:
            UnsupportedError: IREE cannot import or compile the network.
        """
        tools = optional_import("iree.compiler.tools", extra="iree", needed_for=_NEEDED_FOR)
        signature = Signature.of(model, batch)
        cpu = "host" if target.isa == "native" else target.isa
        flags = [f"--iree-llvmcpu-target-cpu={cpu}", f"--iree-opt-level={self.options.opt}"]
        try:
            text = _imported(bind_batch(model, batch))
            code = tools.compile_str(text, target_backends=["llvm-cpu"], input_type="onnx", extra_args=flags)
        except (tools.CompilerToolError, RuntimeError, ValueError, KeyError, NotImplementedError) as error:
            raise refused("IREE", _first_error(error)) from error
        write_atomic(folder / _FILE, code)
        signature.write(folder)

    def load(self, folder: Path, target: Target, *, threads: int = 1) -> IreeExecutable:
        """Load the module.

        Raises:
            ModelError: The artifact is damaged.
        """
        path = artifact_file(folder, _FILE)
        return IreeExecutable(Signature.read(folder), path, threads)


class IreeExecutable(SignedExecutable):
    """One module in a context of its own."""

    def __init__(self, signature: Signature, path: Path, threads: int) -> None:
        runtime = optional_import("iree.runtime", extra="iree", needed_for=_NEEDED_FOR)
        device, notes = _device(threads)
        super().__init__(signature, notes)
        self._put: Any = partial(runtime.asdevicearray, device)
        try:
            config = runtime.Config(device=device)
            module = runtime.VmModule.copy_buffer(config.vm_instance, path.read_bytes())
            context = runtime.SystemContext(vm_modules=[*config.default_vm_modules, module], config=config)
            self._main: Any = context.modules[module.name][_ENTRY]
        except (ValueError, RuntimeError, KeyError) as error:
            raise damaged(path, error) from error

    def runner(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """The compiled function on buffers made beforehand."""
        self._check(inputs)
        return partial(self._main, *self._buffers(inputs))

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 30) -> tuple[LayerTiming, ...]:
        """Not available: IREE fuses across layers; always raises UnsupportedError."""
        raise UnsupportedError(
            "IREE's Python runtime cannot tell the time of one layer", "profile with onnxruntime or openvino"
        )

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        found = self._main(*self._buffers(inputs))
        listed = list(found) if isinstance(found, tuple | list) else [found]
        return [
            np.array(y.to_host(), dtype=port.dtype)
            for y, port in zip(listed, self.signature.outputs, strict=True)
        ]

    def _buffers(self, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        return [self._put(np.array(inputs[p.name], order="C")) for p in self.signature.inputs]

    def _free(self) -> None:
        self._main = None


def _imported(model: Model) -> str:
    """The network as MLIR text in the torch-onnx dialect."""
    onnx_importer = optional_import(
        "iree.compiler.extras.onnx_importer", extra="iree", needed_for=_NEEDED_FOR
    )
    context = optional_import("iree.compiler.ir", extra="iree", needed_for=_NEEDED_FOR).Context()
    proto = model.to_proto()
    proto.graph.name = _ENTRY
    info = onnx_importer.ModelInfo(proto)
    module = info.create_module(context=context).operation
    importer = onnx_importer.NodeImporter.define_function(info.main_graph, module)
    try:
        importer.import_all()
    except onnx_importer.OnnxImportError as error:
        raise ValueError(str(error)) from error
    return str(module)


def _first_error(error: Exception) -> Exception:
    """The compiler's first error without the place in our text, which means nothing to a user."""
    for line in str(error).splitlines():
        _, sign, words = line.partition("error: ")
        if sign:
            return RuntimeError(words.split(" loc(")[0])
    return error


_pool_threads: int | None = None


def _device(threads: int) -> tuple[Any, tuple[str, ...]]:
    """A device with ``threads`` threads, and what there is to say about it; the first number above 1 stays."""
    runtime = optional_import("iree.runtime", extra="iree", needed_for=_NEEDED_FOR)
    if threads == 1:
        return runtime.get_driver("local-sync").create_default_device(), ()
    global _pool_threads
    if _pool_threads is None:
        _pool_threads = threads
        runtime.flags.parse_flags(f"--task_topology_group_count={threads}")
    note = f"the thread pool of this process stays at {_pool_threads}"
    notes = () if threads == _pool_threads else (note,)
    return runtime.get_driver("local-task").create_default_device(), notes
