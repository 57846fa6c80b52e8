"""What the products of matrices have in common."""

from __future__ import annotations

import math

from dlas.kernels.kernel import Node


def sizes(node: Node) -> tuple[int, int, int, int]:
    """Products of a batch, rows, columns and depth of a Gemm or MatMul; one B makes the batch more rows."""
    a, b = node.operand(0).shape, node.operand(1).shape
    if node.op == "Gemm":
        across_a, across_b = bool(node.attributes.get("transA")), bool(node.attributes.get("transB"))
        return 1, a[1 if across_a else 0], b[0 if across_b else 1], a[0 if across_a else 1]
    rows, depth = (1, *a)[-2:]
    columns = (b if len(b) > 1 else (*b, 1))[-1]
    outer = math.prod(node.output.shape) // max(1, rows * columns) if rows * columns else 0
    if math.prod(b[:-2]) == 1:
        return 1, outer * rows, columns, depth
    return outer, rows, columns, depth


def unfit(node: Node) -> str:
    """Why neither product of matrices takes a node, or an empty string."""
    for operand in (*node.inputs, *node.outputs):
        if operand is not None and operand.dtype != "float32":
            return f"it multiplies float32, not {operand.dtype}"
    if node.op == "MatMul" and len(node.inputs) > 2 and node.inputs[2] is not None:
        shape = node.operand(2).shape
        if len(shape) > 1 and math.prod(shape[:-1]) > 1:
            return f"a bias of shape {list(shape)} is not one row"
    return ""


def seconds(macs: float, lanes: int, rate: float, streamed: float) -> float:
    """Estimate: the sums at ``rate`` of one vector per cycle of 3 GHz, or the bytes if they last longer."""
    return 1e-6 + max(macs / (3e9 * lanes * rate), streamed / 2e10)
