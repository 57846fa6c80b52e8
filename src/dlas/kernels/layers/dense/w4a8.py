"""8-bit activations by 4-bit weights, for few rows bound by the bytes of the weights alone.

Source: the asymmetric 8x4-bit product; packed in column blocks of 16 (``dlas.kernels.formats.int4``).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from dlas.kernels.formats.int4 import pack_w4
from dlas.kernels.kernel import Context, Node, kernels
from dlas.kernels.layers.dense._low_bit import PackedMatMul


@kernels.register("w4a8")
class W4A8(PackedMatMul):
    """Codes are decoded in registers, for up to 4 rows of activations at once.

    Inputs of ``MatMulW4A8``: a float32, int8 or uint8 ``(..., K)``; packed codes; scales float32 ``(N,)`` or ``(K /
    group_size, N)``; codes that mean 0, uint8 of the same shape; bias. Attributes: ``K``, ``N``, ``group_size`` (0:
    a scale per column), ``zero_point`` of integer activations, ``table`` (16 values of the codes).

    Float activations become int8 with a scale per row, or per row and group. Without scales the result is int32.
    ``MatMulNBits`` of ONNX Runtime is the same with 4 bits and groups of ``block_size``.
    """

    name = "w4a8"
    ops: ClassVar[tuple[str, ...]] = ("MatMulW4A8", "MatMulNBits")
    summary = "8-bit activations by 4-bit weights, decoded in registers"

    def refuses(self, node: Node, context: Context) -> str:
        """Weights, scales and bias must be constant; MatMulNBits has 4 bits and no permutation."""
        reason = super().refuses(node, context)
        return reason or (_refuses_nbits(node) if node.op == "MatMulNBits" else "")

    def attributes(self, node: Node) -> dict[str, Any]:
        """``block_size`` is ``group_size`` here."""
        given = super().attributes(node)
        if node.op == "MatMulNBits":
            return {"K": given["K"], "N": given["N"], "group_size": given["block_size"]}
        return given

    def constants(self, node: Node) -> list[np.ndarray | None]:
        """MatMulNBits in the layout of MatMulW4A8."""
        found = super().constants(node)
        return _from_nbits(node, found) if node.op == "MatMulNBits" else found


def _refuses_nbits(node: Node) -> str:
    bits, block = node.attributes.get("bits", 4), node.attributes["block_size"]
    k, n = node.attributes["K"], node.attributes["N"]
    if bits != 4:
        return f"it takes 4 bits, the weights have {bits}"
    if k % block:
        return f"blocks of {block} do not divide K = {k}"
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        return "it takes no g_idx"
    weight, scales = node.constant(1), node.constant(2)
    if weight is None or scales is None or scales.dtype != np.float32:
        return "it takes float32 scales"
    blocks = k // block
    if weight.dtype != np.uint8 or weight.size != n * blocks * block // 2 or scales.size != n * blocks:
        return f"its weights or scales do not have the size that N = {n}, K = {k} and blocks of {block} need"
    zeros = node.constant(3)
    if zeros is not None and (zeros.dtype != np.uint8 or zeros.size != n * ((blocks + 1) // 2)):
        return "its zero points are not packed in 4 bits"
    return ""


def _from_nbits(node: Node, given: list[np.ndarray | None]) -> list[np.ndarray | None]:
    k, n, block = (int(node.attributes[name]) for name in ("K", "N", "block_size"))
    weight, scales = given[1], given[2]
    assert weight is not None
    assert scales is not None
    codes = _nibbles(weight.reshape(n, k // 2)).astype(np.int8) - np.int8(8)
    made = [*given, *[None] * (6 - len(given))]
    made[1] = pack_w4(np.ascontiguousarray(codes.T)).data
    made[2] = np.ascontiguousarray(scales.reshape(n, -1).T)
    if made[3] is not None:
        zeros = _nibbles(made[3].reshape(n, -1))[:, : k // block]
        made[3] = np.ascontiguousarray(zeros.T)
    return made[: len(given)]


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """``(R, B)`` bytes to ``(R, 2 B)`` codes, low nibble first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
