"""How much each channel matters to the loss: Fisher information of a mask on it.

Theis et al. 2018 (arXiv:1801.05787), "Faster gaze prediction with dense networks and Fisher pruning": a channel is
worth ``1/2 mean_n (sum_hw a g)^2``, where ``a`` is its map for sample n and ``g`` the derivative of that sample's loss
by it. Of a channel that several layers compute together (a residual sum), the mask acts on all of its maps at once, so
their products are summed before they are squared.

A ReLU after the map changes nothing (``relu(a) g = a relu'(a) g``), so the map is taken behind the normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from dlas.core.errors import DataError, DlasError, UnsupportedError
from dlas.graph.channels import ChannelGroup

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dlas.data.dataset import Dataset
    from dlas.graph.model import Model

_CHANNEL_AXIS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}
_PASSING = {"BatchNormalization", "Add", "Sub", "Mul", "Div"}  # with stored operands only


class FisherMeter:
    """Adds up the Fisher information of channels while a module is trained or only differentiated.

    Use: ``with meter.watching():`` run the module, ``loss.backward()``, then :meth:`add`.

    Args:
        module: What ``to_torch`` made of the Model that holds ``graph``.
        graph: The graph that ``groups`` were found in.
        groups: Channels to score.

    Raises:
        UnsupportedError: A group is computed by no layer whose output can be looked at; says which.
    """

    def __init__(self, module: nn.Module, graph: ir.Model, groups: Sequence[ChannelGroup]) -> None:
        self._module = module
        self.places: dict[ChannelGroup, list[tuple[str, int, np.ndarray]]] = {
            g: _places(graph, g) for g in groups
        }
        self._names = sorted({name for places in self.places.values() for name, _, _ in places})
        self._axes = {n: axis for places in self.places.values() for n, axis, _ in places}
        self._sums = {g: np.zeros(g.size) for g in groups}
        self._rows = 0
        self._seen: dict[str, torch.Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the maps of the latest run and their gradients."""
        kept: Any = self._module.kept
        with kept(self._names) as self._seen:
            yield

    def add(self, rows: int, scale: float = 1.0) -> None:
        """Count the latest run, after ``backward``.

        Args:
            rows: Samples of the batch.
            scale: Factor from the loss that was differentiated to the sum over samples; their number, where the loss
                is their mean. Without it scores depend on the batch size.
        """
        products = {}
        for name in self._names:
            value = self._seen[name]
            if value.grad is None:
                raise DlasError(
                    f"no gradient reaches {name!r}", "the loss must depend on all scored channels"
                )
            axis = self._axes[name] % value.dim()
            product = (value.detach() * value.grad).float()
            others = [a for a in range(1, value.dim()) if a != axis]
            products[name] = (product.sum(others) if others else product).double().numpy() * scale
            value.grad = None
        for group, places in self.places.items():
            total = sum(products[name][:, at].sum(2) for name, _, at in places)
            self._sums[group] += 0.5 * np.square(total).sum(0)
        self._rows += rows

    def scores(self) -> dict[ChannelGroup, np.ndarray]:
        """Scores so far: group to ``(channels,) float64`` in the order of ``group.ids``, mean over the samples.

        Raises:
            DlasError: Nothing was added, or a score is not finite.
        """
        if not self._rows:
            raise DlasError("no sample was added to the Fisher information")
        found = {group: total / self._rows for group, total in self._sums.items()}
        for group, score in found.items():
            if not np.isfinite(score).all():
                raise DlasError(
                    f"{group.name}: the Fisher information of its channels is not finite",
                    "train with a smaller learning rate, or check the weights and the rows",
                )
        return found

    def clear(self) -> None:
        """Start anew."""
        for total in self._sums.values():
            total[:] = 0.0
        self._rows = 0


def fisher_scores(
    model: Model,
    data: Dataset,
    groups: Sequence[ChannelGroup],
    *,
    rows: int = 1024,
    batch_size: int = 64,
    threads: int = 1,
    progress: Callable[[float], Any] | None = None,
) -> Mapping[ChannelGroup, np.ndarray]:
    """Score the channels of a Model on labelled rows, its weights left alone.

    Args:
        model: The network; its first output is taken as logits or probabilities ``(N, classes)``.
        data: Training rows with labels; taken at even distances if there are more than ``rows``.
        groups: Channels, from ``channels.groups(model.ir)``.
        rows: Samples to look at.
        batch_size: Samples at a time; the scores do not depend on it.
        threads: Threads of torch.
        progress: Called with the fraction done.

    Returns:
        Group to ``(channels,) float64`` in the order of ``group.ids``.

    Raises:
        DataError: No labels, or labels beyond the network's classes.
        UnsupportedError: An operator that torch cannot differentiate.
        DlasError: A score is not finite.
    """
    import torch

    from dlas.compress.losses import cross_entropy
    from dlas.data.preprocess import prepare
    from dlas.graph.torch_module import to_torch

    if data.labels is None:
        raise DataError(f"{data.name} has no labels to rank channels by", "use a data set with labels")
    count = min(rows, len(data))
    data = data.take(np.arange(count) * len(data) // count)
    inputs, labels = prepare(data, model), np.asarray(data.labels, np.int64)
    module = to_torch(model)
    meter = FisherMeter(module, model.ir, groups)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with meter.watching():
            for start in range(0, count, batch_size):
                x = torch.from_numpy(inputs[start : start + batch_size])
                y = torch.from_numpy(labels[start : start + batch_size])
                answer = module(x)
                loss = cross_entropy(answer[0] if isinstance(answer, tuple) else answer, y)
                module.zero_grad()
                loss.backward()
                meter.add(len(x), scale=len(x))
                if progress is not None:
                    progress(min(1.0, (start + len(x)) / count))
    finally:
        torch.set_num_threads(before)
    return meter.scores()


def _places(graph: ir.Model, group: ChannelGroup) -> list[tuple[str, int, np.ndarray]]:
    """Values that hold the channels: name, channel axis and ``(channels, repeats)`` positions along it.

    Where a depthwise convolution passes on what one layer computes, only the last map counts: a mask there removes the
    channel for good, bias of the depthwise layer included.
    """
    roles = {e.role for e in group.entries}
    role = "depthwise" if "depthwise" in roles and not group.coupled else "producer"
    found = []
    for entry in group.entries:
        if entry.role != role:
            continue
        weight = graph.graph.initializers[entry.name]
        for node, index in weight.uses():
            if node.op_type not in _CHANNEL_AXIS or index == 2:
                continue
            value = _normalised(node.outputs[0])
            axis = _CHANNEL_AXIS[node.op_type]
            found.append((str(value.name), axis, _along(value, axis, entry.positions, weight, entry.axis)))
    if not found:
        raise UnsupportedError(
            f"{group.name}: no layer was found whose output could be differentiated",
            "rank channels before the network is quantised",
        )
    return found


def _along(value: ir.Value, axis: int, at: np.ndarray, weight: ir.Value, weight_axis: int) -> np.ndarray:
    """Positions in the value: those in the weight, repeated for every group of a grouped transposed convolution."""
    assert weight.const_value is not None
    length = int(weight.const_value.shape.numpy()[weight_axis])
    size = None if value.shape is None else value.shape[axis]
    repeats = size // length if isinstance(size, int) and size > length else 1
    return np.concatenate([at + k * length for k in range(repeats)], axis=1)


def _normalised(value: ir.Value) -> ir.Value:
    """The value behind the normalisation and bias that follow a layer."""
    while True:
        users = list(value.uses())
        if len(users) != 1 or users[0].node.op_type not in _PASSING or users[0].idx != 0:
            return value
        node = users[0].node
        if not all(v is None or v.const_value is not None for v in node.inputs[1:]):
            return value
        value = node.outputs[0]
