"""Random weights for a graph, as its layers are usually started."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from dlas.graph.model import Model

_NORMS = ("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def fresh(model: Model, seed: int) -> Model:
    """The same graph with new float weights.

    Weights of layers are normal with variance ``2 / fan_in`` (He et al. 2015, arXiv:1502.01852), their biases 0;
    normalisations scale by 1 and shift by 0, their running mean is 0 and their variance 1. What is read by anything
    else, such as a mean that is subtracted from the input, stays.

    Args:
        model: The network; left alone.
        seed: Seed of the weights.
    """
    graph = model.editable()
    rng = np.random.default_rng(seed)
    for value in graph.graph.initializers.values():
        stored = value.const_value
        if stored is None or not stored.dtype.is_floating_point():
            continue
        array = stored.numpy()
        for node, index in value.uses():
            new = _drawn(node, index, array, rng)
            if new is not None:
                value.const_value = ir.tensor(new.astype(array.dtype), dtype=stored.dtype, name=value.name)
                break
    return replace(model, ir=graph, torch_module=None)


def _drawn(node: ir.Node, index: int, old: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    if node.op_type in _LAYERS and index == 2:
        return np.zeros(old.shape)
    if node.op_type in _NORMS and index > 0:
        return np.full(old.shape, 1.0 if index in (1, 4) else 0.0)
    if node.op_type in _LAYERS and old.ndim > 1:
        return rng.standard_normal(old.shape) * math.sqrt(2 / max(1, _fan_in(node, index, old.shape)))
    if node.op_type == "Add" and old.ndim == 1 and _is_bias(node, index):
        return np.zeros(old.shape)
    return None


def _fan_in(node: ir.Node, index: int, shape: tuple[int, ...]) -> int:
    if node.op_type == "Conv":
        return math.prod(shape[1:])
    if node.op_type == "ConvTranspose":
        group = node.attributes.get("group")
        many = 1 if group is None else group.as_int()
        return shape[0] // many * math.prod(shape[2:])
    transposed = node.attributes.get("transB")
    if node.op_type == "Gemm" and transposed is not None and transposed.as_int():
        return shape[1]
    return shape[-1] if node.op_type == "MatMul" and index == 0 else shape[-2]


def _is_bias(node: ir.Node, index: int) -> bool:
    """Whether an Add adds to what a product made."""
    other = node.inputs[1 - index]
    maker = None if other is None else other.producer()
    return maker is not None and maker.op_type in _LAYERS
