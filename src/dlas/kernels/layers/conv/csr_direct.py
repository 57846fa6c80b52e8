"""Convolution with unstructured sparse weights that reads the padded input itself.

Source: J. Park et al., "Faster CNNs with Direct Sparse Convolutions and Guided Pruning", ICLR 2017.
"""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.conv._sparse import seconds, unfit


@kernels.register("csr-direct")
class CsrDirect(NativeKernel):
    """The zeros are left out when it is prepared; each weight that stays is an offset into the input and a value.

    The input is copied once, padded and split by stride, so that every tap is a shift of whole rows.
    """

    name = "csr-direct"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    summary = "sparse weights, no columns: faster than dense from about half zeros on"

    def refuses(self, node: Node, context: Context) -> str:
        """Constant weights of which at least half are 0."""
        return unfit(node)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Two cycles per vector and weight (unaligned loads); what lies between two rows is computed as well."""
        between = (node.operand(1).shape[3] - 1) * node.attributes["dilations"][1]
        row = node.output.shape[3] + between // node.attributes["strides"][1]
        return seconds(node, context, row=row, per_entry=2.0, gathers=False)
