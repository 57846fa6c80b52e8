"""The same weights stored otherwise, or elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.graph import channels
from dlas.graph.passes import fold_batch_norm, free_name
from dlas.testing.rewrites._edit import SEED, before, behind, rewrite
from dlas.verify.mutate.editing import constant, layers, new_constant, nodes_of, set_constant, sizes


@rewrite("weights-transposed")
def _weights_transposed(graph: ir.Model) -> bool:
    """Weights of Gemm stored the other way, and transB flipped."""
    found = False
    for node in nodes_of(graph, "Gemm"):
        weight = constant(node.inputs[1])
        if weight is None:
            continue
        set_constant(graph.graph, node, 1, weight.T)
        node.attributes["transB"] = ir.AttrInt64("transB", 1 - node.attributes.get_int("transB", 0))
        found = True
    return found


@rewrite("bias-as-add")
def _bias_as_add(graph: ir.Model) -> bool:
    """Biases of convolutions and Gemm as an Add behind them."""
    found = False
    for node in list(nodes_of(graph, "Conv", "ConvTranspose", "Gemm")):
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is None or node.attributes.get_float("beta", 1.0) != 1.0:
            continue
        dims = sizes(node.outputs[0]) or [None] * 4
        shaped = bias.reshape(-1, *[1] * (len(dims) - 2)) if node.op_type != "Gemm" else bias
        node.resize_inputs(2)
        behind(graph.graph, node, "Add", [shaped])
        found = True
    return found


@rewrite("norms-folded")
def _norms_folded(graph: ir.Model) -> bool:
    """Batch norms merged into the layers before them."""
    count = len(list(nodes_of(graph, "BatchNormalization")))
    fold_batch_norm(graph)
    return len(list(nodes_of(graph, "BatchNormalization"))) < count


@rewrite("norms-as-arithmetic")
def _norms_as_arithmetic(graph: ir.Model) -> bool:
    """Batch norms as a multiplication and an addition."""
    found = False
    for node in list(nodes_of(graph, "BatchNormalization")):
        arrays = [constant(v) for v in node.inputs[1:5]]
        rank = len(sizes(node.inputs[0]) or [])
        if any(a is None for a in arrays) or rank < 2:
            continue
        gamma, beta, mean, variance = (np.asarray(a, np.float64) for a in arrays)
        factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        shape = (-1, *[1] * (rank - 2))
        offset = (beta - mean * factor).reshape(shape).astype(np.float32)
        node.op_type = "Mul"
        node.attributes.clear()
        node.resize_inputs(2)
        set_constant(graph.graph, node, 1, factor.reshape(shape).astype(np.float32))
        behind(graph.graph, node, "Add", [offset])
        found = True
    return found


@rewrite("momentum")
def _momentum(graph: ir.Model) -> bool:
    """Another momentum in batch norms, which has no meaning after training."""
    found = False
    for node in nodes_of(graph, "BatchNormalization"):
        node.attributes["momentum"] = ir.AttrFloat32("momentum", 1.0)
        found = True
    return found


@rewrite("channels-permuted")
def _channels_permuted(graph: ir.Model) -> bool:
    """Hidden channels in another order, in all places that know them."""
    rng = np.random.default_rng(SEED)
    found = False
    for group in channels.groups(graph).prunable:
        order = rng.permutation(group.size)
        for entry in group.entries:
            value = graph.graph.initializers[entry.name]
            assert value.const_value is not None
            array = np.moveaxis(value.const_value.numpy().copy(), entry.axis, 0)
            mixed = array.copy()
            mixed[entry.positions] = array[entry.positions[order]]
            mixed = np.ascontiguousarray(np.moveaxis(mixed, 0, entry.axis))
            value.const_value = ir.tensor(mixed, name=value.name)
        found = True
    return found


@rewrite("layers-equalised")
def _layers_equalised(graph: ir.Model) -> bool:
    """Channels before a Relu larger by a factor, and the weights that read them smaller by it."""
    rng = np.random.default_rng(SEED)
    found = False
    for relu in list(nodes_of(graph, "Relu")):
        layer = relu.inputs[0].producer() if relu.inputs[0] is not None else None
        readers = [(u.node, u.idx) for u in relu.outputs[0].uses()]
        if layer is None or len(layer.outputs[0].uses()) != 1 or relu.outputs[0].is_graph_output():
            continue
        reader, place = readers[0] if len(readers) == 1 else (None, -1)
        if (
            reader is None
            or reader.op_type != "Conv"
            or place != 0
            or reader.attributes.get_int("group", 1) != 1
        ):
            continue
        indices = {"BatchNormalization": (1, 2), "Conv": (1, 2)}.get(layer.op_type, ())
        arrays = {i: constant(layer.inputs[i]) for i in indices if i < len(layer.inputs)}
        weight = constant(reader.inputs[1])
        if not arrays or weight is None or any(a is None for a in arrays.values()):
            continue
        factor = np.exp2(rng.integers(-2, 3, weight.shape[1])).astype(np.float32)
        for index, array in arrays.items():
            assert array is not None
            set_constant(graph.graph, layer, index, array * factor.reshape(-1, *[1] * (array.ndim - 1)))
        set_constant(graph.graph, reader, 1, weight / factor.reshape(1, -1, *[1] * (weight.ndim - 2)))
        found = True
    return found


@rewrite("constants-as-nodes")
def _constants_as_nodes(graph: ir.Model) -> bool:
    """Weights as Constant operators."""
    values = [v for v in graph.graph.initializers.values() if v.uses() and not v.is_graph_input()]
    for count, value in enumerate(values):
        made = ir.node("Constant", [], {"value": value.const_value}, name=f"constant_{count}")
        made.outputs[0].name = free_name(graph.graph, f"{value.name}.value")
        graph.graph.insert_before(graph.graph.node(0), made)
        value.replace_all_uses_with(made.outputs[0])
        graph.graph.initializers.pop(str(value.name))
    return bool(values)


@rewrite("weights-computed")
def _weights_computed(graph: ir.Model) -> bool:
    """Weights as the Concat of two halves."""
    found = False
    for node in list(layers(graph)):
        weight = constant(node.inputs[1])
        if weight is None or weight.shape[0] < 2:
            continue
        half = weight.shape[0] // 2
        first = new_constant(graph.graph, f"{node.name}.first", weight[:half])
        node.replace_input_with(1, first)
        before(graph.graph, node, 1, "Concat", [weight[half:]], axis=0)
        found = True
    return found


@rewrite("weights-shared")
def _weights_shared(graph: ir.Model) -> bool:
    """Constants of equal content stored once; those used twice stored twice, where there are none."""
    found, known = False, dict[tuple[Any, ...], ir.Value]()
    for value in list(graph.graph.initializers.values()):
        if value.const_value is None or value.is_graph_input():
            continue
        array = value.const_value.numpy()
        key = (array.dtype.str, array.shape, array.tobytes())
        if key in known:
            value.replace_all_uses_with(known[key])
            found = True
        else:
            known[key] = value
    return found
