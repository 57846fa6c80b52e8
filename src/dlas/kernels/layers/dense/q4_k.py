"""Float32 activations by 4-bit weights in ggml's Q4_K blocks, byte for byte as a GGUF holds them.

Source: the block formats of ggml; integers are summed exactly within a block, blocks in float32 in increasing k.
"""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import kernels
from dlas.kernels.layers.dense._low_bit import PackedMatMul


@kernels.register("q4-k")
class Q4K(PackedMatMul):
    """Inputs of ``MatMulQ4_K``: a float32 ``(..., K)``, blocks uint8 ``(N, K / 256 * 144)``, bias float32 ``(N,)``.

    Activations become Q8_K on the way in.
    """

    name = "q4-k"
    ops: ClassVar[tuple[str, ...]] = ("MatMulQ4_K",)
    summary = "weights in Q4_K blocks of a GGUF by activations in Q8_K"
    bits = 5.0
