"""Passes that make a graph smaller without changing what it computes.

Each works in place on the copy that :meth:`Model.editable` gives. ``simplified`` and ``bind_batch`` wrap them for
whole Models.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.model import OPSET, Model, Step, step_versions

FOLD_INPUT_ELEMENTS = 8192
_BATCH = "dlas_batch"
FOLD_OUTPUT_ELEMENTS = 262_144  # a constant may grow to 1 MiB of float32, no further
_PROPAGATED_ELEMENTS = 2**20  # values that shape inference may carry along, all tensors together
_LAYOUT_ONLY = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
# Their time is not bounded by the size of what goes in and comes out, or they decode data, or draw lots.
_NEVER_FOLDED = frozenset(
    {
        "Bernoulli", "Conv", "ConvInteger", "ConvTranspose", "DFT", "DeformConv", "Det", "Einsum", "GRU",
        "GridSample", "ImageDecoder", "LSTM", "MelWeightMatrix", "NonMaxSuppression", "QLinearConv", "RNN",
        "RegexFullMatch", "Resize", "RoiAlign", "STFT", "StringSplit", "TfIdfVectorizer",
    }
)  # fmt: skip


def infer_shapes(graph: ir.Model) -> None:
    """Fill in shapes and dtypes of all values as far as ONNX shape inference (with data propagation) gets."""
    # Where inference stops is seen in the shapes; the pass would log a traceback as well.
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=_propagates_little(graph))(graph)


def _propagates_little(graph: ir.Model) -> bool:
    """Whether data propagation stays small: a chain of Concats of constants multiplies what is carried along."""
    carried: dict[ir.Value | None, int] = {None: 0}
    # Even a list whose content is not known is carried, as so many unknowns.
    for value in (*graph.graph.initializers.values(), *graph.graph.inputs):
        dims = value.shape.dims if value.shape is not None else ()
        known = value.const_value is not None or value.shape is not None
        if known and len(dims) <= 1 and all(isinstance(d, int) for d in dims):
            carried[value] = math.prod(int(d) for d in dims if isinstance(d, int)) or 1
    total = 0
    for node in graph.graph:
        if node.op_type in ("Shape", "Size"):
            size = 64
        elif node.op_type == "Constant" and node.outputs and node.outputs[0].const_value is not None:
            size = node.outputs[0].const_value.size
        elif all(value in carried for value in node.inputs):  # what comes out of real inputs is not carried
            sizes = [carried[value] for value in node.inputs]
            size = sum(sizes) if node.op_type == "Concat" else max(sizes, default=0)
        else:
            continue
        total += size * len(node.outputs)
        if total > _PROPAGATED_ELEMENTS:
            return False
        for value in node.outputs:
            carried[value] = size
    return True


def fold_constants(graph: ir.Model) -> None:
    """Compute what depends on constants only.

    Left alone: results above ``FOLD_OUTPUT_ELEMENTS`` or of unknown size, quantise and dequantise operators, and casts
    of weights to a wider dtype (they are stored narrow on purpose).
    """
    from onnxscript import optimizer

    common.InlinePass()(graph)
    opset = graph.graph.opset_imports.get("", OPSET)
    try:
        optimizer.fold_constants(
            graph,
            onnx_shape_inference=True,
            input_size_limit=FOLD_INPUT_ELEMENTS,
            output_size_limit=FOLD_OUTPUT_ELEMENTS,
            should_fold=lambda node: _may_fold(node, opset),
        )
    except (
        Exception
    ) as error:  # an operator with inputs it cannot have; the optimizer has no error type of its own
        cause = " ".join(str(error.__cause__ or error).split())[:200]
        raise ModelError(f"the constants of {graph.graph.name!r} cannot be computed: {cause}") from error
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    remove_unused(graph)


def fold_batch_norm(graph: ir.Model) -> None:
    """Merge each BatchNormalization into the Conv, ConvTranspose or Gemm before it.

    Done where that layer has constant weights and no other consumer: with ``f = gamma / sqrt(var + epsilon)`` the
    weights of output channel c are multiplied by ``f[c]`` and the bias becomes ``(bias - mean) * f + beta``, computed
    in float64. Other batch norms stay.
    """
    for norm in list(graph.graph):
        if norm.op_type == "BatchNormalization" and norm.domain == "":
            layer = _foldable_layer(norm)
            if layer is not None:
                _merge(graph.graph, layer, norm)
    remove_unused(graph)


def remove_identities(graph: ir.Model) -> None:
    """Remove Identity, and Dropout that does nothing at inference."""
    for node in list(graph.graph):
        if node.op_type == "Dropout" and node.domain == "" and _is_idle_dropout(node):
            _bypass(graph.graph, node)
    common.IdentityEliminationPass()(graph)


def remove_unused(graph: ir.Model) -> None:
    """Remove nodes, weights, functions and opset imports that no output depends on."""
    common.RemoveUnusedNodesPass()(graph)
    common.RemoveUnusedFunctionsPass()(graph)
    common.RemoveUnusedOpsetsPass()(graph)


def tidy(graph: ir.Model) -> None:
    """Shapes, constants, identities, what is left over, shapes again; batch norms stay, so that it can be trained."""
    infer_shapes(graph)
    fold_constants(graph)
    remove_identities(graph)
    remove_unused(graph)
    infer_shapes(graph)


def simplify(graph: ir.Model) -> None:
    """As :func:`tidy`, and batch norms are folded: what a network goes through before it is deployed."""
    tidy(graph)
    fold_batch_norm(graph)
    infer_shapes(graph)


def simplified(model: Model) -> Model:
    """The same network after :func:`simplify`, with one more line of history; the torch module is kept."""
    graph = model.editable()
    before = graph.graph.num_nodes()
    simplify(graph)
    note = f"{before} nodes became {graph.graph.num_nodes()}"
    step = Step("simplify", {}, step_versions("onnx-ir", "onnxscript"), (note,))
    return model.with_step(graph, step, torch_module=model.torch_module)


def bind_batch(model: Model, batch: int) -> Model:
    """The network with the dynamic leading dimension of every input set to ``batch`` and shapes inferred anew.

    History is left as it is: the network computes the same.

    Raises:
        UnsupportedError: An input has another fixed leading dimension, or the graph has a batch size written into a
            Reshape.
    """
    if batch < 1:
        raise UnsupportedError(f"batch = {batch}: at least 1 is needed")
    loose, graph = model.editable(), model.editable()
    dynamic = False
    for free, bound in zip(_fed_inputs(loose), _fed_inputs(graph), strict=True):
        if free.shape is None or len(free.shape) == 0:
            continue
        lead, rest = free.shape[0], free.shape.dims[1:]
        if isinstance(lead, int) and lead != batch:
            raise UnsupportedError(
                f"{model.name}: input {free.name!r} has the fixed batch {lead}, not {batch}",
                "export it with a dynamic batch, or use that batch",
            )
        if not isinstance(lead, int):
            dynamic = True
            free.shape, bound.shape = ir.Shape([_BATCH, *rest]), ir.Shape([batch, *rest])
    if not dynamic:
        return model
    for variant in (loose, graph):
        _forget(variant)
        infer_shapes(variant)
    _refuse_baked_batch(loose, batch, model.name)
    if not _strict_error(loose) and (reason := _strict_error(graph)):
        raise UnsupportedError(f"{model.name} does not run with batch {batch}: {reason}")
    _refuse_other_outputs(loose, graph, batch, model.name)
    return replace(model, ir=graph)


def _fed_inputs(graph: ir.Model) -> list[ir.Value]:
    return [v for v in graph.graph.inputs if v.name not in graph.graph.initializers]


def _refuse_baked_batch(graph: ir.Model, batch: int, name: str) -> None:
    """A Reshape of a tensor that is led by the batch must not write another leading number."""
    for node in graph.graph:
        if node.op_type != "Reshape" or node.domain != "" or len(node.inputs) < 2:
            continue
        data, target = node.inputs[0], node.inputs[1]
        if data is None or target is None or target.const_value is None:
            continue
        sizes = target.const_value.numpy().reshape(-1)
        if _led_by_batch(data) and len(sizes) and sizes[0] not in (-1, 0, batch):
            raise UnsupportedError(
                f"{name} does not run with batch {batch}: {node.name!r} reshapes to {sizes.tolist()}, "
                f"which has the batch {sizes[0]} written into it",
                f"use batch {sizes[0]}, or export it with -1 or 0 there",
            )


def _refuse_other_outputs(loose: ir.Model, bound: ir.Model, batch: int, name: str) -> None:
    for before, after in zip(loose.graph.outputs, bound.graph.outputs, strict=True):
        rows = after.shape[0] if after.shape else batch
        if _led_by_batch(before) and isinstance(rows, int) and rows != batch:
            raise UnsupportedError(f"{name}: output {after.name!r} has {rows} rows for a batch of {batch}")


def _led_by_batch(value: ir.Value) -> bool:
    lead = value.shape[0] if value.shape else 0
    return not isinstance(lead, int) and lead.value == _BATCH


def _forget(graph: ir.Model) -> None:
    """Make shapes that are not certain any more unknown, keeping ranks and plain numbers."""
    kept = {id(v) for v in graph.graph.inputs} | {id(v) for v in graph.graph.initializers.values()}
    for node in graph.graph:
        for value in node.outputs:
            if id(value) not in kept and value.shape is not None:
                dims = [d if isinstance(d, int) else None for d in value.shape]
                value.shape = ir.Shape(dims)


def _strict_error(graph: ir.Model) -> str:
    """What strict shape inference says against the graph, or an empty string."""
    try:
        onnx.shape_inference.infer_shapes(
            ir.to_proto(graph), check_type=False, strict_mode=True, data_prop=_propagates_little(graph)
        )
    except onnx.shape_inference.InferenceError as error:
        return " ".join(str(error).split())[:300]
    return ""


def _may_fold(node: ir.Node, opset: int) -> bool | None:
    """False where folding costs memory, True where the optimizer is too careful, None for its own rules."""
    if node.op_type == "Cast" and node.inputs[0] is not None:
        narrow, wide = node.inputs[0].dtype, node.outputs[0].dtype
        stored = node.inputs[0].const_value
        if narrow and wide and narrow.itemsize < wide.itemsize and stored is not None and stored.size > 1:
            return False
    for value in node.outputs:
        if value.shape is None or not all(isinstance(d, int) for d in value.shape):
            return False
        if math.prod(int(d) for d in value.shape if isinstance(d, int)) > FOLD_OUTPUT_ELEMENTS:
            return False
    if node.op_type in _NEVER_FOLDED or not _stays_small(node, opset):
        return False
    # The optimizer leaves all of these alone for their size; exporters compute paddings with small ones.
    return True if node.op_type == "ConstantOfShape" else None


def _stays_small(node: ir.Node, opset: int) -> bool:
    """Whether the results are small by what the constant inputs really are: a file may write any shape beside them."""
    constants = [v.const_value for v in node.inputs if v is not None and v.const_value is not None]
    if len(constants) != sum(v is not None for v in node.inputs):
        return True  # not folded anyway
    if any(c.size > FOLD_INPUT_ELEMENTS for c in constants):
        return node.op_type in _LAYOUT_ONLY
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        types, data = {}, {}
        for value in node.inputs:
            if value is not None and value.const_value is not None and value.name:
                proto = ir.to_proto(value.const_value)
                types[value.name] = onnx.helper.make_tensor_type_proto(proto.data_type, proto.dims)
                data[value.name] = proto
        found = onnx.shape_inference.infer_node_outputs(
            schema, ir.to_proto(node), types, data, opset_imports=[onnx.helper.make_opsetid("", opset)]
        )
    except Exception:  # an operator that inference knows nothing of stays in the graph
        return False
    for output in node.outputs:
        tensor = found[output.name].tensor_type if output.name in found else None
        if tensor is None or not tensor.HasField("shape"):
            return False
        if not all(d.HasField("dim_value") for d in tensor.shape.dim):
            return False
        if math.prod(d.dim_value for d in tensor.shape.dim) > FOLD_OUTPUT_ELEMENTS:
            return False
    return True


def _foldable_layer(norm: ir.Node) -> ir.Node | None:
    """The layer before ``norm`` if both can become one."""
    data, *parameters = norm.inputs
    layer = data.producer() if data is not None else None
    if layer is None or data is None or layer.domain != "" or data.is_graph_output():
        return None
    if layer.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(data.uses()) != 1:
        return None
    if norm.attributes.get_int("training_mode", 0) or any(o.uses() for o in norm.outputs[1:]):
        return None
    weight = layer.inputs[1]
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    if not all(_is_constant(v) for v in (weight, *parameters)) or (
        bias is not None and not _is_constant(bias)
    ):
        return None
    channels = _array(parameters[0]).size
    if layer.op_type == "Gemm" and bias is not None:
        shape = _array(bias).shape
        if shape not in ((), (1,), (channels,), (1, 1), (1, channels)):
            return None
    return layer


def _merge(graph: ir.Graph, layer: ir.Node, norm: ir.Node) -> None:
    gamma, beta, mean, variance = (_array(v).astype(np.float64) for v in norm.inputs[1:5])
    factor = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    weight = layer.inputs[1]
    assert weight is not None
    stored = _array(weight)
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    old = np.zeros(len(factor)) if bias is None else _array(bias).astype(np.float64).reshape(-1)
    if layer.op_type == "Gemm":
        old = old * layer.attributes.get_float("beta", 1.0)
        layer.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    scaled = _scaled(layer, stored.astype(np.float64), factor).astype(stored.dtype)
    moved = ((old - mean) * factor + beta).astype(stored.dtype)
    _set_weight(graph, layer, 1, scaled, f"{layer.name}.weight")
    _set_weight(graph, layer, 2, moved, f"{layer.name}.bias")
    _bypass(graph, norm)


def _scaled(layer: ir.Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    if layer.op_type == "Gemm":
        return weight * (factor[:, None] if layer.attributes.get_int("transB", 0) else factor[None, :])
    if layer.op_type == "Conv":
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    # ConvTranspose stores (C_in, C_out / group, ...): output channel c is column c of its group.
    groups = layer.attributes.get_int("group", 1)
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    spread = factor.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    return (split * spread).reshape(weight.shape)


def _set_weight(graph: ir.Graph, layer: ir.Node, index: int, array: np.ndarray, name: str) -> None:
    """Make ``array`` the input of ``layer``, under the old name where no other node reads that weight."""
    old = layer.inputs[index] if index < len(layer.inputs) else None
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
        name = str(old.name)
        layer.replace_input_with(index, None)
        graph.initializers.pop(name)
    else:
        name = free_name(graph, name)
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    if index >= len(layer.inputs):
        layer.resize_inputs(index + 1)
    layer.replace_input_with(index, value)


def free_name(graph: ir.Graph, wanted: str) -> str:
    """``wanted``, or ``wanted_1`` and so on where a tensor of the graph has that name already."""
    taken = {v.name for v in graph.inputs} | set(graph.initializers)
    taken |= {o.name for node in graph for o in node.outputs}
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name


def _bypass(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node whose first output is to be its first input; the names of graph outputs are kept."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    outside = result.is_graph_output()
    if outside and (source.producer() is None or source.is_graph_output()):
        identity = ir.Node("", "Identity", [source], outputs=[ir.Value(name=result.name)], name=node.name)
        replacement = identity.outputs[0]
        replacement.shape, replacement.type = result.shape, result.type
        graph.insert_before(node, identity)
    else:
        replacement = source
    result.replace_all_uses_with(replacement, replace_graph_outputs=True)
    if outside:
        name, result.name = result.name, f"{result.name}.removed"
        replacement.name = name
        replacement.shape = replacement.shape or result.shape
    graph.remove(node, safe=True)


def _is_idle_dropout(node: ir.Node) -> bool:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None and (not _is_constant(training) or bool(_array(training))):
        return False
    return not any(o.uses() or o.is_graph_output() for o in node.outputs[1:])


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and not value.is_graph_input()


def _array(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()
