"""The same arithmetic by other operators, in another layout, or with idle operators in between."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dlas.testing.rewrites._edit import before, behind, between, make, rewrite
from dlas.verify.mutate.editing import constant, nodes_of, set_constant, sizes

_LAST, _FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # channels last, and first again


@rewrite("renamed")
def _renamed(graph: ir.Model) -> bool:
    """Every node, weight and tensor inside under another name."""
    outside = {v.name for v in (*graph.graph.inputs, *graph.graph.outputs)}
    for count, node in enumerate(graph.graph):
        node.name = f"step{count}"
        for place, value in enumerate(node.outputs):
            if value.name and value.name not in outside:
                value.name = f"tensor{count}_{place}"
    for count, value in enumerate(list(graph.graph.initializers.values())):
        value.name = f"weight{count}"
    return True


@rewrite("pointwise-as-matmul")
def _pointwise_as_matmul(graph: ir.Model) -> bool:
    """Convolutions of 1x1 as a MatMul on channels last."""
    found = False
    for node in list(nodes_of(graph, "Conv")):
        weight = constant(node.inputs[1])
        plain = all(s == 1 for s in node.attributes.get_ints("strides", [1])) and not any(
            node.attributes.get_ints("pads", [0])
        )
        if (
            weight is None
            or weight.shape[2:] != (1, 1)
            or node.attributes.get_int("group", 1) != 1
            or not plain
        ):
            continue
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        node.op_type = "MatMul"
        node.attributes.clear()
        node.resize_inputs(2)
        set_constant(graph.graph, node, 1, weight[:, :, 0, 0].T)
        before(graph.graph, node, 0, "Transpose", perm=_LAST)
        back = behind(graph.graph, node, "Transpose", perm=_FIRST)
        if bias is not None:
            before(graph.graph, back, 0, "Add", [bias])
        found = True
    return found


@rewrite("gemm-as-matmul")
def _gemm_as_matmul(graph: ir.Model) -> bool:
    """Gemm as MatMul and Add."""
    found = False
    for node in list(nodes_of(graph, "Gemm")):
        weight = constant(node.inputs[1])
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        scale = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
        if weight is None or node.attributes.get_int("transA", 0) or scale != (1.0, 1.0):
            continue
        turned = weight.T if node.attributes.get_int("transB", 0) else weight
        node.op_type = "MatMul"
        node.attributes.clear()
        node.resize_inputs(2)
        set_constant(graph.graph, node, 1, turned)
        if bias is not None:
            behind(graph.graph, node, "Add", [bias])
        found = True
    return found


@rewrite("relu-as-clip")
def _relu_as_clip(graph: ir.Model) -> bool:
    """Relu as a Clip without an upper bound."""
    return _relu_as(graph, "Clip", np.array(0, np.float32))


@rewrite("relu-as-max")
def _relu_as_max(graph: ir.Model) -> bool:
    """Relu as the larger one of the value and zero."""
    return _relu_as(graph, "Max", np.array([0], np.float32))


def _relu_as(graph: ir.Model, op_type: str, zero: np.ndarray) -> bool:
    found = list(nodes_of(graph, "Relu"))
    for node in found:
        node.op_type = op_type
        node.resize_inputs(2)
        set_constant(graph.graph, node, 1, zero)
    return bool(found)


@rewrite("clip-as-min-max")
def _clip_as_min_max(graph: ir.Model) -> bool:
    """Clip as Max and Min."""
    found = False
    for node in list(nodes_of(graph, "Clip")):
        bounds = [constant(v) for v in node.inputs[1:]]
        if len(bounds) != 2 or any(b is None for b in bounds):
            continue
        low, high = (np.asarray(b).reshape(1) for b in bounds)
        node.op_type = "Max"
        node.resize_inputs(2)
        set_constant(graph.graph, node, 1, low)
        behind(graph.graph, node, "Min", [high])
        found = True
    return found


@rewrite("channels-last")
def _channels_last(graph: ir.Model) -> bool:
    """Activations and sums computed with channels last, between Transposes; convolutions too, after a turn."""
    found = False
    for node in list(nodes_of(graph, "Conv", "Relu", "Clip", "Add", "MaxPool")):
        data = [i for i, v in enumerate(node.inputs) if v is not None and constant(v) is None]
        if any(len(sizes(node.inputs[i]) or []) != 4 for i in data) or len(sizes(node.outputs[0]) or []) != 4:
            continue
        if node.op_type == "Add" and len(data) != 2:
            continue
        spatial = node.op_type in ("Conv", "MaxPool")
        for index in data:
            turned = before(graph.graph, node, index, "Transpose", perm=_LAST)
            if spatial:
                between(graph.graph, turned, node, index, "Transpose", perm=_FIRST)
        if spatial:
            behind(graph.graph, node, "Transpose", perm=_LAST)
        _turn_back(graph.graph, node)
        found = True
    return found


@rewrite("identities")
def _identities(graph: ir.Model) -> bool:
    """An Identity behind every second operator."""
    for node in list(graph.graph)[::2]:
        if not node.outputs[0].is_graph_output():
            behind(graph.graph, node, "Identity")
    return True


@rewrite("dropout")
def _dropout(graph: ir.Model) -> bool:
    """A Dropout, idle at inference, before every dense layer and behind every Relu."""
    found = False
    for node in list(nodes_of(graph, "Relu", "Clip", "Gemm")):
        if node.op_type == "Gemm":
            before(graph.graph, node, 0, "Dropout")
        else:
            behind(graph.graph, node, "Dropout")
        found = True
    return found


@rewrite("addends-swapped")
def _addends_swapped(graph: ir.Model) -> bool:
    """The inputs of Add and Mul exchanged."""
    found = False
    for node in nodes_of(graph, "Add", "Mul"):
        first, second = node.inputs[:2]
        node.replace_input_with(0, second)
        node.replace_input_with(1, first)
        found = True
    return found


@rewrite("pooling")
def _pooling(graph: ir.Model) -> bool:
    """The mean over whole images by another operator."""
    found = False
    for node in list(nodes_of(graph, "GlobalAveragePool", "ReduceMean", "AveragePool")):
        dims = sizes(node.inputs[0]) or []
        if len(dims) != 4 or len(sizes(node.outputs[0]) or []) != 4:
            continue
        if node.op_type == "ReduceMean":
            axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
            if axes is None or sorted(int(a) % 4 for a in axes.reshape(-1)) != [2, 3]:
                continue
            node.op_type = "GlobalAveragePool"
            node.resize_inputs(1)
        elif node.op_type == "AveragePool" and (
            node.attributes.get_ints("kernel_shape", []) != dims[2:]
            or any(node.attributes.get_ints("pads", [0]))
        ):
            continue
        elif graph.graph.opset_imports.get("", 0) >= 18:
            node.op_type = "ReduceMean"
            node.resize_inputs(2)
            set_constant(graph.graph, node, 1, np.array([2, 3], np.int64))
        node.attributes.clear()
        found = True
    return found


@rewrite("pads-apart")
def _pads_apart(graph: ir.Model) -> bool:
    """The padding of convolutions as a Pad before them."""
    found = False
    for node in list(nodes_of(graph, "Conv")):
        pads = list(node.attributes.get_ints("pads", []))
        if len(pads) != 4 or not any(pads) or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            continue
        node.attributes["pads"] = ir.AttrInt64s("pads", [0] * 4)
        before(graph.graph, node, 0, "Pad", [np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)])
        found = True
    return found


@rewrite("reshape-as-flatten")
def _reshape_as_flatten(graph: ir.Model) -> bool:
    """Reshape to two axes as Flatten, and the other way round."""
    found = False
    for node in nodes_of(graph, "Flatten", "Reshape"):
        after = sizes(node.outputs[0]) or []
        if len(after) != 2 or not isinstance(after[1], int) or constant(node.inputs[0]) is not None:
            continue
        if node.op_type == "Flatten":
            node.op_type = "Reshape"
            node.resize_inputs(2)
            set_constant(graph.graph, node, 1, np.array([-1, after[1]], np.int64))
        else:
            node.op_type = "Flatten"
            node.resize_inputs(1)
        node.attributes.clear()
        found = True
    return found


@rewrite("softmax-apart")
def _softmax_apart(graph: ir.Model) -> bool:
    """Softmax as Exp and a division by the sum."""
    found = False
    for node in list(nodes_of(graph, "Softmax")):
        if graph.graph.opset_imports.get("", 0) < 18 or node.attributes.get_int("axis", -1) != -1:
            continue
        value = node.inputs[0]
        assert value is not None
        largest = make(graph.graph, node, "ReduceMax", [value, np.array([-1], np.int64)], keepdims=1)
        less = make(graph.graph, node, "Sub", [value, largest])
        powers = make(graph.graph, node, "Exp", [less])
        total = make(graph.graph, node, "ReduceSum", [powers, np.array([-1], np.int64)], keepdims=1)
        node.op_type = "Div"
        node.attributes.clear()
        node.resize_inputs(2)
        node.replace_input_with(0, powers)
        node.replace_input_with(1, total)
        found = True
    return found


@rewrite("surplus-output")
def _surplus_output(graph: ir.Model) -> bool:
    """A tensor inside as one more output."""
    middle = [n for n in graph.graph if n.outputs[0].dtype == ir.DataType.FLOAT]
    value = middle[len(middle) // 2].outputs[0]
    if value.is_graph_output() or value.shape is None:
        return False
    graph.graph.outputs.append(value)
    return True


def _turn_back(graph: ir.Graph, node: ir.Node) -> None:
    """Channels first again, behind what stands directly behind ``node`` or behind it alone."""
    last = node
    if node.op_type in ("Conv", "MaxPool"):
        last = next(u.node for u in node.outputs[0].uses())
    behind(graph, last, "Transpose", perm=_FIRST)
