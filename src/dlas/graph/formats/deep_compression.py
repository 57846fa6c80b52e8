"""The bitstream of Deep Compression for SqueezeNet v1.0: pruned, clustered weights without a graph of their own.

After Han, Mao & Dally, "Deep Compression", ICLR 2016, and Iandola et al., "SqueezeNet", 2016. The file has no header,
so it must be this network: 26 uint32 counts, then per layer a codebook of 256 float32, the float32 biases, one byte per
stored weight (its place in the codebook) and four bits per stored weight (zeros skipped before it); little endian.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dlas.core.errors import ModelError
from dlas.graph.format import Format, formats
from dlas.graph.model import OPSET, Model, Step, step_versions
from dlas.graph.passes import infer_shapes
from dlas.graph.preprocessing import Preprocessing

CODES = 256  # entries of a codebook; the first is 0 and bridges gaps of more than 15 zeros
SIZE = 227
PREPROCESSING = Preprocessing(
    height=SIZE, width=SIZE, resize=256, squash=True, colour="BGR", mean=(104.0, 117.0, 123.0)
)
_HINT = "check that it was downloaded completely"


@dataclass(frozen=True)
class _Conv:
    name: str
    shape: tuple[int, int, int, int]  # (out, in, height, width)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def nbytes(self, stored: int) -> int:
        """Bytes of this layer in the file, with ``stored`` entries."""
        return 4 * CODES + 4 * self.shape[0] + stored + (stored + 1) // 2


def _fire(number: int, inputs: int, squeeze: int, expand: int) -> tuple[_Conv, ...]:
    return (
        _Conv(f"fire{number}_squeeze1x1", (squeeze, inputs, 1, 1)),
        _Conv(f"fire{number}_expand1x1", (expand, squeeze, 1, 1)),
        _Conv(f"fire{number}_expand3x3", (expand, squeeze, 3, 3)),
    )


_FIRES = ((2, 96, 16, 64), (3, 128, 16, 64), (4, 128, 32, 128), (5, 256, 32, 128), (6, 256, 48, 192),
          (7, 384, 48, 192), (8, 384, 64, 256), (9, 512, 64, 256))  # fmt: skip
_POOLED = ("conv1", "fire4", "fire8")  # 3x3 maximum pooling with stride 2 follows them
LAYERS = (
    _Conv("conv1", (96, 3, 7, 7)),
    *(conv for fire in _FIRES for conv in _fire(*fire)),
    _Conv("conv10", (1000, 512, 1, 1)),
)
_COUNTS = struct.Struct(f"<{len(LAYERS)}I")
_LARGEST = _COUNTS.size + sum(conv.nbytes(conv.size) for conv in LAYERS)


@formats.register("deep-compression")
class DeepCompression(Format):
    """Reader of the compressed SqueezeNet."""

    name = "deep-compression"
    summary = "Deep Compression bitstream of SqueezeNet v1.0"
    suffixes = (".net",)

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        """Whether the first counts are at most the sizes of the first layers."""
        whole = len(head) // 4
        counts = struct.unpack_from(f"<{whole}I", head)
        return whole > 0 and all(n <= conv.size for n, conv in zip(counts, LAYERS, strict=False))

    def load(self, path: Path) -> Model:
        """Decode the weights and build the network around them.

        Raises:
            ModelError: Truncated, with bytes left over, or not of this network.
        """
        data = _read(path)
        weights = dict(decoded(data, path.name))
        size = sum(conv.size for conv in LAYERS)
        nonzero = sum(np.count_nonzero(weights[f"{conv.name}.weight"]) for conv in LAYERS)
        stored = sum(_COUNTS.unpack_from(data))
        notes = (
            f"{stored / size:.1%} of {size} weights are stored, {nonzero / size:.1%} are not zero",
            f"{8 * len(data) / size:.2f} bits per weight in the file, codebooks and biases included; 32 once decoded",
        )
        model = Model.from_proto(
            _network(weights),
            path.stem,
            preprocessing=PREPROCESSING,
            source={"format": self.name, "path": path.name, "sha256": hashlib.sha256(data).hexdigest()},
            history=(
                Step("import", {"format": self.name, "opset": OPSET}, step_versions("onnx", "numpy"), notes),
            ),
        )
        infer_shapes(model.ir)
        return model


def decoded(data: bytes, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Weights ``(out, in, height, width)`` and biases ``(out,)`` of every layer, float32, by name.

    Args:
        data: The whole file.
        name: Its name, for messages.

    Raises:
        ModelError: The bytes are not exactly one such network.
    """
    if len(data) < _COUNTS.size:
        raise ModelError(
            f"{name} is truncated: it has {len(data)} bytes, the counts alone take {_COUNTS.size}", _HINT
        )
    counts = _COUNTS.unpack_from(data)
    for conv, count in zip(LAYERS, counts, strict=True):
        if count > conv.size:
            raise ModelError(
                f"{name} is no compressed SqueezeNet v1.0: it claims {count} stored weights for {conv.name}, "
                f"which has {conv.size}",
                _HINT,
            )
    wanted = _COUNTS.size + sum(conv.nbytes(n) for conv, n in zip(LAYERS, counts, strict=True))
    if len(data) != wanted:
        what = "is truncated" if len(data) < wanted else "has bytes left over"
        raise ModelError(f"{name} {what}: it has {len(data)} bytes, its counts ask for {wanted}", _HINT)
    place = _COUNTS.size
    for conv, count in zip(LAYERS, counts, strict=True):
        weight, bias = _layer(data[place : place + conv.nbytes(count)], conv, count, name)
        place += conv.nbytes(count)
        yield f"{conv.name}.weight", weight
        yield f"{conv.name}.bias", bias


def _layer(data: bytes, conv: _Conv, count: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    outputs = conv.shape[0]
    codebook = np.frombuffer(data, "<f4", CODES)
    bias = np.frombuffer(data, "<f4", outputs, 4 * CODES)
    for what, values in (("codebook", codebook), ("bias", bias)):
        if not np.isfinite(values).all():
            raise ModelError(f"{name}: the {what} of {conv.name} holds NaN or infinity", _HINT)
    if codebook[0] != 0:
        raise ModelError(
            f"{name}: the codebook of {conv.name} starts with {codebook[0]:g} instead of 0", _HINT
        )
    codes = np.frombuffer(data, np.uint8, count, 4 * (CODES + outputs))
    packed = np.frombuffer(data, np.uint8, (count + 1) // 2, 4 * (CODES + outputs) + count)
    skipped = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count]
    places = np.cumsum(skipped.astype(np.int64) + 1) - 1
    if count and places[-1] >= conv.size:
        raise ModelError(
            f"{name}: {conv.name} has a weight at place {places[-1]}, it has {conv.size} weights", _HINT
        )
    weight = np.zeros(conv.size, np.float32)
    weight[places] = codebook[codes]
    return weight.reshape(conv.shape), bias.astype(np.float32)


def _network(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    by_name = {conv.name: conv for conv in LAYERS}

    def add(op: str, name: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [output or name], name=name, **attributes))
        return output or name

    def conv(name: str, value: str) -> str:
        side, stride = by_name[name].shape[2], 2 if name == "conv1" else 1
        pads = [side // 2] * 4 if name.endswith("3x3") else [0] * 4
        found = add(
            "Conv",
            name,
            value,
            f"{name}.weight",
            f"{name}.bias",
            kernel_shape=[side, side],
            strides=[stride] * 2,
            pads=pads,
        )
        return add("Relu", f"{name}_relu", found)

    def pooled(name: str, value: str) -> str:
        if name not in _POOLED:
            return value
        return add("MaxPool", f"{name}_pool", value, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)

    value = pooled("conv1", conv("conv1", "image"))
    for number, *_ in _FIRES:
        name = f"fire{number}"
        squeezed = conv(f"{name}_squeeze1x1", value)
        branches = [conv(f"{name}_expand{side}", squeezed) for side in ("1x1", "3x3")]
        value = pooled(name, add("Concat", f"{name}_concat", *branches, axis=1))
    value = add("GlobalAveragePool", "pool10", conv("conv10", value))
    add("Flatten", "flatten", value, output="logits", axis=1)
    graph = helper.make_graph(
        nodes,
        "squeezenet1.0",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 1000])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="dlas"
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST + 1)  # a larger file is refused for its surplus
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}") from error
