"""onnxslim: its stages and each of its patterns of fusion and elimination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dlas.core.lazy import optional_import
from dlas.verify.passes.tool import PassTool, pass_tools

_STAGES = ("constant_folding", "dead_node_elimination", "subexpression_elimination", "weight_tying")
_SHAPES = "shape_inference"


@pass_tools.register("onnxslim")
class OnnxSlim(PassTool):
    """``onnxslim.slim``; a pass is a stage or a pattern, left in while all others are skipped."""

    name = "onnxslim"
    summary = "onnxslim, stage by stage and pattern by pattern"
    requires: ClassVar[Mapping[str, str]] = {"onnxslim": "opt"}
    distribution = "onnxslim"

    def passes(self, model: bytes) -> list[str]:
        """Shape inference, constant folding, the patterns, and what cleans up behind them."""
        return [_SHAPES, _STAGES[0], *self._patterns(), *_STAGES[1:]]

    def run(self, model: bytes, passes: Sequence[str] | None) -> bytes:
        """The slimmed network."""
        import onnx

        slim: Any = optional_import("onnxslim", extra="opt", needed_for="trying its passes").slim
        patterns = self._patterns()
        chosen = set(self.passes(model) if passes is None else passes)
        made = slim(
            onnx.ModelProto.FromString(model),
            no_shape_infer=_SHAPES not in chosen,
            skip_optimizations=[stage for stage in _STAGES if stage not in chosen],
            skip_fusion_patterns=[p for p in patterns if p not in chosen],
        )
        return made.SerializeToString(deterministic=True)

    def _patterns(self) -> list[str]:
        optional_import("onnxslim", extra="opt", needed_for="trying its passes")
        import importlib

        return list(importlib.import_module("onnxslim.core.pattern.registry").get_fusion_patterns())
