"""Product of up to four rows and a matrix: the matrix is read once, from front to back."""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.dense._shapes import seconds, sizes, unfit

MOST_ROWS = 4


@kernels.register("gemv")
class Gemv(NativeKernel):
    """Strips of 4 vectors of columns; bound by the bytes of B."""

    name = "gemv"
    ops: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul")
    summary = "up to 4 rows times a matrix that is read once"
    rate = 0.8

    def refuses(self, node: Node, context: Context) -> str:
        """Float32 and up to 4 rows."""
        rows = sizes(node)[1]
        if rows > MOST_ROWS:
            return f"it has up to {MOST_ROWS} rows, this product has {rows}"
        return unfit(node)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """The bytes of B, or the sums of its last strip's lanes as well."""
        batch, m, n, k = sizes(node)
        lanes = -(-n // context.block) * context.block
        return seconds(batch * m * lanes * k, context.block, self.rate, 4.0 * batch * k * n)
