"""The module that walks the list of calls a graph was read into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlas.core.errors import ModelError, UnknownNameError, UnsupportedError
from dlas.graph.torch_ops.table import held

Change = Callable[[Tensor], Tensor]
"""What is put in the place of a tensor; an ``nn.Module`` brings its own parameters."""

# What torch and the calls raise where inputs do not fit an operator.
_FAULTS = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError, ZeroDivisionError)


@dataclass(frozen=True)
class Stage:
    """One call: which slots it reads and writes, and which are free afterwards (slot 0 stays None)."""

    call: Callable[..., Any]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]
    label: str


@dataclass(frozen=True)
class Plan:
    """A graph as calls.

    Attributes:
        stages: The calls in order.
        inputs: Slots of the inputs.
        outputs: Slots of the outputs, and the dtype of those that hold integers.
        constants: Name to array of everything stored.
        slots: Name to slot of those constants that are read while the graph runs.
        values: Name to slot of the inputs and of everything the calls write.
        learned: Names of the constants that training may change.
    """

    stages: list[Stage]
    inputs: list[int]
    outputs: list[tuple[int, torch.dtype | None]]
    constants: dict[str, np.ndarray]
    slots: dict[str, int]
    values: dict[str, int]
    learned: set[str]

    @property
    def size(self) -> int:
        """Number of slots."""
        used = [*self.slots.values(), *self.inputs, *(s for s, _ in self.outputs)]
        return 1 + max([0, *used, *(s for stage in self.stages for s in stage.writes)])


class GraphModule(nn.Module):
    """An ONNX graph as a list of torch calls; see :func:`dlas.graph.torch_module.to_torch`."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._stages = plan.stages
        self._inputs, self._outputs, self._size = plan.inputs, plan.outputs, plan.size
        self._changes: dict[int, Change] = {}
        self.changes = nn.ModuleDict()  # before the tensors: one of this name would be lost
        self._places: dict[str, tuple[nn.Module, str]] = {}
        for name, array in plan.constants.items():
            tensor = held(array, name)
            self._places[name] = _attach(self, name, nn.Parameter(tensor) if name in plan.learned else tensor)
        self._loads = [(slot, *self._places[name]) for name, slot in plan.slots.items()]
        self._slots = {"weight": plan.slots, "value": plan.values}
        self.eval()

    def train(self, mode: bool = True) -> GraphModule:
        """Training mode: batch norms use and update statistics of the batch, dropout drops; see nn.Module.train."""
        for stage in self._stages:
            if hasattr(stage.call, "training"):
                setattr(stage.call, "training", mode)  # noqa: B010 - a call is known by what it can do
        return super().train(mode)

    def weights(self) -> dict[str, Tensor]:
        """Every stored tensor under its name in the graph."""
        return {name: getattr(holder, leaf) for name, (holder, leaf) in self._places.items()}

    def on_weight(self, name: str, change: Change) -> Callable[[], None]:
        """Read ``change(w)`` wherever the graph reads the stored tensor ``name``; the tensor itself stays.

        Gradients pass through ``change``; parameters of one that is an ``nn.Module`` are the module's as well.

        Returns:
            What takes it away again.

        Raises:
            UnknownNameError: The graph reads no such tensor while it runs.
            ModelError: It is changed already.
        """
        return self._put("weight", name, change)

    def on_value(self, name: str, change: Change) -> Callable[[], None]:
        """Hand on ``change(x)`` in the place of the input or intermediate value ``name``; see :meth:`on_weight`."""
        return self._put("value", name, change)

    def _put(self, kind: str, name: str, change: Change) -> Callable[[], None]:
        slot = self._slot(kind, name)
        if slot in self._changes:
            raise ModelError(f"the {kind} {name!r} is changed twice", "combine both into one")
        self._changes[slot] = change
        key = f"{kind}-{slot}"
        if isinstance(change, nn.Module):
            self.changes[key] = change

        def remove() -> None:
            del self._changes[slot]
            if key in self.changes:
                del self.changes[key]

        return remove

    def _slot(self, kind: str, name: str) -> int:
        slots = self._slots[kind]
        if name not in slots:
            raise UnknownNameError(kind, name, slots)
        return slots[name]

    @contextmanager
    def kept(self, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """Keep values of the latest run, by name, with their gradients where one flows through them.

        Values that :meth:`on_value` changes are kept as they are handed on.
        """
        found: dict[str, Tensor] = {}
        slots = {self._slot("value", name): name for name in names}
        before = {slot: self._changes.get(slot) for slot in slots}
        for slot, name in slots.items():
            self._changes[slot] = _keeping(found, name, before[slot])
        try:
            yield found
        finally:
            for slot, change in before.items():
                if change is None:
                    del self._changes[slot]
                else:
                    self._changes[slot] = change

    def wrap_calls(self, wrap: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put ``wrap(i, call)`` in the place of the call of the graph's i-th operator, Constants not counted."""
        self._stages = [replace(s, call=wrap(i, s.call)) for i, s in enumerate(self._stages)]

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs for inputs in the Model's order: one tensor or a tuple.

        Raises:
            ModelError: An operator fails on its inputs.
            UnsupportedError: In training mode, that no gradient can reach any weight, and what stops it.
        """
        values: list[Any] = [None] * self._size
        changes = self._changes
        for slot, tensor in zip(self._inputs, inputs, strict=True):
            values[slot] = changes[slot](tensor) if slot in changes else tensor
        for slot, holder, leaf in self._loads:
            tensor = getattr(holder, leaf)
            values[slot] = changes[slot](tensor) if slot in changes else tensor
        learning = self.training and torch.is_grad_enabled()
        stops: list[str] = []
        label = ""
        try:
            for stage in self._stages:
                label = stage.label
                read = [values[i] for i in stage.reads]
                result = stage.call(*read)
                made = result if type(result) is tuple else (result,)
                for slot, tensor in zip(stage.writes, made, strict=False):
                    values[slot] = changes[slot](tensor) if slot in changes else tensor
                if learning and _learns(read) and not _learns(made):
                    stops.append(label)
                for slot in stage.frees:
                    values[slot] = None
        except _FAULTS as error:
            raise ModelError(f"{label} fails: {' '.join(str(error).split())[:300]}") from error
        answers = tuple(values[s] if dtype is None else values[s].to(dtype) for s, dtype in self._outputs)
        if learning and _learns(list(self.parameters())) and not _learns(answers):
            raise UnsupportedError(
                f"no gradient reaches a weight of this network: stopped by {', '.join(stops) or 'nothing'}",
                "train the network before it is quantised, or up to an output that can be differentiated",
            )
        return answers[0] if len(answers) == 1 else answers


def _keeping(found: dict[str, Tensor], name: str, change: Change | None) -> Change:
    def keep(tensor: Tensor) -> Tensor:
        tensor = tensor if change is None else change(tensor)
        if tensor.requires_grad and not tensor.is_leaf:
            tensor.retain_grad()
        found[name] = tensor
        return tensor

    return keep


def _learns(tensors: Any) -> bool:
    return any(isinstance(t, Tensor) and t.requires_grad for t in tensors)


def _attach(root: nn.Module, name: str, tensor: Tensor) -> tuple[nn.Module, str]:
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


def _store(holder: nn.Module, leaf: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        holder.register_parameter(leaf, tensor)
    else:
        holder.register_buffer(leaf, tensor)
