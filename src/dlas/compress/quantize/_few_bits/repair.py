"""Statistics repair: what each layer puts out has the mean and variance again that it had before quantisation.

Rounded weights shrink and shift the output of every channel, and a batch normalisation goes on subtracting and
dividing by what it counted before. Both networks run once over the same rows. Layer by layer, in order, the mean and
variance of each channel of the quantised network (``m_q, v_q``) are measured behind layers already put right, and the
batch normalisation behind is moved: with ``r = sqrt(v_f / v_q)`` its mean becomes ``m_q + (mean - m_f) / r`` and
``variance + epsilon`` becomes ``(variance + epsilon) / r**2``. Where none follows, because it was folded into the
layer or never was there, the layer takes it up itself: its scales times ``r``, its bias ``r * (bias - m_q) + m_f``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.compress.calibration import calibration_batches
from dlas.compress.qdq import QdqWriter
from dlas.compress.quantize._few_bits.layers import Layer
from dlas.compress.quantize._int8.scheme import RULES, constant, input_at
from dlas.core.errors import DataError
from dlas.data.dataset import Dataset
from dlas.graph.model import Model

_REPAIRED = ("Conv", "Gemm")
_BYTES = 512 << 20  # the largest activation of all rows together, as each layer is measured over all at once
_TINY = 1e-12


@dataclass
class _Moments:
    """Mean and variance of a layer's output, ``(channels,) float64``."""

    mean: np.ndarray
    variance: np.ndarray


def repair(
    model: Model,
    graph: ir.Model,
    layers: Sequence[Layer],
    data: Dataset | None,
    rows: int,
    *,
    how: str,
    progress: Callable[[float], Any],
) -> list[str]:
    """Repair ``graph``, which still holds the float weights, for the quantised ``layers``; in place.

    Args:
        model: The float network, for its preprocessing.
        graph: Its editable copy.
        layers: Quantised, not yet written; those without batch normalisation behind get other scales.
        data: Training rows.
        rows: How many to use.
        how: ``stats``: mean and variance; ``bias``: the mean alone.
        progress: Called with the fraction done.

    Returns:
        What the user must know.

    Raises:
        DataError: No rows, or activations that are not finite.
    """
    import torch

    from dlas.graph.torch_module import to_torch

    batches, count = calibration_batches(model, data, rows)
    targets = [layer for layer in layers if _repairable(layer)]
    module = to_torch(Model(graph.clone(), model.name, preprocessing=model.preprocessing))
    everything = np.concatenate(list(batches()))
    assert data is not None  # else there were no batches
    notes = [f"{how} repaired on {count} rows of {data.name}"]
    fits = max(1, _BYTES // _bytes_per_row(module, targets, everything[:1]))
    if fits < count:
        everything = everything[np.arange(fits) * count // fits]
        notes[0] += f", of which {fits} fit into memory at once"
    x = torch.from_numpy(everything)
    progress(0.1)
    with torch.no_grad():
        exact = _measured(module, targets, x)
        progress(0.5)
        found = _walked(module, layers, targets, x, exact, how)
    progress(1.0)
    writer = QdqWriter(graph.graph)
    alone = [layer.name for layer in targets if not _put_right(writer, layer, exact, found, how)]
    if alone:
        notes.append(f"no batch normalisation behind {_listed(alone)}: scales and biases took up the repair")
    skipped = [layer.name for layer in layers if layer not in targets]
    if skipped:
        notes.append(f"not repaired: {_listed(skipped)}")
    return notes


def _repairable(layer: Layer) -> bool:
    """Whether the layer could take up a correction: it is used once, and adds nothing but a constant per channel."""
    op = layer.node.op_type
    return op in _REPAIRED and len(layer.uses) == 1 and not RULES[op].refuse(layer.node)


def _bytes_per_row(module: Any, targets: Sequence[Layer], row: np.ndarray) -> int:
    import torch

    with torch.no_grad(), module.kept([_output(layer) for layer in targets]) as kept:
        module(torch.from_numpy(row))
        return 4 * max([1, *(value.numel() for value in kept.values())])


def _measured(module: Any, targets: Sequence[Layer], x: Any) -> dict[str, _Moments]:
    """Of the float network."""
    found: dict[str, _Moments] = {}
    removes = [module.on_value(_output(layer), _measuring(found, _output(layer))) for layer in targets]
    module(x)
    for remove in removes:
        remove()
    for layer in targets:
        moments = found[_output(layer)]
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.variance).all()):
            raise DataError(
                f"repair: layer {layer.name!r} yields values that are not finite",
                "check the rows and the network's preprocessing, or the weights of that layer",
            )
    return found


def _walked(
    module: Any,
    layers: Sequence[Layer],
    targets: Sequence[Layer],
    x: Any,
    exact: dict[str, _Moments],
    how: str,
) -> dict[str, _Moments]:
    """Of the quantised network, each layer measured behind those put right before it."""
    import torch

    found: dict[str, _Moments] = {}
    for layer in layers:
        values = torch.from_numpy(layer.values())
        module.on_weight(str(layer.value.name), lambda _, values=values: values)
    for layer in targets:
        name = _output(layer)
        measure = _measuring(found, name)

        def mend(y: Any, name: str = name, measure: Callable[[Any], Any] = measure) -> Any:
            measure(y)
            r, shift = _correction(exact[name], found[name], how)
            shape = [1, -1, *[1] * (y.dim() - 2)]
            return y * torch.from_numpy(r).float().view(shape) + torch.from_numpy(shift).float().view(shape)

        module.on_value(name, mend)
    module(x)
    return found


def _measuring(found: dict[str, _Moments], name: str) -> Callable[[Any], Any]:
    def measure(y: Any) -> Any:
        import torch

        axes = [0, *range(2, y.dim())]
        variance, mean = torch.var_mean(y, dim=axes, correction=0)
        found[name] = _Moments(mean.double().numpy(), variance.double().numpy())
        return y

    return measure


def _correction(exact: _Moments, found: _Moments, how: str) -> tuple[np.ndarray, np.ndarray]:
    """``r`` and ``shift`` with which ``r * y + shift`` has the float network's moments."""
    r = np.ones_like(exact.mean)
    if how == "stats":
        alive = (exact.variance > _TINY) & (found.variance > _TINY)
        r[alive] = np.sqrt(exact.variance[alive] / found.variance[alive])
    return r, exact.mean - r * found.mean


def _put_right(
    writer: QdqWriter, layer: Layer, exact: dict[str, _Moments], found: dict[str, _Moments], how: str
) -> bool:
    """Move the batch normalisation behind; False where there is none and the layer took it up itself."""
    name = _output(layer)
    r, shift = _correction(exact[name], found[name], how)
    norm = _norm_behind(layer.node)
    if norm is None:
        bias = constant(input_at(layer.node, 2))
        before = np.zeros(len(r)) if bias is None else bias.reshape(-1).astype(np.float64)
        layer.stretch(r)
        if len(layer.node.inputs) < 3:
            layer.node.resize_inputs(3)
        stored = writer.constant((r * before + shift).astype(np.float32), f"{name}_repaired_bias")
        layer.node.replace_input_with(2, stored)
        return False
    epsilon = norm.attributes["epsilon"].value if "epsilon" in norm.attributes else 1e-5
    mean, variance = (np.asarray(constant(input_at(norm, i)), np.float64) for i in (3, 4))
    mean = found[name].mean + (mean - exact[name].mean) / r
    variance = (variance + epsilon) / r**2 - epsilon
    for index, what, array in ((3, "mean", mean), (4, "variance", np.maximum(variance, 0.0))):
        norm.replace_input_with(index, writer.constant(array.astype(np.float32), f"{name}_repaired_{what}"))
    return True


def _norm_behind(node: ir.Node) -> ir.Node | None:
    """The batch normalisation that alone reads the layer's output."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    norm = uses[0].node
    stored = norm.op_type == "BatchNormalization" and all(
        constant(input_at(norm, i)) is not None for i in (3, 4)
    )
    return norm if stored else None


def _output(layer: Layer) -> str:
    return str(layer.node.outputs[0].name)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
