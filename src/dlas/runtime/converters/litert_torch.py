"""litert-torch: PyTorch to TFLite without ONNX in between."""

from __future__ import annotations

from dlas.runtime.converter import SideConverter, converters


@converters.register("litert-torch")
class LitertTorch(SideConverter):
    """litert-torch in a side environment, given an exported program."""

    name = "litert-torch"
    summary = "PyTorch to TFLite by litert-torch, in a side environment"
    takes = (".pt2",)
    gives = (".tflite",)
    needs = "torch"
    environment = "litert-torch"
    runner = "litert_torch.py"
    reports = ("litert-torch", "litert-converter", "ai-edge-litert", "torch", "numpy")

    def _sources(self) -> tuple[str, ...]:
        return (".th", ".pt", ".pth", ".pt2")
