"""Float32 activations by 8-bit weights in ggml's Q8_0 blocks, byte for byte as a GGUF holds them.

Source: the block formats of ggml; integers are summed exactly within a block, blocks in float32 in increasing k.
"""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import kernels
from dlas.kernels.layers.dense._low_bit import PackedMatMul


@kernels.register("q8-0")
class Q80(PackedMatMul):
    """Inputs of ``MatMulQ8_0``: a float32 ``(..., K)``, blocks uint8 ``(N, K / 32 * 34)``, bias float32 ``(N,)``.

    Activations become Q8_0 on the way in.
    """

    name = "q8-0"
    ops: ClassVar[tuple[str, ...]] = ("MatMulQ8_0",)
    summary = "weights in Q8_0 blocks of a GGUF by activations in Q8_0"
    bits = 8.5
