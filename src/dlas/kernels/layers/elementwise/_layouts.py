"""What elementwise kernels say of layouts and of their cost."""

from __future__ import annotations

import math

import numpy as np

from dlas.kernels.kernel import Form, Node
from dlas.kernels.layout import Layout


def maps_and_plain(node: Node) -> tuple[Form, ...]:
    """Blocked where input and output are maps of one shape, and plain."""
    plain = Form.all(node, Layout.PLAIN)
    x = node.operand(0)
    if not x.is_feature_map or x.shape != node.output.shape:
        return (plain,)
    layouts = (Layout.BLOCKED,) + (Layout.PLAIN,) * (len(node.inputs) - 1)
    return (Form(layouts, (Layout.BLOCKED,)), plain)


def channels(node: Node) -> int:
    """Channels of the output, 0 where it is no map."""
    return node.output.shape[1] if len(node.output.shape) == 4 else 0


def move_cost(node: Node) -> float:
    """Estimated seconds to read the inputs and write the outputs, at 8 GB/s."""
    operands = [o for o in (*node.inputs, *node.outputs) if o is not None]
    return 1e-6 + sum(math.prod(o.shape) * np.dtype(o.dtype).itemsize for o in operands) / 8e9
