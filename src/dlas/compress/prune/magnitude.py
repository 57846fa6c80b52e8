"""Unstructured pruning: the weights nearest to zero become zero, wherever they are.

Han et al. 2015, "Learning both weights and connections for efficient neural networks"; with ``threshold``, a layer
loses what is smaller than so many of its standard deviations, as there. With ``steps`` and
``finetune_epochs`` the sparsity rises along a cubic curve (Zhu and Gupta 2017, arXiv:1710.01878) and the network is
trained after each step, zeros kept at zero. Without training linear in the number of weights. The file shrinks only
under compression or in a sparse format, and dense kernels run no faster: use ``channel`` where time matters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.core.errors import DataError, ModelError, UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.graph.model import Model, Step, step_versions

PRUNED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LAYOUT = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Cast")
_CSR = "float32 values, 16-bit columns where they suffice, 32-bit row pointers"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_NOTES = (
    "dense kernels run no faster on zeros; a runtime with sparse kernels gains from about 70-80 % sparsity",
    "CSR takes fewer bytes than dense storage only above 50 % sparsity with columns of 32 bits, a third with 16 bits",
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
    threshold: float = option(
        0.0,
        "zero what is below so many standard deviations of its layer; in place of sparsity, 0 is off",
        low=0.0,
    )
    steps: int = option(1, "steps in which the sparsity rises, along a cubic curve", low=1)
    finetune_epochs: int = option(0, "epochs of training after each step", low=0)
    finetune_rows: int = option(0, "training rows per epoch; 0 uses all", low=0)
    lr: float = option(0.01, "learning rate of the training", low=0.0)
    batch_size: int = option(128, "batch size of the training", low=1)
    threads: int = option(2, "threads of torch", low=1)
    seed: int = option(0, "seed of the training", low=0)


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
    """Zero the smallest weights of convolutions and matrix products; biases and batch norms are left alone.

    ``needs_data`` is False for the family member; an instance says by :attr:`wants_data` whether its options need rows.
    """

    name = "magnitude"
    summary = "Unstructured pruning: the weights nearest to zero become zero"
    Options = Options
    options: Options

    @property
    def wants_data(self) -> bool:
        """Whether ``apply`` needs training rows with these options."""
        return self.options.finetune_epochs > 0

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """Sparsity of every prunable weight before and after; needs no rows, and sees no training in between."""
        targets, masks, notes = self._choose(model)
        changes = []
        after = [np.where(mask, 0, t.array) for t, mask in zip(targets, masks, strict=True)]
        for target, array in zip(targets, after, strict=True):
            size = array.size
            if _zeros(array) != _zeros(target.array):
                before = _share(_zeros(target.array), size)
                changes.append(Change(target.name, "weights to zero", before, _share(_zeros(array), size)))
        expected = {
            "sparsity_before": _fraction([t.array for t in targets], Source.ESTIMATED),
            "sparsity": _fraction(after, Source.ESTIMATED),
            "dense_bytes": Figure(
                4 * sum(a.size for a in after), "bytes", Source.ESTIMATED, note="prunable weights in float32"
            ),
            "csr_bytes": Figure(csr_bytes(after), "bytes", Source.ESTIMATED, note=_CSR),
        }
        if self.options.steps > 1:
            rising = ", ".join(f"{self._share(k):.3f}" for k in range(1, self.options.steps + 1))
            notes = (f"in {self.options.steps} steps, at these shares of the aim: {rising}", *notes)
        return Plan(self.spelled(), tuple(changes), expected, notes)

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The network with zeros in place of its smallest weights; see :meth:`Method.apply`.

        Raises:
            UnsupportedError: The network has no float weights that may be pruned; says why.
            ModelError: A weight is NaN or infinite.
            DataError: Training is asked for and no rows were given.
            DivergedError: The loss became NaN.
        """
        options = self.options
        if self.wants_data and data is None:
            raise DataError(
                f"{self.spelled()} needs training rows and none were given",
                "pass a data set (`--data D`), or leave out finetune_epochs",
            )
        tell = progress or (lambda fraction, text: None)
        current, told = model, []
        targets: list[_Target] = []
        notes: dict[str, None] = {}
        steps = options.steps if self.wants_data else 1  # without training in between they come to the same
        for step in range(1, steps + 1):
            targets, masks, found = self._choose(current, self._share(step) if steps > 1 else 1.0)
            notes.update(dict.fromkeys(found))
            current = replace(current, ir=_masked(current, targets, masks), torch_module=None)
            if data is not None and self.wants_data:
                current, loss = self._trained(current, targets, data, step, steps, tell)
                told.append(f"{loss:.4g}")
            else:
                tell(1.0, f"pruned {len(targets)} weights")
        arrays = [current.initializers[str(t.value.name)] for t in targets]
        size, zeros = sum(a.size for a in arrays), sum(_zeros(a) for a in arrays)
        stored = csr_bytes(arrays)
        said = [
            f"{zeros} of {size} prunable weights are zero",
            f"CSR with indices: {stored} bytes, {8 * stored / size:.2f} bits per weight; dense: {4 * size} bytes",
        ]
        said += [f"mean loss after each step: {', '.join(told)}"] if told else []
        record = {**options_dict(options), "csr_bytes": stored, "dense_bytes": 4 * size}
        record["data"] = data.hash if data is not None and self.wants_data else ""
        history = Step(self.name, record, step_versions("numpy", "onnx-ir"), (*said, *notes))
        return model.with_step(current.ir, history)

    def _trained(
        self, model: Model, targets: list[_Target], data: Dataset, step: int, steps: int, tell: Progress
    ) -> tuple[Model, float]:
        """The network after the training of one step, zeros kept, and the mean loss of its last epoch."""
        from dlas.compress.training import fine_tune

        options = self.options
        masks = {name: model.initializers[name] != 0 for name in (str(t.value.name) for t in targets)}
        count = min(options.finetune_rows or len(data), len(data))
        part = data if count == len(data) else data.take(np.arange(count) * len(data) // count)
        trained = fine_tune(
            model,
            part,
            epochs=options.finetune_epochs,
            lr=options.lr,
            batch_size=options.batch_size,
            seed=options.seed + step,
            masks=masks,
            threads=options.threads,
            progress=lambda f, text: tell((step - 1 + f) / steps, f"step {step} of {steps}: {text}"),
        )
        loss = float(trained.history[-1].notes[0].rsplit(" ", 1)[-1])
        tell(step / steps, f"step {step} of {steps}: loss {loss:.4g}")
        return replace(trained, history=model.history), loss

    def _share(self, step: int) -> float:
        """Share of the aim at a step: ``1 - (1 - k / K)^3``."""
        return 1 - (1 - step / self.options.steps) ** 3

    def _choose(
        self, model: Model, share: float = 1.0
    ) -> tuple[list[_Target], list[np.ndarray], tuple[str, ...]]:
        """Prunable weights, for each the mask of what becomes zero at a share of the aim, and notes."""
        targets, notes = _targets(model, keep_first=self.options.keep_first)
        magnitudes = [np.abs(t.array.astype(np.float64)).reshape(-1) for t in targets]
        sparsity = share * self.options.sparsity
        wanted = round(sparsity * sum(m.size for m in magnitudes))
        if self.options.threshold:
            limits = [share * self.options.threshold * t.array.std(dtype=np.float64) for t in targets]
            parts = [m < limit for m, limit in zip(magnitudes, limits, strict=True)]
            wanted = sum(m.size for m in magnitudes)
        elif self.options.scope == "global":
            flat = _smallest(np.concatenate(magnitudes), wanted)
            parts = np.split(flat, np.cumsum([m.size for m in magnitudes])[:-1])
        else:
            counts = _shares([m.size for m in magnitudes], sparsity, wanted)
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


def csr_bytes(weights: list[np.ndarray]) -> int:
    """Bytes of weights in compressed sparse rows, indices included.

    Values of 32 bits, columns of 16 bits where a row has at most 65,536 of them (else 32), row pointers of 32 bits; a
    row is what the first axis counts.
    """
    total = 0
    for array in weights:
        rows = array.shape[0]
        column = 2 if array.size // max(rows, 1) <= 1 << 16 else 4
        total += (4 + column) * (array.size - _zeros(array)) + 4 * (rows + 1)
    return total


def _masked(model: Model, targets: list[_Target], masks: list[np.ndarray]) -> ir.Model:
    graph = model.editable()
    for target, mask in zip(targets, masks, strict=True):
        name = str(target.value.name)
        kept = np.where(mask, target.array.dtype.type(0), target.array)
        graph.graph.initializers[name].const_value = ir.tensor(kept, name=name)
    return graph


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


def _fraction(arrays: list[np.ndarray], source: Source) -> Figure:
    size = sum(a.size for a in arrays)
    zeros = sum(_zeros(a) for a in arrays)
    return Figure(zeros / size, "fraction", source, n=size, note="of the prunable weights")
