"""ONNX to TFLite by onnx2tf, without its download: by default it fetches calibration images in every run."""

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any


def convert(order: dict[str, Any]) -> None:
    """Carry out an order; the file in ``source`` may be rewritten by the tool."""
    import numpy as np

    tool = importlib.import_module("onnx2tf.onnx2tf")
    shared = importlib.import_module("onnx2tf.utils.common_functions")

    def images(*_: object, **__: object) -> np.ndarray:
        return np.random.default_rng(0).random((20, 128, 128, 3), dtype=np.float32)

    for module in (tool, shared):
        setattr(module, "download_test_image_data", images)  # noqa: B010 - its type says nothing of it
    options = order["options"]
    folder = Path(order["target"]).parent / "onnx2tf"
    arguments = ["onnx2tf", "-i", order["source"], "-o", str(folder)]
    if options["keep_axes"]:
        import onnx

        inputs = onnx.load(order["source"]).graph.input
        arguments += ["-kat", *[i.name for i in inputs]]
    sys.argv = arguments
    tool.main()
    shutil.move(folder / f"{Path(order['source']).stem}_{options['precision']}.tflite", order["target"])
