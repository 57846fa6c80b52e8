"""Transposed convolution of bytes, a matrix product for each tap of the kernel.

Source: the integer arithmetic of TFLite's reference kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Kernel, Node, PythonLayer, kernels
from dlas.kernels.layers.quantized._bytes import is_bytes
from dlas.kernels.layout import Storage
from dlas.kernels.reference.quantized_transpose import transposed_sums
from dlas.kernels.reference.requantize import scale_sum


@kernels.register("int8-conv-transpose")
class Int8ConvTranspose(Kernel):
    """In NumPy: products that the padding crops are not computed, and no zeros are inserted."""

    name = "int8-conv-transpose"
    ops: ClassVar[tuple[str, ...]] = ("QConvTranspose",)
    summary = "8-bit transposed convolution, tap by tap"

    def refuses(self, node: Node, context: Context) -> str:
        """Feature maps of bytes, constant weights (C, K, KH, KW), one group, no dilation."""
        if not is_bytes(node.operand(0), 4) or not is_bytes(node.output, 4):
            return "it takes and gives int8 or uint8 feature maps (N, C, H, W)"
        if node.constant(1) is None:
            return "its weights are constant"
        if node.attributes.get("group", 1) != 1 or any(d != 1 for d in node.attributes["dilations"]):
            return "it takes one group without dilation"
        return ""

    def prepare(
        self, node: Node, inputs: Sequence[Storage | None], outputs: Sequence[Storage], context: Context
    ) -> Any:
        """Weights with the input channels last."""
        return _Layer(node)


class _Layer(PythonLayer):
    def __init__(self, node: Node) -> None:
        weight = node.constant(1)
        assert weight is not None
        self._node = node
        self._weights = np.ascontiguousarray(weight.transpose(1, 2, 3, 0)).astype(np.float32)

    def run(
        self, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray], scratch: np.ndarray
    ) -> None:
        x, a = inputs[0], self._node.attributes
        assert x is not None
        sums = transposed_sums(
            x.transpose(0, 2, 3, 1).astype(np.int16) - a["x_zero_point"],
            self._weights, size=self._node.output.shape[2:], strides=a["strides"], begins=a["pads"][:2],
        )  # fmt: skip
        bias = self._node.constant(2)
        total = (sums if bias is None else sums + bias).astype(np.int32)
        found = self._scaled(total) + a["y_zero_point"]
        np.copyto(
            outputs[0],
            np.clip(found, a["act_min"], a["act_max"]).astype(outputs[0].dtype).transpose(0, 3, 1, 2),
        )

    def _scaled(self, total: np.ndarray) -> np.ndarray:
        a, factors = self._node.attributes, self._node.constant(3)
        if factors is not None:
            return np.rint(total.astype(np.float32) * factors).astype(np.int64)
        multipliers, shifts = np.array(a["multipliers"], np.int64), np.array(a["shifts"], np.int64)
        return scale_sum(total.astype(np.int64), multipliers, shifts, a["rounding"])
