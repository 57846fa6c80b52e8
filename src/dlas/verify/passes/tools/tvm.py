"""Apache TVM: the Relax passes of the levels of the back end ``tvm``, compiled and run.

A pass is judged by the code it leads to. What must always be done to get code at all (lowering the operators) is done
by ``tvm.compile`` where no pass has done it before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from dlas.core.files import scratch_folder
from dlas.core.lazy import optional_import
from dlas.core.options import option
from dlas.graph.model import Model
from dlas.graph.passes import bind_batch
from dlas.runtime.backends._tvm_graph import readable_by_tvm
from dlas.verify.passes.tool import Answers, PassTool, pass_tools

_LEGALIZE, _FOLD, _FUSE = "LegalizeOps", "FoldConstant", "FuseOps+FuseTIR"
_FOLD_EARLY = "FoldConstant-early"
LEVELS: Mapping[str, tuple[str, ...]] = {
    "O0": (_LEGALIZE,),
    "O1": (_LEGALIZE, _FOLD),
    "O2": (_LEGALIZE, _FOLD, _FUSE),
    "O3": ("DecomposeOpsForInference", "CanonicalizeBindings", _FOLD_EARLY, _LEGALIZE, _FOLD, _FUSE),
}
"""Passes of each level of the back end ``tvm``; fusion is one, as its halves compile only together."""


@dataclass(frozen=True)
class TvmPassOptions:
    """Options of ``tvm``."""

    opt: str = option("O3", "level whose passes are tried", choices=tuple(LEVELS))


@pass_tools.register("tvm")
class TvmPasses(PassTool):
    """Imports the network into Relax, runs passes and compiles; the result is a shared library."""

    name = "tvm"
    summary = "the Relax passes of Apache TVM's levels"
    Options = TvmPassOptions
    requires: ClassVar[Mapping[str, str]] = {"tvm": "tvm"}
    distribution = "apache-tvm"
    options: TvmPassOptions

    def bundles(self) -> list[PassTool]:
        """Every level up to the chosen one."""
        upto = list(LEVELS)[: list(LEVELS).index(self.options.opt) + 1]
        return [TvmPasses(replace(self.options, opt=level)) for level in upto]

    def passes(self, model: bytes) -> list[str]:
        """Those of the level."""
        return list(LEVELS[self.options.opt])

    def run(self, model: bytes, passes: Sequence[str] | None) -> bytes:
        """A shared library with the network for one row; see :meth:`PassTool.run`."""
        tvm: Any = optional_import("tvm", extra="tvm", needed_for="trying its passes")
        from tvm.relax.frontend.onnx import from_onnx

        bound = bind_batch(_network(model), 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: Any = from_onnx(readable_by_tvm(bound.to_proto()))  # type: ignore[arg-type]  # misdeclared
        for step in _sequence(LEVELS[self.options.opt] if passes is None else passes):
            module = step(module)
        native = tvm.target.codegen.llvm_get_system_cpu()
        target = {"kind": "llvm", "mcpu": native} if native else {"kind": "llvm"}
        library = tvm.compile(module, target=tvm.target.Target(target))
        with scratch_folder() as place:
            library.export_library(str(place / "lib.so"))
            return (place / "lib.so").read_bytes()

    def check(self, result: bytes) -> None:
        """Compiled code has no standard to conform to."""

    def answers(self, result: bytes, rows: dict[str, np.ndarray]) -> Answers:
        """Row by row; the names are those of the network, as code has none."""
        import tvm
        from tvm import relax

        with scratch_folder() as place:
            (place / "lib.so").write_bytes(result)
            machine = relax.VirtualMachine(tvm.runtime.load_module(str(place / "lib.so")), tvm.cpu())  # type: ignore[arg-type]
            counts = {len(x) if x.ndim else 0 for x in rows.values()}
            single = len(counts) != 1 or counts == {0}  # inputs that are no rows: one run takes them all
            found = []
            for i in range(1 if single else counts.pop()):
                fed = [x if single else x[i : i + 1] for x in rows.values()]
                given = machine["main"](*(tvm.runtime.tensor(np.ascontiguousarray(x)) for x in fed))
                listed = [given] if hasattr(given, "numpy") else list(given)
                found.append([np.array(t.numpy()) for t in listed])
        return Answers(tuple(rows), (), [np.concatenate(parts) for parts in zip(*found, strict=True)])


def _sequence(names: Sequence[str]) -> list[Callable[[Any], Any]]:
    """The Relax passes behind the names; operators are marked for fusion as soon as they are lowered."""
    from tvm.relax import transform

    steps: list[Any] = []
    for name in names:
        if name == _FUSE:
            lowered = (
                [] if _LEGALIZE in names else [transform.LegalizeOps(), transform.AnnotateTIROpPattern()]
            )
            steps += [*lowered, transform.FuseOps(), transform.FuseTIR()]
        elif name == _LEGALIZE:
            steps += [transform.LegalizeOps()] + [transform.AnnotateTIROpPattern()] * (_FUSE in names)
        elif name in (_FOLD, _FOLD_EARLY):
            steps.append(transform.FoldConstant())
        else:
            steps.append(getattr(transform, name)())
    return steps


def _network(model: bytes) -> Model:
    import onnx

    return Model.from_proto(onnx.ModelProto.FromString(model))
