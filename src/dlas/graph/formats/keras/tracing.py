"""How Keras is made to trace its layers into operators that have a word in ONNX.

Keras spells some layers out in ways that lose what they are: batch norms become a product and a sum (which constant
folding merges into the convolution before them), attention becomes shape arithmetic, a GRU a loop. While
:func:`plain` lasts, they are traced as one operator, or as products of matrices with fixed shapes.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from dlas.core.lazy import installed, optional_import
from dlas.graph.formats.keras.loading import Opened, all_layers

_RECURRENT = ("GRU", "LSTM", "SimpleRNN", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
_PAIR = re.compile(r"^[a-zA-Z]+,[a-zA-Z]+->[a-zA-Z]+$")
_GRU_OPTIONS = (
    "units", "activation", "recurrent_activation", "use_bias", "reset_after", "return_sequences", "return_state",
    "go_backwards",
)  # fmt: skip


def unroll(opened: Opened) -> bool:
    """Let recurrent layers of a fixed number of steps be written out step by step; whether there are any."""
    found = False
    for layer in all_layers(opened.model):
        if type(layer).__name__ in _RECURRENT and not layer.unroll:
            layer.unroll = found = True
    return found


@contextlib.contextmanager
def plain(tf: Any, model: Any) -> Iterator[None]:
    """While this lasts, Keras traces layers as plain operators under their own names."""
    with contextlib.ExitStack() as stack:
        for place in (tf, tf.compat.v2):
            stack.enter_context(_replaced(place.nn, "batch_normalization", _batch_norm(tf)))
            stack.enter_context(_replaced(place, "einsum", _einsum(tf)))
        if type(model).__module__.startswith("keras."):
            backend = optional_import("keras.src.backend", extra="keras", needed_for="reading a Keras file")
            stack.enter_context(_replaced(backend, "name_scope", _scope(tf, backend.name_scope)))
        for layer in all_layers(model):
            library = type(layer).__module__.partition(".")[0]
            if (
                library == "keras"
                and type(layer).__name__ == "GRU"
                and installed("tf_keras")
                and not layer.unroll
            ):
                stack.enter_context(_replaced(layer, "call", _gru(layer)))
            if library == "tf_keras" and type(layer).__name__ == "LayerNormalization":
                # It would call a batch norm over shapes that it computes at run time.
                stack.enter_context(_replaced(layer, "_fused", False))
        yield


@contextlib.contextmanager
def _replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def _scope(tf: Any, scope: type) -> type:
    scopes = optional_import(
        "keras.src.backend.common.name_scope", extra="keras", needed_for="reading a Keras file"
    )

    class Scope(scope):  # type: ignore[misc, valid-type]
        """A scope that TensorFlow does not number, however often it is entered."""

        def __enter__(self) -> Any:
            path = "/".join(filter(None, (scopes.current_path(), self.name)))
            self._tf_name_scope = tf.name_scope(path + "/")
            return super().__enter__()

    return Scope


def _batch_norm(tf: Any) -> Callable[..., Any]:
    spelled = tf.nn.batch_normalization

    def whole(
        x: Any, mean: Any, variance: Any, offset: Any, scale: Any, variance_epsilon: Any, name: Any = None
    ) -> Any:
        channels = x.shape[-1]
        over_last = bool(mean.shape) and mean.shape[-1] == mean.shape.num_elements() == channels
        if not 2 <= len(x.shape) <= 4 or not over_last or x.dtype != tf.float32:
            return spelled(x, mean, variance, offset, scale, variance_epsilon, name)
        mean, variance, offset, scale = (
            v if v is None else tf.reshape(v, (channels,)) for v in (mean, variance, offset, scale)
        )
        ones = [axis + 1 for axis in range(4 - len(x.shape))]
        for axis in ones:
            x = tf.expand_dims(x, axis)
        x = tf.compat.v1.nn.fused_batch_norm(
            x,
            tf.ones_like(mean) if scale is None else scale,
            tf.zeros_like(mean) if offset is None else offset,
            mean,
            variance,
            variance_epsilon,
            is_training=False,
        )[0]
        return tf.squeeze(x, ones) if ones else x

    return whole


def _einsum(tf: Any) -> Callable[..., Any]:
    general = tf.einsum

    def product(equation: str, *inputs: Any, **kwargs: Any) -> Any:
        """A contraction of two tensors as one product of matrices, where at most one size is open."""
        equation = equation.replace(" ", "")
        if len(inputs) != 2 or not _PAIR.match(equation):
            return general(equation, *inputs, **kwargs)
        terms, result = equation.split("->")
        left, right = terms.split(",")
        sizes: dict[str, int | None] = {}
        for term, tensor in ((left, inputs[0]), (right, inputs[1])):
            for letter, size in zip(term, tensor.shape, strict=True):
                sizes[letter] = size if size is not None else sizes.get(letter)
        both = [c for c in left if c in right and c in result]
        summed = [c for c in left if c in right and c not in result]
        rows = [c for c in left if c not in right]
        columns = [c for c in right if c not in left]
        simple = len({*left}) == len(left) and len({*right}) == len(right) and {*rows, *columns} <= {*result}
        if not simple or not summed or sum(size is None for size in sizes.values()) > 1:
            return general(equation, *inputs, **kwargs)

        def shape(*groups: list[str]) -> list[int]:
            found = [[sizes[c] for c in group] for group in groups]
            return [-1 if None in group else math.prod(g or 1 for g in group) for group in found]

        lead = [[c] for c in both]
        a = tf.transpose(inputs[0], [left.index(c) for c in (*both, *rows, *summed)])
        b = tf.transpose(inputs[1], [right.index(c) for c in (*both, *summed, *columns)])
        out = tf.matmul(
            tf.reshape(a, shape(*lead, rows, summed)), tf.reshape(b, shape(*lead, summed, columns))
        )
        order = [*both, *rows, *columns]
        out = tf.reshape(out, shape(*([c] for c in order)))
        return tf.transpose(out, [order.index(c) for c in result])

    return product


def _gru(layer: Any) -> Callable[..., Any]:
    """The call of a Keras 3 GRU through its twin in tf_keras, whose loop the translator knows for what it is."""
    twins = optional_import("tf_keras.layers", extra="keras", needed_for="translating a GRU")
    config = layer.get_config()
    usual = layer.call
    options = {key: config[key] for key in _GRU_OPTIONS}
    twin = None
    if all(isinstance(options[key], str) for key in ("activation", "recurrent_activation")):
        # Its own variables must be made outside the function that is traced; the layer's take their place.
        twin = twins.GRU(**options)
        twin.build((None, None, layer.cell.kernel.shape[0]))
        twin.cell.kernel, twin.cell.recurrent_kernel = (
            layer.cell.kernel.value,
            layer.cell.recurrent_kernel.value,
        )
        if options["use_bias"]:
            twin.cell.bias = layer.cell.bias.value

    def call(sequences: Any, initial_state: Any = None, mask: Any = None, training: bool = False) -> Any:
        if (
            twin is None
            or mask is not None
            or config.get("stateful")
            or config["recurrent_activation"] != "sigmoid"
        ):
            return usual(sequences, initial_state=initial_state, mask=mask, training=training)
        return twin(sequences, initial_state=initial_state, training=False)

    return call
