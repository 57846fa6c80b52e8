"""TensorFlow's own converters; called in a worker."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from dlas.core.errors import UnsupportedError
from dlas.core.lazy import distribution_version, optional_import
from dlas.graph.formats.keras import open_network
from dlas.graph.formats.keras.loading import Opened, tensorflow


def to_tflite(source: str, target: str, architecture: str) -> dict[str, str]:
    """Write ``target`` with TFLiteConverter, as it is."""
    tf, opened = tensorflow(), _opened(source)
    function = tf.function(opened.function, autograph=False, input_signature=_one_row(tf, opened))
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], opened.model
    )
    Path(target).write_bytes(converter.convert())
    return _versions("tensorflow", opened)


def to_onnx(source: str, target: str, architecture: str, via: str, opset: int) -> dict[str, str]:
    """Write ``target`` with tf2onnx, by the entrance that ``via`` names."""
    tf = tensorflow()
    tool: Any = optional_import("tf2onnx", extra="keras", needed_for="the converter tf2onnx")
    optional_import("tf2onnx.convert", extra="keras", needed_for="the converter tf2onnx")
    if Path(source).suffix.lower() == ".tflite":
        tool.convert.from_tflite(source, opset=opset, output_path=target)
        return {name: distribution_version(name) for name in ("tf2onnx", "tensorflow", "onnx")}
    opened = _opened(source)
    if via == "function":
        function = tf.function(opened.function, autograph=False, input_signature=list(opened.inputs))
        tool.convert.from_function(
            function, input_signature=list(opened.inputs), opset=opset, output_path=target
        )
    elif via == "keras":
        tool.convert.from_keras(
            opened.model, input_signature=list(opened.inputs), opset=opset, output_path=target
        )
    else:
        keras: Any = optional_import("keras", extra="keras", needed_for="the converter tf2onnx")
        model = keras.models.load_model(source, compile=False, safe_mode=True)
        model(tf.zeros([1, *opened.inputs[0].shape[1:]]))  # it exports only what was called once
        model.export(target, format="onnx", verbose=False, opset_version=opset)
    return {"tf2onnx": distribution_version("tf2onnx"), **_versions("tensorflow", opened)}


def _opened(source: str) -> Opened:
    with contextlib.suppress(RuntimeError):
        tensorflow().config.threading.set_intra_op_parallelism_threads(2)
    opened = open_network(Path(source), "")
    if opened.model is None:
        raise UnsupportedError(f"{Path(source).name} is no Keras file", "give a .h5 or .keras file")
    return opened


def _one_row(tf: Any, opened: Opened) -> list[Any]:
    return [tf.TensorSpec([1, *spec.shape[1:]], spec.dtype, name=spec.name) for spec in opened.inputs]


def _versions(first: str, opened: Opened) -> dict[str, str]:
    library, _, version = opened.loader.partition(" ")
    return {first: distribution_version(first), library: version}
