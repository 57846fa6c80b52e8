"""onnxoptimizer: the passes of the ONNX project, each of which can be run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dlas.core.lazy import optional_import
from dlas.verify.passes.tool import PassTool, pass_tools


@pass_tools.register("onnxoptimizer")
class OnnxOptimizer(PassTool):
    """``onnxoptimizer.optimize``; by itself it runs the passes that fuse and eliminate."""

    name = "onnxoptimizer"
    summary = "the optimiser of the ONNX project, pass by pass"
    requires: ClassVar[Mapping[str, str]] = {"onnxoptimizer": "opt"}
    distribution = "onnxoptimizer"

    def passes(self, model: bytes) -> list[str]:
        """Every pass of the library."""
        return list(_library().get_available_passes())

    def bundle(self, model: bytes) -> list[str]:
        """Those that fuse and eliminate."""
        return list(_library().get_fuse_and_elimination_passes())

    def run(self, model: bytes, passes: Sequence[str] | None) -> bytes:
        """One round of the passes, in the library's order."""
        import onnx

        made = _library().optimize(
            onnx.ModelProto.FromString(model), None if passes is None else list(passes)
        )
        return made.SerializeToString(deterministic=True)


def _library() -> Any:
    return optional_import("onnxoptimizer", extra="opt", needed_for="trying its passes")
