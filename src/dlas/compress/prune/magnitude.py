"""Unstructured pruning: the weights nearest to zero become zero, wherever they are.

Han et al. 2015, "Learning both weights and connections for efficient neural networks". Linear in the number of
weights. The file shrinks only under compression or in a sparse format, and dense kernels run no faster: use
``channel`` where time matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.core.errors import ModelError, UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.graph.model import Model, Step, step_versions

PRUNED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LAYOUT = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Cast")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_NOTES = (
    "dense kernels run no faster on zeros; a runtime with sparse kernels gains from about 70-80 % sparsity",
    "CSR (float32 value, int32 column) takes fewer bytes than dense storage only above 50 % sparsity",
)


@dataclass(frozen=True)
class Options:
    """Options of ``magnitude``."""

    sparsity: float = option(0.5, "fraction of the prunable weights that become zero", low=0.0, below=1.0)
    scope: Literal["global", "layer"] = option(
        "global",
        "rank weights over the whole network, or zero the same fraction of every layer",
        choices=("global", "layer"),
    )
    keep_first: bool = option(True, "leave the first convolution alone")


@dataclass(frozen=True)
class _Target:
    """One stored weight and the layers that use it (several, where weights are tied)."""

    value: ir.Value
    layers: tuple[str, ...]
    array: np.ndarray

    @property
    def name(self) -> str:
        return " = ".join(self.layers)


@methods.register("magnitude")
class Magnitude(Method):
    """Zero the smallest weights of convolutions and matrix products; biases and batch norms are left alone."""

    name = "magnitude"
    summary = "Unstructured pruning: the weights nearest to zero become zero"
    Options = Options
    options: Options

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """Sparsity of every prunable weight before and after; needs no rows."""
        targets, masks, notes = self._choose(model)
        changes = []
        dense = stored = 0
        for target, mask in zip(targets, masks, strict=True):
            before, after = _zeros(target.array), int((mask | (target.array == 0)).sum())
            if after != before:
                size = target.array.size
                changes.append(
                    Change(target.name, "weights to zero", _share(before, size), _share(after, size))
                )
            dense += 4 * target.array.size
            stored += 8 * (target.array.size - after) + 4 * (target.array.shape[0] + 1)
        expected = {
            "sparsity_before": _fraction(targets, [t.array == 0 for t in targets]),
            "sparsity": _fraction(targets, [m | (t.array == 0) for t, m in zip(targets, masks, strict=True)]),
            "dense_bytes": Figure(dense, "bytes", Source.ESTIMATED, note="prunable weights in float32"),
            "csr_bytes": Figure(stored, "bytes", Source.ESTIMATED, note="float32 values, int32 indices"),
        }
        return Plan(self.spelled(), tuple(changes), expected, notes)

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The network with zeros in place of its smallest weights; see :meth:`Method.apply`.

        Raises:
            UnsupportedError: The network has no float weights that may be pruned; says why.
            ModelError: A weight is NaN or infinite.
        """
        targets, masks, notes = self._choose(model)
        graph = model.editable()
        for done, (target, mask) in enumerate(zip(targets, masks, strict=True), start=1):
            name = str(target.value.name)
            kept = np.where(mask, target.array.dtype.type(0), target.array)
            graph.graph.initializers[name].const_value = ir.tensor(kept, name=name)
            if progress is not None:
                progress(done / len(targets), f"pruned {target.name}")
        size = sum(t.array.size for t in targets)
        zeros = sum(int((m | (t.array == 0)).sum()) for t, m in zip(targets, masks, strict=True))
        step = Step(
            self.name,
            options_dict(self.options),
            step_versions("numpy", "onnx-ir"),
            (f"{zeros} of {size} prunable weights are zero", *notes),
        )
        return model.with_step(graph, step)

    def _choose(self, model: Model) -> tuple[list[_Target], list[np.ndarray], tuple[str, ...]]:
        """Prunable weights, for each the mask of what becomes zero, and notes."""
        targets, notes = _targets(model, keep_first=self.options.keep_first)
        magnitudes = [np.abs(t.array.astype(np.float64)).reshape(-1) for t in targets]
        wanted = round(self.options.sparsity * sum(m.size for m in magnitudes))
        if self.options.scope == "global":
            flat = _smallest(np.concatenate(magnitudes), wanted)
            parts = np.split(flat, np.cumsum([m.size for m in magnitudes])[:-1])
        else:
            counts = _shares([m.size for m in magnitudes], self.options.sparsity, wanted)
            parts = [_smallest(m, count) for m, count in zip(magnitudes, counts, strict=True)]
        masks = [part.reshape(t.array.shape) for part, t in zip(parts, targets, strict=True)]
        zeros = sum(_zeros(t.array) for t in targets)
        if zeros > wanted:
            notes.append(f"{zeros} weights were zero before, more than the {wanted} asked for; all stay zero")
        emptied = [t.name for t, m in zip(targets, masks, strict=True) if m.all()]
        if emptied:
            notes.append(
                f"all weights are zero in {', '.join(emptied)}: its output no longer depends on its input"
            )
        return targets, masks, (*notes, *_NOTES)


def _targets(model: Model, *, keep_first: bool) -> tuple[list[_Target], list[str]]:
    users: dict[str, list[str]] = {}
    values: dict[str, ir.Value] = {}
    excluded: set[str] = set()
    quantised: list[str] = []
    first = keep_first
    for node in model.ir.graph:
        if node.op_type not in PRUNED or node.domain != "":
            continue
        places = (1, 0) if node.op_type == "MatMul" else (1,)
        for place in places:
            value, decoded = _stored(node.inputs[place])
            if decoded:
                quantised.append(str(node.name))
            if value is None or value.shape is None or len(value.shape) < 2:
                continue
            name = str(value.name)
            users.setdefault(name, []).append(str(node.name))
            values[name] = value
            if first and node.op_type == "Conv":
                excluded.add(name)
        if node.op_type == "Conv":
            first = False
    targets = [
        _Target(values[name], tuple(users[name]), _array(values[name]))
        for name in values
        if name not in excluded
    ]
    if not any(t.array.size for t in targets):
        raise _nothing_left(model.name, quantised, excluded)
    notes = [f"the weights of {users[name][0]} (first convolution) stay" for name in excluded]
    notes += [f"{len(quantised)} quantised layers stay as they are"] if quantised else []
    return targets, notes


def _nothing_left(name: str, quantised: list[str], excluded: set[str]) -> UnsupportedError:
    if quantised:
        return UnsupportedError(
            f"{name} has no float weights to prune: {quantised[0]!r} is quantised", "prune before quantising"
        )
    if excluded:
        return UnsupportedError(
            f"{name} has only its first convolution to prune, which is kept", "use magnitude:keep_first=false"
        )
    return UnsupportedError(f"{name} has no weights to prune", f"pruned are {', '.join(PRUNED)}")


def _stored(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """The float initializer behind ``value`` if only its layout is changed on the way; whether it is quantised."""
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None:
            return None, False
        if node.op_type == "DequantizeLinear":
            source = node.inputs[0]
            return None, source is not None and source.const_value is not None
        if node.op_type not in _LAYOUT:
            return None, False
        value = node.inputs[0]
    if value is None or value.is_graph_input() or value.dtype not in _FLOATS:
        return None, False
    return value, False


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    array = value.const_value.numpy()
    finite = np.isfinite(array)
    if not finite.all():
        raise ModelError(
            f"tensor {value.name!r} has {int((~finite).sum())} values of {array.size} that are NaN or infinite",
            "train it again",
        )
    return array


def _smallest(magnitudes: np.ndarray, count: int) -> np.ndarray:
    """Mask of exactly ``count`` of the smallest values; of equal ones the first."""
    mask = np.zeros(magnitudes.shape, bool)
    if count == 0:
        return mask
    limit = np.partition(magnitudes, count - 1)[count - 1]
    mask = magnitudes < limit
    level = np.flatnonzero(magnitudes == limit)
    mask[level[: count - int(mask.sum())]] = True
    return mask


def _shares(sizes: list[int], sparsity: float, total: int) -> list[int]:
    """``total`` split over the layers in proportion to their size, by largest remainder."""
    exact = [sparsity * size for size in sizes]
    counts = [min(int(e), size) for e, size in zip(exact, sizes, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts


def _zeros(array: np.ndarray) -> int:
    return int((array == 0).sum())


def _share(zeros: int, size: int) -> str:
    return f"sparsity {zeros / size:.3f} ({zeros} of {size})"


def _fraction(targets: list[_Target], zeros: list[np.ndarray]) -> Figure:
    size = sum(t.array.size for t in targets)
    return Figure(
        sum(int(z.sum()) for z in zeros) / size,
        "fraction",
        Source.ESTIMATED,
        n=size,
        note="of the prunable weights",
    )
