"""tflite2onnx: TFLite to ONNX; no longer maintained, of use to show what it does wrong."""

from __future__ import annotations

from dlas.runtime.converter import SideConverter, converters


@converters.register("tflite2onnx")
class Tflite2onnx(SideConverter):
    """tflite2onnx 0.4.1 in a side environment."""

    name = "tflite2onnx"
    summary = "TFLite to ONNX by tflite2onnx, in a side environment"
    takes = (".tflite",)
    gives = (".onnx",)
    environment = "tflite2onnx"
    runner = "tflite2onnx.py"
    reports = ("tflite2onnx", "onnx", "tflite", "numpy")
