"""The one form of an ONNX graph that the rest of dlas works on.

Functions inlined, nodes sorted and named, constants as initializers, shapes inferred, opset 13 or newer.
"""

from __future__ import annotations

import functools
import importlib
from collections import Counter

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.model import NEWEST_IR, OPSET
from dlas.graph.passes import infer_shapes

KEPT_OPSET = 13  # from here on the file's own opset is kept
_LARGE = 1024  # bytes of a weight that the version converter need not see
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_COMPILED = frozenset({"EPContext"})
_STANDARD = ("", "ai.onnx")
_CONTRIB = "com.microsoft"


def normal_form(proto: onnx.ModelProto, name: str) -> ir.Model:
    """The graph of a model whose tensors are checked already, in the one form that the rest of dlas works on.

    Args:
        proto: The model, without sparse tensors and without external data.
        name: What to call it in errors.

    Raises:
        ModelError: Inconsistent, cyclic, or refused by the ONNX checker.
        UnsupportedError: Control flow, unknown operators, or an opset that cannot be upgraded; all are named.
    """
    _refuse_duplicates(proto.graph, name)
    try:
        graph = ir.from_proto(proto)
        common.InlinePass()(graph)
    except Exception as error:  # any fault inside the third-party reader means the file is malformed
        raise ModelError(f"{name} is not a valid ONNX graph: {first_reason(error)}") from error
    _check_operators(graph, name)
    try:
        graph.graph.sort()
    except ValueError as error:
        raise ModelError(f"{name}: the graph has a cycle", "export it again") from error
    common.RemoveInitializersFromInputsPass()(graph)
    _name_nodes(graph)
    graph.ir_version = min(
        max(graph.ir_version or 0, 4), NEWEST_IR
    )  # version 3 wants every weight among the inputs
    infer_shapes(graph)  # the checker wants a shape on every output
    _check(graph, name)
    if graph.graph.opset_imports.get("", OPSET) < KEPT_OPSET:
        graph = _upgrade(graph, name)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    common.NameFixPass()(graph)
    infer_shapes(graph)
    return graph


def _refuse_duplicates(graph: onnx.GraphProto, name: str) -> None:
    seen = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    for node in graph.node:
        for output in filter(None, node.output):
            if output in seen:
                raise ModelError(
                    f"{name}: tensor {output!r} is written twice, by {node.op_type} {node.name!r}"
                )
            seen.add(output)
    used = [i for node in graph.node for i in node.input] + [o.name for o in graph.output]
    for wanted in filter(None, used):
        if wanted not in seen:
            raise ModelError(f"{name}: tensor {wanted!r} is used but nothing produces it")
    names = [t.name for t in graph.initializer]
    if len(set(names)) != len(names):
        twice = sorted(n for n, count in Counter(names).items() if count > 1)
        raise ModelError(f"{name}: initializers with one name: {', '.join(twice[:8])}")


def _check_operators(graph: ir.Model, name: str) -> None:
    flow, compiled, unknown = [], [], []
    for node in graph.graph.all_nodes():
        label = f"{node.domain + '::' if node.domain else ''}{node.op_type} ({node.name or 'unnamed'})"
        if (node.domain in _STANDARD and node.op_type in _CONTROL_FLOW) or _has_graph(node):
            flow.append(label)
        elif node.domain == _CONTRIB and node.op_type in _COMPILED:
            compiled.append(label)
        elif not _is_known(node, graph.graph.opset_imports):
            unknown.append(label)
    if flow:
        raise UnsupportedError(
            f"{name} has control flow, which no back end here takes: {_few(flow)}",
            "export it with fixed shapes",
        )
    if compiled:
        raise UnsupportedError(
            f"{name} holds code compiled for one device, or the name of a file with it: {_few(compiled)}",
            "use the network it was compiled from",
        )
    if unknown:
        raise UnsupportedError(
            f"{name} has operators that are not standard ONNX: {_few(unknown)}",
            "export it without custom operators",
        )


def _has_graph(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _is_known(node: ir.Node, opsets: dict[str, int]) -> bool:
    if node.domain in _STANDARD:
        return onnx.defs.has(node.op_type, opsets.get("", OPSET))
    return node.domain == _CONTRIB and node.op_type in _contributed()


@functools.cache
def _contributed() -> frozenset[str]:
    """Names of the operators that ONNX Runtime adds."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    return frozenset(s.name for s in state.get_all_operator_schema() if s.domain == _CONTRIB)


def _name_nodes(graph: ir.Model) -> None:
    """Give nodes without a name, or with one that is taken, a name made of operator and position."""
    taken: set[str] = set()
    for index, node in enumerate(graph.graph):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        node.name = name
        taken.add(name)


def _check(graph: ir.Model, name: str) -> None:
    try:
        common.CheckerPass()(graph)
    except Exception as error:  # the pass wraps the checker's own error in several types
        raise ModelError(f"{name} is not a valid ONNX model: {first_reason(error)}") from error


def _upgrade(graph: ir.Model, name: str) -> ir.Model:
    old = graph.graph.opset_imports[""]
    _refuse_flattening(graph, name)
    order, weights = list(graph.graph.initializers), _set_aside(graph.graph)
    proto = ir.to_proto(graph)
    failure = ""
    for target in (OPSET, KEPT_OPSET):
        try:
            upgraded = ir.from_proto(onnx.version_converter.convert_version(proto, target))
        except Exception as error:  # the converter has no error type of its own
            failure = first_reason(error)
            continue
        # The converter drops what it does not know.
        upgraded.metadata_props.update(graph.metadata_props)
        upgraded.producer_name, upgraded.producer_version = graph.producer_name, graph.producer_version
        if old < 11:
            _keep_old_resize(upgraded)
        _name_nodes(upgraded)
        _put_back(upgraded.graph, weights, order)
        common.RemoveInitializersFromInputsPass()(upgraded)
        return upgraded
    raise UnsupportedError(
        f"{name} uses opset {old} and cannot be brought to {KEPT_OPSET}: {failure}",
        f"export it with opset {KEPT_OPSET} or newer",
    )


def _set_aside(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Turn large weights into inputs: the converter needs none of their values and would copy them six times."""
    weights = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _LARGE:
            continue
        value.shape = ir.Shape(tensor.numpy().shape) if value.shape is None else value.shape
        value.type = ir.TensorType(tensor.dtype) if value.type is None else value.type
        weights[name] = tensor
        value.const_value = None
        graph.initializers.pop(name)
        graph.inputs.append(value)
    return weights


def _put_back(graph: ir.Graph, weights: dict[str, ir.TensorProtocol], order: list[str]) -> None:
    for value in graph.inputs:
        if value.name in weights:
            value.const_value = weights[value.name]
            graph.register_initializer(value)
    kept = {name: graph.initializers.pop(name) for name in order if name in graph.initializers}
    for value in (*kept.values(), *graph.initializers.values()):
        graph.initializers.pop(str(value.name), None)
        graph.register_initializer(value)


def _refuse_flattening(graph: ir.Model, name: str) -> None:
    """Hardmax before opset 13 works over all axes from ``axis`` on; the converter keeps one of them only."""
    for node in graph.graph:
        if node.op_type != "Hardmax" or node.domain not in _STANDARD:
            continue
        shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
        axis = node.attributes.get_int("axis", 1)
        if axis != -1 and (shape is None or axis != len(shape) - 1):
            raise UnsupportedError(
                f"{name}: {node.name} is a Hardmax over several axes, which opset {KEPT_OPSET} has no operator for",
                f"export it with opset {KEPT_OPSET} or newer",
            )


def _keep_old_resize(graph: ir.Model) -> None:
    """Upsample and Resize before opset 11 sample at ``x / scale``; the converter leaves them to the newer default."""
    for node in graph.graph:
        if node.op_type == "Resize" and "coordinate_transformation_mode" not in node.attributes:
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")


def _few(labels: list[str]) -> str:
    distinct = list(dict.fromkeys(labels))
    return ", ".join(distinct[:8]) + (f" and {len(distinct) - 8} more" if len(distinct) > 8 else "")


def first_reason(error: BaseException) -> str:
    """The innermost reason of a chain of errors, as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]
