"""tf2onnx: Keras and TFLite files to ONNX, by each of its entrances."""

from __future__ import annotations

from dataclasses import dataclass

from dlas.core.options import option
from dlas.runtime.converter import HomeConverter, converters


@converters.register("tf2onnx")
class Tf2onnx(HomeConverter):
    """tf2onnx as it is; dlas's own reader of Keras files uses it too, but checks and tidies afterwards."""

    name = "tf2onnx"
    summary = "Keras or TFLite to ONNX by tf2onnx as it is"
    requires = {"tf2onnx": "keras", "tensorflow": "keras"}  # noqa: RUF012
    takes = (".h5", ".hdf5", ".keras", ".tflite")
    gives = (".onnx",)
    function = "dlas.runtime.converters._keras:to_onnx"

    @dataclass(frozen=True)
    class Options:
        """Options of the converter."""

        via: str = option(
            "keras",
            "entrance for Keras files: from_keras, from_function, or Keras 3's own export",
            choices=("keras", "function", "export"),
        )
        opset: int = option(18, "version of the ONNX operators", low=13, high=18)
