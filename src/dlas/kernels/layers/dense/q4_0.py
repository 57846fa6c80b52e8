"""Float32 activations by 4-bit weights in ggml's Q4_0 blocks, byte for byte as a GGUF holds them.

Source: the block formats of ggml; integers are summed exactly within a block, blocks in float32 in increasing k.
"""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import kernels
from dlas.kernels.layers.dense._low_bit import PackedMatMul


@kernels.register("q4-0")
class Q40(PackedMatMul):
    """Inputs of ``MatMulQ4_0``: a float32 ``(..., K)``, blocks uint8 ``(N, K / 32 * 18)``, bias float32 ``(N,)``.

    Activations become Q8_0 on the way in.
    """

    name = "q4-0"
    ops: ClassVar[tuple[str, ...]] = ("MatMulQ4_0",)
    summary = "weights in Q4_0 blocks of a GGUF by activations in Q8_0"
    bits = 4.5
