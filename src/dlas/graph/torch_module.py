"""A Model as a trainable PyTorch module, and its weights back into the graph.

The graph is read once into a flat list of calls; a run walks that list and nothing else. Weights become parameters
under their own names (``layer1.0.conv1.weight``), everything else that the graph stores becomes a buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.model import Model

if TYPE_CHECKING:
    from torch import nn

# Inputs that learning changes even when they hold one number; the statistics of batch normalisation it never does.
_LEARNED = {
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "PRelu",
    "LayerNormalization",
    "InstanceNormalization",
    "Gather",
}
_STATISTICS = {("BatchNormalization", 3), ("BatchNormalization", 4)}
_CARRIED_AS_FLOAT = (ir.DataType.INT8, ir.DataType.UINT8)  # see torch_ops.quantize


@dataclass(frozen=True)
class _Stage:
    """One call: which slots it reads and writes, and which are free afterwards (slot 0 stays None)."""

    call: Callable[..., Any]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]


def to_torch(model: Model) -> nn.Module:
    """A module that computes what the graph computes.

    ``forward`` takes the inputs by position, in the Model's order, and returns one tensor or a tuple. Parameters and
    buffers carry the names of the graph's initializers (``module.weights`` maps each to its tensor). Batch
    normalisation uses its stored statistics, in training mode those of the batch, which it adds to the stored ones.
    Quantised tensors pass gradients straight through.

    Raises:
        UnsupportedError: Operators that are not covered; all of them are named.
        ModelError: The graph reads a tensor that nothing makes.
    """
    from dlas.graph.torch_ops.table import Node

    graph = model.ir.graph
    constants = _constants(graph)
    builders = _builders(graph)
    nodes = [node for node in graph if node.op_type != "Constant"]
    built: list[tuple[ir.Node, Node, Callable[..., Any]]] = []
    refused: list[str] = []
    opset = model.ir.opset_imports.get("", 0)
    for node in nodes:
        seen = Node(node, opset, constants)
        try:
            built.append((node, seen, builders[node.op_type](seen)))
        except UnsupportedError as error:
            refused.append(error.message)
    if refused:
        raise UnsupportedError("torch cannot run this network: " + "; ".join(refused))
    return _assemble(model, constants, built)


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
        array = trained[name].detach().cpu().numpy()
        if tuple(array.shape) != tuple(stored.shape.numpy()):
            raise ModelError(
                f"weight {name!r} is {list(array.shape)} in the module and {stored.shape} in the graph"
            )
        value.const_value = ir.tensor(np.array(array, stored.numpy().dtype), name=name)
    return graph


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
    from dlas.graph.torch_ops import elementwise, layers, quantize, resize, shaping, table

    assert all((elementwise, layers, quantize, resize, shaping))  # imported to fill the table
    unknown = sorted(
        {
            f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
            for node in graph
            if (node.domain not in ("", "ai.onnx") or node.op_type not in table.BUILDERS)
            and node.op_type != "Constant"
        }
    )
    if unknown:
        raise UnsupportedError("torch cannot run this network: no translation of " + ", ".join(unknown))
    return table.BUILDERS


def _learned(graph: ir.Graph, constants: dict[str, np.ndarray]) -> set[str]:
    """Initializers that training may change."""
    found = set()
    for name, value in graph.initializers.items():
        array = constants[name]
        if array.dtype.kind != "f":
            continue
        uses = [(use.node.op_type, use.idx) for use in value.uses()]
        if any(use in _STATISTICS for use in uses):
            continue
        if array.size > 1 or any(kind in _LEARNED for kind, _ in uses):
            found.add(name)
    return found


def _assemble(model: Model, constants: dict[str, np.ndarray], built: list[Any]) -> nn.Module:
    graph = model.ir.graph
    slots: dict[str, int] = {}

    def slot(value: ir.Value) -> int:
        return slots.setdefault(str(value.name), len(slots) + 1)

    inputs = [v for v in graph.inputs if v.name not in graph.initializers]
    for value in inputs:
        slot(value)
    live: dict[str, None] = {}
    plan = []
    for node, seen, call in built:
        reads = []
        for position, value in enumerate(node.inputs):
            if value is None or position in seen.baked:
                reads.append(0)
                continue
            if str(value.name) in constants:
                live[str(value.name)] = None
            elif str(value.name) not in slots:
                raise ModelError(f"node {node.name!r} reads {value.name!r}, which nothing makes")
            reads.append(slot(value))
        plan.append((call, tuple(reads), tuple(slot(v) for v in node.outputs)))
    for value in graph.outputs:
        if str(value.name) in constants:
            live[str(value.name)] = None
        elif str(value.name) not in slots:
            raise ModelError(f"output {value.name!r} is made by no node")
    results = [slot(v) for v in graph.outputs]
    held = {slots[n] for n in live} | set(results)
    learned = _learned(graph, constants) & set(live)
    return _module_class()(
        stages=_with_frees(plan, held),
        inputs=[(slot(v), v.dtype in _CARRIED_AS_FLOAT) for v in inputs],
        outputs=[(s, v.dtype) for s, v in zip(results, graph.outputs, strict=True)],
        constants={n: a for n, a in constants.items() if n in live or n in graph.initializers},
        slots={n: slots[n] for n in live},
        learned=learned,
    )


def _with_frees(plan: list[Any], held: set[int]) -> list[_Stage]:
    """Let each intermediate tensor go after its last use, so that memory is what an engine would need."""
    last: dict[int, int] = {}
    for index, (_, reads, writes) in enumerate(plan):
        for slot in (*reads, *writes):
            last[slot] = index
    stages = []
    for index, (call, reads, writes) in enumerate(plan):
        over = {s for s in (*reads, *writes) if s and last[s] == index and s not in held}
        stages.append(_Stage(call, reads, writes, tuple(sorted(over))))
    return stages


def _module_class() -> type[nn.Module]:
    """The class is made on first use: torch is not imported before."""
    global _CLASS
    if _CLASS is None:
        _CLASS = _define()
    return _CLASS


_CLASS: type[nn.Module] | None = None


def _define() -> type[nn.Module]:
    import torch
    from torch import nn

    from dlas.graph.torch_ops.table import DTYPES

    class GraphModule(nn.Module):
        """An ONNX graph as a list of torch calls."""

        def __init__(
            self,
            stages: list[_Stage],
            inputs: list[tuple[int, bool]],
            outputs: list[tuple[int, Any]],
            constants: dict[str, np.ndarray],
            slots: dict[str, int],
            learned: set[str],
        ) -> None:
            super().__init__()
            self._stages = [(s.call, s.reads, s.writes, s.frees) for s in stages]
            self._inputs = inputs
            self._outputs = [(s, DTYPES[d] if d in _CARRIED_AS_FLOAT else None) for s, d in outputs]
            self._places: dict[str, tuple[nn.Module, str]] = {}
            for name, array in constants.items():
                tensor = torch.from_numpy(np.array(array)) if array.dtype.kind in "fiub" else None
                if tensor is None:
                    raise UnsupportedError(f"the dtype {array.dtype} of {name!r} is not known to torch")
                self._places[name] = _attach(self, name, nn.Parameter(tensor) if name in learned else tensor)
            self._loads = [(slot, *self._places[name]) for name, slot in slots.items()]
            self._size = 1 + max(
                [0, *slots.values(), *(s for s, _ in inputs), *(s for st in stages for s in st.writes)]
            )
            self.eval()

        def train(self, mode: bool = True) -> nn.Module:
            """Training mode, in which batch norms use and update statistics of the batch; see nn.Module.train."""
            for call, *_ in self._stages:
                if hasattr(call, "training"):
                    setattr(call, "training", mode)  # noqa: B010 - a call is known by what it can do
            return super().train(mode)

        def weights(self) -> dict[str, torch.Tensor]:
            """Every stored tensor under its name in the graph."""
            return {name: getattr(holder, leaf) for name, (holder, leaf) in self._places.items()}

        def wrap_calls(self, wrap: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> None:
            """Put ``wrap(i, call)`` in the place of the call of the graph's i-th operator, Constants not counted."""
            self._stages = [(wrap(i, s[0]), *s[1:]) for i, s in enumerate(self._stages)]

        def forward(self, *inputs: torch.Tensor) -> Any:
            values: list[Any] = [None] * self._size
            for (slot, carried), tensor in zip(self._inputs, inputs, strict=True):
                values[slot] = tensor.float() if carried else tensor
            for slot, holder, leaf in self._loads:
                values[slot] = getattr(holder, leaf)
            for call, reads, writes, frees in self._stages:
                result = call(*[values[i] for i in reads])
                if type(result) is tuple:
                    for slot, tensor in zip(writes, result, strict=True):
                        values[slot] = tensor
                else:
                    values[writes[0]] = result
                for slot in frees:
                    values[slot] = None
            answers = tuple(values[s] if dtype is None else values[s].to(dtype) for s, dtype in self._outputs)
            return answers[0] if len(answers) == 1 else answers

    def _attach(root: nn.Module, name: str, tensor: torch.Tensor) -> tuple[nn.Module, str]:
        """Keep ``name`` as the path of the tensor; where that cannot be, dots become underscores."""
        *path, leaf = name.split(".")
        holder = root
        try:
            for part in path:
                child = holder._modules.get(part)
                if child is None:
                    child = nn.Module()
                    holder.add_module(part, child)
                holder = child
            _store(holder, leaf, tensor)
        except KeyError:  # torch's word for a name it cannot take
            leaf = "weight_" + name.replace(".", "_")
            while hasattr(root, leaf):
                leaf += "_"
            _store(root, leaf, tensor)
            return root, leaf
        return holder, leaf

    def _store(holder: nn.Module, leaf: str, tensor: torch.Tensor) -> None:
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(leaf, tensor)
        else:
            holder.register_buffer(leaf, tensor)

    return GraphModule
