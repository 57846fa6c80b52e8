"""PyTorch's own ONNX exporter of today (``torch.onnx.export(dynamo=True)``), as it is."""

from __future__ import annotations

from dataclasses import dataclass

from dlas.core.options import option
from dlas.runtime.converter import HomeConverter, converters


@converters.register("onnx-dynamo")
class OnnxDynamo(HomeConverter):
    """PyTorch's exporter based on torch.export; nothing of dlas's afterwards."""

    name = "onnx-dynamo"
    summary = "PyTorch to ONNX by torch.onnx.export as it is (torch.export inside)"
    takes = (".th", ".pt", ".pth", ".pt2")
    gives = (".onnx",)
    function = "dlas.runtime.converters._torch:dynamo"

    @dataclass(frozen=True)
    class Options:
        """Options of the converter."""

        opset: int = option(18, "version of the ONNX operators", low=18, high=25)
