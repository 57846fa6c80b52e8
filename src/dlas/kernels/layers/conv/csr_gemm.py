"""Convolution with unstructured sparse weights as a sparse matrix times gathered columns of pixels."""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.conv._sparse import seconds, unfit


@kernels.register("csr-gemm")
class CsrGemm(NativeKernel):
    """The zeros are left out when it is prepared; columns are gathered for 8 vectors of pixels and few channels."""

    name = "csr-gemm"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    summary = "sparse weights times gathered columns: aligned, for small images and moderate sparsity"

    def refuses(self, node: Node, context: Context) -> str:
        """Constant weights of which at least half are 0."""
        return unfit(node)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Fewer cycles per weight than csr-direct, and the gathering."""
        return seconds(node, context, row=node.output.shape[3], per_entry=1.7, gathers=True)
