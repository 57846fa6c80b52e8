"""What pools have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlas.kernels.kernel import Context, Form, NativeKernel, Node
from dlas.kernels.layout import Layout


class WindowPool(NativeKernel):
    """Base of the pools with a window, on plain and blocked maps."""

    def refuses(self, node: Node, context: Context) -> str:
        """Two-dimensional float32 maps, and no indices."""
        if not node.operand(0).is_feature_map:
            return "it takes float32 feature maps (N, C, H, W)"
        if len(node.outputs) > 1:
            return "it does not return the indices of the largest values"
        if node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", ""):
            return "its pads have to be explicit"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Blocked, then plain; neither needs a halo."""
        return (Form.all(node, Layout.BLOCKED), Form.all(node, Layout.PLAIN))

    def attributes(self, node: Node) -> dict[str, Any]:
        """With the defaults of ONNX filled in."""
        whole = {"strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0]}
        return whole | super().attributes(node)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """One load for each tap; plain rows with a stride are taken element by element."""
        taps = node.output.size * node.attributes["kernel_shape"][0] * node.attributes["kernel_shape"][1]
        strided = form.inputs[0] is Layout.PLAIN and self.attributes(node)["strides"][1] > 1
        return 1e-6 + taps * (4e-10 if strided else 5e-10 / context.block)
