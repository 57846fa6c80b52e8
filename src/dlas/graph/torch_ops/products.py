"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dlas.graph.torch_ops.activations import MICROSOFT
from dlas.graph.torch_ops.table import Call, Node, op


@op("Gemm")
def _gemm(node: Node) -> Call:
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    flip_a, flip_b = node.attr("transA", 0), node.attr("transB", 0)
    bias = node.peek(2)
    plain = (
        alpha == 1.0
        and not flip_a
        and (not node.has(2) or (beta == 1.0 and bias is not None and bias.ndim == 1))
    )
    if plain:
        return lambda a, b, c=None: F.linear(a, b if flip_b else b.t(), c)

    def call(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        y = (a.t() if flip_a else a) @ (b.t() if flip_b else b)
        y = y if alpha == 1.0 else (alpha * y).to(y.dtype)
        return y if c is None else (y + (c if beta == 1.0 else beta * c)).to(y.dtype)

    return call


@op("MatMul")
def _matmul(node: Node) -> Call:
    return torch.matmul


@op("FusedMatMul", domain=MICROSOFT)
def _fused_matmul(node: Node) -> Call:
    alpha = node.attr("alpha", 1.0)
    flip_a, flip_b = node.attr("transA", 0), node.attr("transB", 0)
    if node.attr("transBatchA", 0) or node.attr("transBatchB", 0):
        raise node.refuse("transposed batches are not supported")
    return lambda a, b: alpha * torch.matmul(a.mT if flip_a else a, b.mT if flip_b else b)


@op("Einsum")
def _einsum(node: Node) -> Call:
    equation = node.attr("equation").replace(" ", "")
    return lambda *args: torch.einsum(equation, *args)


@op("Det")
def _det(node: Node) -> Call:
    return torch.linalg.det
