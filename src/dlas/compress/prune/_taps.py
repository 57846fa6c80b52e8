"""Where the channels of a group can be seen while the network runs: after normalisation and activation.

A tap is the value behind a layer that computes the channels, followed through what is applied to each channel alone
(batch normalisation, activations). The channels of a group that several layers compute have one tap for each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.errors import UnsupportedError
from dlas.graph.channels import ChannelGroup
from dlas.graph.channels.arithmetic import UNARY
from dlas.graph.channels.labels import label_of
from dlas.graph.model import Model

_ALONE = {*UNARY.split(), "BatchNormalization"} - {"Cast", "Dropout"}
_LAYOUT = ("Transpose", "Identity", "Cast", "DequantizeLinear", "Reshape", "Squeeze", "Unsqueeze")
_ROWS = 128  # run at once


@dataclass(frozen=True, eq=False)
class Tap:
    """A value that carries the channels of a group.

    Attributes:
        value: Its name.
        axis: Its channel axis.
        positions: ``(channels, repeats) int64``: positions along the axis, one row per channel of the group.
    """

    value: str
    axis: int
    positions: np.ndarray


def taps(graph: ir.Model, group: ChannelGroup) -> list[Tap]:
    """Every tap of a group.

    Raises:
        UnsupportedError: It has none, as layers whose weights are turned before use.
    """
    places = {e.name: e for e in group.entries if e.role == "producer"}
    found = []
    for node in graph.graph:
        if label_of(node) not in group.producers:
            continue
        entry = next((places[n] for v in node.inputs[:2] if (n := _source(v)) in places), None)
        grouped = node.attributes.get("group")
        if entry is None or (
            node.op_type == "ConvTranspose" and grouped is not None and grouped.as_int() > 1
        ):
            continue
        axis = 1 if node.op_type.startswith("Conv") else -1
        found.append(Tap(str(_followed(node.outputs[0]).name), axis, entry.positions))
    if not found:
        raise UnsupportedError(
            f"the activations of {group.name} cannot be told apart by channel", "use a criterion of weights"
        )
    return found


def _source(value: ir.Value | None) -> str:
    """Name of the stored array behind an operand; empty where it is computed."""
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in _LAYOUT:
            return ""
        value = node.inputs[0]
    return "" if value is None else str(value.name)


def _followed(value: ir.Value) -> ir.Value:
    while len(uses := value.uses()) == 1 and not value.is_graph_output():
        (node, index) = next(iter(uses))
        if node.op_type not in _ALONE or index != 0:
            break
        value = node.outputs[0]
    return value


def pooled_activations(model: Model, group: ChannelGroup, inputs: np.ndarray) -> np.ndarray:
    """Mean activation of each channel of a group for each row, over space and over all layers that compute it.

    Returns:
        ``(rows, channels) float64``.
    """
    from dlas.graph.reference import intermediates

    places = taps(model.ir, group)
    parts = []
    for start in range(0, len(inputs), _ROWS):
        fed = {model.inputs[0].name: inputs[start : start + _ROWS]}
        seen = intermediates(model, fed, sorted({tap.value for tap in places}))
        total = np.zeros((len(fed[model.inputs[0].name]), group.size))
        for tap in places:
            array = np.moveaxis(seen[tap.value], tap.axis, 1).astype(np.float64)
            array = array.reshape(*array.shape[:2], -1).mean(2)
            total += array[:, tap.positions].mean(2)
        parts.append(total / len(places))
    return np.concatenate(parts)
