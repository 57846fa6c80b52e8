"""Convolution as a product of matrices over gathered pixels.

Source: K. Chellapilla, S. Puri and P. Simard, "High Performance Convolutional Neural Networks for Document
Processing", 2006; here panel by panel, so that the columns never lie in memory as a whole.
"""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels


@kernels.register("im2col-gemm")
class Im2colGemm(NativeKernel):
    """Weights are packed once; panels of at most 512 KiB of pixels are gathered and multiplied while they are in L2."""

    name = "im2col-gemm"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    summary = "any convolution, as a product of matrices in panels"
    rate = 0.9

    def refuses(self, node: Node, context: Context) -> str:
        """Float32 feature maps and constant weights; everything else goes."""
        if not node.operand(0).is_feature_map or node.constant(1) is None:
            return "it takes float32 feature maps (N, C, H, W) and constant weights"
        return ""

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Products of whole vectors of pixels, and the gathering, which few output channels do not pay for."""
        n, _, height, width = node.output.shape
        outs, ins, kh, kw = node.operand(1).shape
        groups = node.attributes["group"]
        rows = n * -(-height * width // context.block)  # vectors of pixels
        products = rows * outs * ins * kh * kw / self.rate
        gathered = 0 if kh * kw == 1 and outs // groups < 64 else rows * groups * ins * kh * kw * 2.5
        padded = node.operand(0).shape[0] * node.operand(0).shape[1] * height * width / context.block
        return 2e-6 + (products + gathered + 4 * padded) / 3e9
