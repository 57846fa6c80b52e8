"""Grouped convolution on the plain layout: a vector of neighbouring pixels by a few output channels.

Source: the pixel-vector form of grouped spatial pack convolution (GSPC). The rows of a group are framed by zeros in
scratch and computed as one long row, so that no vector is cut at the end of each row of the image.
"""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels


@kernels.register("gspc-pixel")
class GspcPixel(NativeKernel):
    """Any convolution with constant weights, as it lies in ONNX; fastest with groups of 4 channels and more."""

    name = "gspc-pixel"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    summary = "grouped convolution, neighbouring pixels in one vector (plain)"
    rate = 0.8
    in_place: ClassVar[tuple[int, ...]] = (3,)

    def refuses(self, node: Node, context: Context) -> str:
        """Only what is no float32 convolution of images with constant weights."""
        if not node.operand(0).is_feature_map or node.constant(1) is None:
            return "it takes float32 feature maps (N, C, H, W) and constant weights"
        return ""

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Outputs between the rows are computed and dropped; copying in and out takes a fixed time per pixel."""
        weight = node.operand(1).shape
        _, filters, rows, columns = node.output.shape
        beyond = (weight[3] - 1) * node.attributes["dilations"][1] // node.attributes["strides"][1]
        few = {1: 2.0, 2: 1.4, 3: 1.2}.get(weight[0] // node.attributes["group"], 1.0)
        copied = filters * rows * columns + weight[1] * node.attributes["group"] * rows * columns
        return super().cost(node, form, context) * (1 + beyond / columns) * few + 1.2e-10 * copied
