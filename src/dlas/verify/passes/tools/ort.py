"""ONNX Runtime: its optimisation levels, its graph transformers and its rewrite rules.

The transformers of a level are those that its log names when a session is made and that are not named without
optimisation. Rewrite rules run inside two of them and are not logged; their names stand below, and a name that
ONNX Runtime does not know is one pass that changes nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from dlas.core.files import scratch_folder
from dlas.core.options import option
from dlas.core.worker import WorkerFailure, run_in_worker
from dlas.verify.passes.tool import PassTool, pass_tools

LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}
RULES = (
    "EliminateIdentity", "EliminateSlice", "UnsqueezeElimination", "EliminateDropout", "ExpandElimination",
    "CastElimination", "CastChainElimination", "PreShapeNodeElimination", "NoopElimination", "DivMulFusion",
    "FuseReluClip", "GemmSumFusion", "GemmTransposeFusion", "NotWhereFusion", "ConvAddFusion", "ConvMulFusion",
    "ConvBNFusion", "Pad_Fusion", "MatMul_BatchNormalization_Fusion", "LabelEncoderFusion", "ClipQuantRewrite",
    "ReluQuantRewrite",
)  # fmt: skip
_RULE_RUNNER = re.compile(r"^Level\d_RuleBasedTransformer$")
_LOGGED = re.compile(r"Applying graph transformer (\w+) on step")
_LOG_S = 300.0


@dataclass(frozen=True)
class OrtOptions:
    """Options of ``ort``."""

    level: str = option("all", "graph optimisation level whose passes are tried", choices=tuple(LEVELS))


@pass_tools.register("ort")
class Ort(PassTool):
    """A session that writes its optimised graph; a pass runs while all others are disabled by name."""

    name = "ort"
    summary = "ONNX Runtime's levels, graph transformers and rewrite rules"
    Options = OrtOptions
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "all"}
    distribution = "onnxruntime"
    in_runtime = True
    options: OrtOptions

    def bundles(self) -> list[PassTool]:
        """Every level up to the chosen one."""
        names = list(LEVELS)
        upto = names[: names.index(self.options.level) + 1]
        return [Ort(replace(self.options, level=level)) for level in upto]

    def passes(self, model: bytes) -> list[str]:
        """Rewrite rules, then transformers in the order the log names them first."""
        if self.options.level == "disable":
            return []
        return [*RULES, *_transformers(model, self.options.level)]

    def run(self, model: bytes, passes: Sequence[str] | None) -> bytes:
        """The graph that ONNX Runtime would execute on this machine, as an ONNX file."""
        level, disabled = self.options.level, []
        if passes is not None:
            disabled = [p for p in self.passes(model) if p not in passes]
        return _optimised(model, level, disabled)


@functools.lru_cache(maxsize=8)
def _transformers(model: bytes, level: str) -> tuple[str, ...]:
    """Those that a session of this level runs and one without optimisation does not."""
    always = set(_logged(model, "disable"))
    found = [t for t in _logged(model, level) if t not in always]
    return tuple(t for t in found if not _RULE_RUNNER.match(t))


def _optimised(model: bytes, level: str, disabled: Sequence[str], verbose: bool = False) -> bytes:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[level])
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 0 if verbose else 4
    with scratch_folder() as place:
        options.optimized_model_filepath = str(place / "optimised.onnx")
        given: dict[str, Any] = {"disabled_optimizers": list(disabled)} if disabled else {}
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], **given)
        return (place / "optimised.onnx").read_bytes()


def _logged(model: bytes, level: str) -> list[str]:
    """Names of the transformers that the log of a session tells of, in order of first appearance.

    The session has a process of its own: where one of them crashes, the log ends with its name.
    """
    with scratch_folder() as place:
        log = place / "log"
        log.touch()
        with contextlib.suppress(WorkerFailure):  # what fails here fails again when it is tried
            run_in_worker(f"{__name__}:_log", model, level, str(log), timeout_s=_LOG_S, threads=1)
        return list(dict.fromkeys(_LOGGED.findall(log.read_text(errors="replace"))))


def _log(model: bytes, level: str, path: str) -> None:
    with _stderr_to(Path(path)):
        _optimised(model, level, (), verbose=True)


@contextlib.contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Send what native code writes to standard error to a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
