"""Product of matrices from packed panels.

Source: K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008.
"""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.dense._shapes import seconds, sizes, unfit


@kernels.register("gemm")
class Gemm(NativeKernel):
    """Register tiles of up to 8 rows by 3 vectors; a constant B is packed once, another one panel by panel."""

    name = "gemm"
    ops: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul")
    summary = "product of matrices, rows by vectors of columns in registers"
    rate = 0.9

    def refuses(self, node: Node, context: Context) -> str:
        """Float32 only; a bias fused into MatMul is one row."""
        return unfit(node)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Lanes of the last panel work for nothing; one or two rows cannot hide the latency; B that is packed moves."""
        batch, m, n, k = sizes(node)
        lanes = -(-n // context.block) * context.block
        few = 1.0 if m >= 4 else 0.6
        moved = 4.0 * k * n
        packing = 0.0 if node.constant(1) is not None else batch * moved / 1e10
        return packing + seconds(batch * m * lanes * k, context.block, self.rate * few, moved)
