"""TFLite to ONNX by tflite2onnx."""

import importlib
from typing import Any


def convert(order: dict[str, Any]) -> None:
    """Carry out an order."""
    importlib.import_module("tflite2onnx").convert(order["source"], order["target"])
