"""TensorFlow's own converter of Keras networks to TFLite, as installed today."""

from __future__ import annotations

from dlas.runtime.converter import HomeConverter, converters


@converters.register("tflite-converter")
class TfliteConverter(HomeConverter):
    """``tf.lite.TFLiteConverter`` with its defaults; batch 1."""

    name = "tflite-converter"
    summary = "Keras to TFLite by TensorFlow's TFLiteConverter as it is"
    requires = {"tensorflow": "keras"}  # noqa: RUF012
    takes = (".h5", ".hdf5", ".keras")
    gives = (".tflite",)
    function = "dlas.runtime.converters._keras:to_tflite"
