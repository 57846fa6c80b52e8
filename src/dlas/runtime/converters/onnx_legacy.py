"""PyTorch's ONNX exporter of old (TorchScript), as it is."""

from __future__ import annotations

from dataclasses import dataclass

from dlas.core.options import option
from dlas.runtime.converter import HomeConverter, converters


@converters.register("onnx-legacy")
class OnnxLegacy(HomeConverter):
    """PyTorch's exporter based on TorchScript, which most files on the net were made with."""

    name = "onnx-legacy"
    summary = "PyTorch to ONNX by the TorchScript exporter (dynamo=False) as it is"
    takes = (".th", ".pt", ".pth")  # it cannot trace an exported program
    gives = (".onnx",)
    function = "dlas.runtime.converters._torch:legacy"

    @dataclass(frozen=True)
    class Options:
        """Options of the converter."""

        opset: int = option(17, "version of the ONNX operators", low=9, high=20)
