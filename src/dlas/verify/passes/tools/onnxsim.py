"""onnxsim: shape inference, constant folding, and the passes of onnxoptimizer it was built with."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dlas.core.lazy import optional_import
from dlas.verify.passes.tool import PassTool, pass_tools

_SHAPES, _FOLDING = "shape_inference", "constant_folding"


@pass_tools.register("onnxsim")
class OnnxSim(PassTool):
    """``onnxsim.simplify``; a pass is left in while all others are skipped."""

    name = "onnxsim"
    summary = "onnxsim, stage by stage and pass by pass"
    requires: ClassVar[Mapping[str, str]] = {"onnxsim": "opt"}
    distribution = "onnxsim"

    def passes(self, model: bytes) -> list[str]:
        """Shape inference and constant folding, then the passes it runs by itself."""
        return [_SHAPES, _FOLDING, *self._optimizers()]

    def run(self, model: bytes, passes: Sequence[str] | None) -> bytes:
        """The simplified network; its own check on random inputs and its proofs are left out."""
        import onnx

        simplify: Any = optional_import("onnxsim", extra="opt", needed_for="trying its passes").simplify
        optimizers = self._optimizers()
        chosen = set(self.passes(model) if passes is None else passes)
        made, _ = simplify(
            onnx.ModelProto.FromString(model),
            skipped_optimizers=[o for o in optimizers if o not in chosen],
            skip_constant_folding=_FOLDING not in chosen,
            skip_shape_inference=_SHAPES not in chosen,
            **self._quiet(),
        )
        return made.SerializeToString(deterministic=True)

    def _optimizers(self) -> list[str]:
        optional_import("onnxsim", extra="opt", needed_for="trying its passes")
        return list(importlib.import_module("onnxsim.onnxsim_cpp2py_export")._list_optimizers())

    def _quiet(self) -> dict[str, Any]:
        import inspect

        import onnxsim  # pyright: ignore[reportMissingImports]

        # Newer releases try to prove the result right with a solver if one is installed.
        return {"certify": False} if "certify" in inspect.signature(onnxsim.simplify).parameters else {}
