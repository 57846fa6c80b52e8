"""onnx2tf: ONNX to TFLite with the axes turned to NHWC; two releases, each in an environment of its own."""

from __future__ import annotations

from dataclasses import dataclass

from dlas.core.environments import SideEnvironment
from dlas.core.options import option
from dlas.runtime.converter import SideConverter, converters, side_environment


@converters.register("onnx2tf")
class Onnx2tf(SideConverter):
    """onnx2tf in a side environment, without its download of calibration images."""

    name = "onnx2tf"
    summary = "ONNX to TFLite by onnx2tf, in a side environment"
    takes = (".onnx",)
    gives = (".tflite",)
    needs = "onnx"
    environment = "onnx2tf"
    runner = "onnx2tf.py"
    reports = (
        "onnx2tf",
        "tensorflow",
        "tf-keras",
        "onnx",
        "onnxsim",
        "onnxruntime",
        "onnx-graphsurgeon",
        "numpy",
    )

    @dataclass(frozen=True)
    class Options:
        """Options of the converter."""

        version: str = option("1.29", "release: 1.29.24 or 1.28.8", choices=("1.29", "1.28"))
        precision: str = option("float32", "which of its files is kept", choices=("float32", "float16"))
        keep_axes: bool = option(False, "leave the axes of the inputs as they are (its option -kat)")

    @property
    def side(self) -> SideEnvironment:
        """One environment per release."""
        return side_environment("onnx2tf" if self.options.version == "1.29" else "onnx2tf-1.28")
