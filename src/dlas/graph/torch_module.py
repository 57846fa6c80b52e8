"""A Model as a trainable PyTorch module, and its weights back into the graph.

The graph is read once into a flat list of calls; a run walks that list and nothing else. Weights become parameters
under their own names (``layer1.0.conv1.weight``), everything else that the graph stores becomes a buffer.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.model import Model

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dlas.graph.torch_ops.graph_module import Plan, Stage
    from dlas.graph.torch_ops.table import Node

# Inputs that learning changes even when they hold one number, or come from a Constant node.
_LEARNED = {
    "Conv",
    "ConvTranspose",
    "GRU",
    "Gather",
    "Gemm",
    "GroupNormalization",
    "InstanceNormalization",
    "LSTM",
    "LayerNormalization",
    "MatMul",
    "PRelu",
    "RMSNormalization",
    "RNN",
}
# Inputs that learning never changes: statistics, initial states, places, the two values of a one-hot vector.
_FIXED = {
    ("BatchNormalization", 3),
    ("BatchNormalization", 4),
    ("GRU", 5),
    ("GridSample", 1),
    ("LSTM", 5),
    ("LSTM", 6),
    ("NonMaxSuppression", 0),
    ("OneHot", 2),
    ("RNN", 5),
}
_SCALES = ("QLinear", "QGemm")  # operators whose float inputs are scales


def to_torch(model: Model) -> nn.Module:
    """A module that computes what the graph computes.

    ``forward`` takes the inputs by position, in the Model's order, and returns one tensor or a tuple. Parameters and
    buffers carry the names of the graph's initializers (``module.weights()`` maps each to its tensor). Batch
    normalisation uses its stored statistics, in training mode those of the batch, which it adds to the stored ones;
    dropout drops in training mode only. Quantised tensors pass gradients straight through. Operators without a
    derivative (comparisons, ArgMax, NonMaxSuppression, integer weights) stop the gradient; where they stop all of it,
    a run in training mode raises UnsupportedError. Initial states of recurrent layers are not learned. Integers of 4
    bits are passed one per byte.

    Raises:
        UnsupportedError: Operators that are not covered; all of them are named.
        ModelError: The graph reads a tensor that nothing makes, or an operator lacks what it needs.
    """
    from dlas.graph.torch_ops.dtypes import checked
    from dlas.graph.torch_ops.graph_module import GraphModule
    from dlas.graph.torch_ops.table import Node, key

    graph = model.ir.graph
    constants = _constants(graph)
    builders = _builders(graph)
    built: list[tuple[Node, Callable[..., Any]]] = []
    refused: list[str] = []
    opset = model.ir.opset_imports.get("", 0)
    for node in graph:
        if node.op_type == "Constant":
            continue
        seen = Node(node, opset, constants)
        try:
            built.append((seen, checked(seen, builders[key(node)](seen))))
        except UnsupportedError as error:
            refused.append(error.message)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError) as error:
            raise ModelError(
                f"{node.op_type} {node.name!r}: its attributes or inputs are not valid ({error!r})"
            ) from error
    if refused:
        raise UnsupportedError("torch cannot run this network: " + "; ".join(refused))
    return GraphModule(_plan(graph, constants, built))


def weights_back(model: Model, module: nn.Module) -> ir.Model:
    """An editable copy of the graph with the weights of a module made by :func:`to_torch` from the same Model.

    Raises:
        ModelError: A weight is missing, or has another shape than the graph stores.
    """
    weights = module.weights
    assert callable(weights)
    trained = weights()
    graph = model.editable()
    for name, value in graph.graph.initializers.items():
        stored = value.const_value
        if stored is None or not stored.dtype.is_floating_point():
            continue
        if name not in trained:
            raise ModelError(
                f"the module has no weight {name!r}", "make it with to_torch from the same Model"
            )
        value.const_value = _stored_as(stored, trained[name], name)
    for node in graph.graph:
        if node.op_type == "Constant" and node.outputs[0].name in trained:
            name = str(node.outputs[0].name)
            stored = ir.convenience.get_const_tensor(node.outputs[0])
            assert stored is not None
            node.attributes["value"] = ir.AttrTensor("value", _stored_as(stored, trained[name], name))
    return graph


def _stored_as(stored: Any, weight: torch.Tensor, name: str) -> ir.TensorProtocol:
    """A weight in the dtype that the graph stores."""
    if tuple(weight.shape) != tuple(stored.shape.numpy()):
        raise ModelError(
            f"weight {name!r} is {list(weight.shape)} in the module and {stored.shape} in the graph"
        )
    weight = weight.detach().cpu()
    if stored.dtype == ir.DataType.BFLOAT16:  # which NumPy does not know, but onnx-ir does
        weight = weight.float()
    return ir.tensor(np.array(weight.numpy(), stored.numpy().dtype), dtype=stored.dtype, name=name)


def _constants(graph: ir.Graph) -> dict[str, np.ndarray]:
    values = list(graph.initializers.values())
    values += [out for node in graph if node.op_type == "Constant" for out in node.outputs]
    found = {}
    for value in values:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            raise ModelError(f"the constant {value.name!r} has no value")
        found[str(value.name)] = tensor.numpy()
    return found


def _builders(graph: ir.Graph) -> dict[str, Callable[..., Any]]:
    """The table of operators; raises UnsupportedError naming every operator of the graph that is not in it."""
    from dlas.graph import torch_ops
    from dlas.graph.torch_ops import table

    for module in pkgutil.iter_modules(torch_ops.__path__, torch_ops.__name__ + "."):
        importlib.import_module(module.name)  # fills the table
    kinds = {table.key(node) for node in graph if node.op_type != "Constant"}
    unknown = sorted(kinds - set(table.BUILDERS))
    if unknown:
        raise UnsupportedError("torch cannot run this network: no translation of " + ", ".join(unknown))
    return table.BUILDERS


def _learned(graph: ir.Graph, constants: dict[str, np.ndarray]) -> set[str]:
    """Constants that training may change."""
    found = set()
    made = [node.outputs[0] for node in graph if node.op_type == "Constant"]
    for value in (*graph.initializers.values(), *made):
        array = constants[str(value.name)]
        floats = array.dtype.kind == "f" or str(array.dtype) == "bfloat16"
        if not floats or not np.isfinite(array).all():
            continue
        uses = [(use.node.op_type, use.idx) for use in value.uses()]
        if any(use in _FIXED or use[0].startswith(_SCALES) for use in uses):
            continue
        layer = any(kind in _LEARNED for kind, _ in uses)
        if layer or (array.size > 1 and value.producer() is None):
            found.add(str(value.name))
    return found


def _plan(graph: ir.Graph, constants: dict[str, np.ndarray], built: list[Any]) -> Plan:
    from dlas.graph.torch_ops.graph_module import Plan
    from dlas.graph.torch_ops.table import DTYPES, NARROW

    slots: dict[str, int] = {}

    def slot(value: ir.Value) -> int:
        return slots.setdefault(str(value.name), len(slots) + 1)

    inputs = [slot(v) for v in graph.inputs if v.name not in graph.initializers]
    live: dict[str, None] = {}
    calls = []
    for seen, call in built:
        reads = []
        for position, value in enumerate(seen.ir.inputs):
            if value is None or position in seen.baked:
                reads.append(0)
                continue
            if str(value.name) in constants:
                live[str(value.name)] = None
            elif str(value.name) not in slots:
                raise ModelError(f"node {seen.ir.name!r} reads {value.name!r}, which nothing makes")
            reads.append(slot(value))
        writes = tuple(slot(v) for v in seen.ir.outputs)
        calls.append((call, tuple(reads), writes, f"{seen.kind} {seen.ir.name!r}"))
    for value in graph.outputs:
        if str(value.name) in constants:
            live[str(value.name)] = None
        elif str(value.name) not in slots:
            raise ModelError(f"output {value.name!r} is made by no node")
    results = [slot(v) for v in graph.outputs]
    learned = _learned(graph, constants) & set(live)
    kinds = {**DTYPES, **NARROW}
    whole = [
        kinds.get(v.dtype) if v.dtype is not None and v.dtype.is_integer() else None for v in graph.outputs
    ]
    return Plan(
        stages=_with_frees(calls, {slots[n] for n in live} | set(results)),
        inputs=inputs,
        outputs=list(zip(results, whole, strict=True)),
        constants={n: a for n, a in constants.items() if n in live or n in graph.initializers},
        slots={n: slots[n] for n in live},
        values={n: s for n, s in slots.items() if n not in constants},
        learned=learned,
    )


def _with_frees(calls: list[Any], held: set[int]) -> list[Stage]:
    """Let each intermediate tensor go after its last use, so that memory is what an engine would need."""
    from dlas.graph.torch_ops.graph_module import Stage

    last: dict[int, int] = {}
    for index, (_, reads, writes, _) in enumerate(calls):
        for slot in (*reads, *writes):
            last[slot] = index
    stages = []
    for index, (call, reads, writes, label) in enumerate(calls):
        over = {s for s in (*reads, *writes) if s and last[s] == index and s not in held}
        stages.append(Stage(call, reads, writes, tuple(sorted(over)), label))
    return stages
