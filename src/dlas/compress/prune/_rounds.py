"""What pruning methods that train between their steps share: rows, judgement, training of a graph, time, resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from dlas.compress.checkpoint import Checkpoint, checkpoints_in, next_checkpoint
from dlas.compress.training import DivergedError, LossHook, Schedule, train
from dlas.core.cache import key_of
from dlas.core.errors import DataError, StorageError
from dlas.core.files import write_atomic
from dlas.core.options import options_dict
from dlas.core.provenance import made_with
from dlas.data.dataset import Dataset
from dlas.graph.model import Model

if TYPE_CHECKING:
    from torch import nn

LEAST_VALIDATION = 20  # one row of fewer than these would move the accuracy by more than 5 points
LEAST_TRAINING = 32
CLIP_NORM = (
    10.0  # of pruned networks that learn well it is about 6, so this holds back nothing but an outlier
)


@dataclass(frozen=True)
class Rows:
    """Prepared rows.

    Attributes:
        inputs: ``(N, ...)`` as the network takes them.
        labels: ``(N,) int64``.
        images: Whether they are ``(N, C, H, W)`` images, which may be flipped.
    """

    inputs: np.ndarray
    labels: np.ndarray
    images: bool = False

    def __len__(self) -> int:
        return len(self.inputs)

    def part(self, share: float, least: int, seed: int) -> Rows:
        """A share of the rows drawn at random, but ``least`` of them where there are so many."""
        count = min(len(self), max(least, math.ceil(share * len(self))))
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        return replace(self, inputs=self.inputs[chosen], labels=self.labels[chosen])


def rows_of(
    model: Model, data: Dataset | None, owner: str, *, validation: float, rows: int, seed: int
) -> tuple[Rows, Rows]:
    """Training and validation rows: a split of ``data`` by content, so that equal samples are on one side.

    Args:
        model: Network they are prepared for.
        data: Labelled training rows.
        owner: Method, for messages.
        validation: Share of the rows that judge.
        rows: At most so many training rows; 0 for all.
        seed: Seed of the draw of ``rows``.

    Raises:
        DataError: No rows, no labels, labels that the network does not have, or too few rows.
    """
    from dlas.data.splits import sample, split

    if data is None:
        raise DataError(f"{owner} needs training rows and none were given", "pass a data set (`--data D`)")
    if data.labels is None:
        raise DataError(f"{data.name} has no labels to train on", "use a data set with labels")
    classes = model.outputs[0].shape[-1]
    if isinstance(classes, int) and not 0 <= int(data.labels.min()) <= int(data.labels.max()) < classes:
        raise DataError(
            f"{data.name} has labels {int(data.labels.min())} to {int(data.labels.max())}, {model.name} has {classes} "
            "outputs",
            "the data set does not belong to this network",
        )
    least = max(math.ceil(LEAST_VALIDATION / validation), math.ceil(LEAST_TRAINING / (1 - validation)))
    few = DataError(
        f"{data.name} has {len(data)} rows; {owner} with validation = {validation:g} needs about {least}, of which "
        f"{LEAST_VALIDATION} judge and the others train",
        "give more rows (`--rows 0` takes all)",
    )
    if len(data) < LEAST_TRAINING + LEAST_VALIDATION:
        raise few
    try:
        parts = split(data, {"train": 1 - validation, "validation": validation}, salt="pruning")
    except DataError:  # one of them came out empty
        raise few from None
    if len(parts["validation"]) < LEAST_VALIDATION or len(parts["train"]) < LEAST_TRAINING:
        raise few
    training = sample(parts["train"], rows, seed) if 0 < rows < len(parts["train"]) else parts["train"]
    return _prepared(model, training), _prepared(model, parts["validation"])


def _prepared(model: Model, data: Dataset) -> Rows:
    from dlas.data.preprocess import prepare

    inputs = prepare(data, model)
    channels_first = model.preprocessing is None or model.preprocessing.layout == "NCHW"
    return Rows(inputs, np.asarray(data.labels, np.int64), inputs.ndim == 4 and channels_first)


def with_graph(model: Model, graph: ir.Model) -> Model:
    """The Model around another graph, without a line of history: for work in between."""
    return replace(model, ir=graph, torch_module=None)


def accuracy(model: Model, rows: Rows, threads: int) -> float:
    """Share of the rows whose label the network gives, in percent."""
    from dlas.graph.reference import predict

    answers = predict(model, rows.inputs, threads=threads).reshape(len(rows), -1)
    return 100 * float(np.mean(answers.argmax(1) == rows.labels))


def trained(
    model: Model,
    rows: Rows,
    schedule: Schedule,
    *,
    frozen: Collection[str] = (),
    loss: LossHook | None = None,
    deadline: Callable[[], bool] = lambda: False,
    watch: Callable[[nn.Module], Callable[[], None]] | None = None,
    checkpoint: Path | None = None,
) -> tuple[Model, float]:
    """A Model with its weights trained, and the mean loss of the last epoch (NaN if it was cut short).

    Zeros among the weights of a convolution or linear layer stay zero: somebody pruned them. Rows beyond whole batches
    are left out (others for each seed): a last batch of six would push the weights about at a rate that does not fall.

    Args:
        model: What to start from.
        rows: Training rows.
        schedule: How.
        frozen: Initializers that stay as they are.
        loss: Loss in place of the cross-entropy.
        deadline: Asked before each step whether to stop there.
        watch: Called with the module; what it returns is called after every step.
        checkpoint: File to go on from after a kill; only without ``watch``.

    Raises:
        DivergedError: The loss or a weight became NaN or infinite.
    """
    from dlas.graph.torch_module import to_torch, weights_back

    module: Any = to_torch(model)
    stored = module.weights()
    after_step = watch(module) if watch is not None else None
    first = True

    def each_step(_: float) -> None:
        nonlocal first
        if after_step is not None and not first:
            after_step()
        first = False
        if deadline():
            raise _OutOfTime

    pruned = {p: a != 0 for p in module.parameters() if p.dim() > 1 and not (a := p.detach().numpy()).all()}
    whole = len(rows) // schedule.batch_size * schedule.batch_size
    if 0 < whole < len(rows):
        drawn = np.random.default_rng(schedule.seed).permutation(len(rows))[:whole]
        rows = replace(rows, inputs=rows.inputs[drawn], labels=rows.labels[drawn])
    held = [stored[name] for name in frozen if name in stored]
    losses = [math.nan]
    try:
        with checkpoints_in(None):
            losses = train(
                module,
                rows.inputs,
                rows.labels,
                schedule if rows.images else replace(schedule, augment="none"),
                masks=pruned,
                loss=loss,
                frozen=held,
                each_step=each_step,
                checkpoint=checkpoint,
            )
        if after_step is not None:
            after_step()
    except _OutOfTime:
        pass
    if not all(bool(p.isfinite().all()) for p in module.parameters()):
        raise DivergedError("training diverged: a weight is NaN or infinite", "use a smaller learning rate")
    return with_graph(model, weights_back(model, module)), losses[-1]


class _OutOfTime(Exception):  # noqa: N818 - no error: the weights are used as they are
    """Stops a training between two steps."""


class Clock:
    """Seconds by phase, within a budget.

    Args:
        budget_s: Seconds that may be spent; may be infinite.
        spent: Seconds by phase that an earlier process spent.
    """

    def __init__(self, budget_s: float = math.inf, spent: dict[str, float] | None = None) -> None:
        self.phases: dict[str, float] = dict(spent or {})
        self._budget_s = budget_s
        self._mark = time.monotonic()
        self._before = sum(self.phases.values())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as ``name``."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - start

    @property
    def left_s(self) -> float:
        """Seconds left of the budget."""
        return self._budget_s - self._before - (time.monotonic() - self._mark)

    def told(self) -> str:
        """The phases in words."""
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.phases.items())


class Trail:
    """What a run leaves behind after each step, to go on from after a kill.

    Args:
        model: What is pruned.
        data: Training rows.
        name: Name of the method.
        options: Its options.
    """

    def __init__(self, model: Model, data: Dataset, name: str, options: Any) -> None:
        self._place = next_checkpoint()
        facts = [model.to_bytes(), data.hash, name, options_dict(options), made_with()]
        self._identity = key_of(*facts) if self._place is not None else ""
        self._file = Checkpoint(self._place, self._identity) if self._place is not None else None

    def read(self, model: Model) -> tuple[Model, dict[str, Any]] | None:
        """The pruned network and the facts of the last step, or None to begin."""
        state = self._file.read() if self._file is not None else None
        if state is None:
            return None
        proto = onnx.ModelProto.FromString(state["network"].numpy().tobytes())
        return with_graph(model, ir.from_proto(proto)), state["facts"]

    def write(self, model: Model, facts: dict[str, Any]) -> None:
        """Keep the network and plain facts."""
        if self._file is None:
            return
        import torch

        content = ir.to_proto(model.ir).SerializeToString(deterministic=True)
        network = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
        self._file.write({"network": network, "facts": facts})

    def training(self, step: int) -> Path | None:
        """File for the training of a step."""
        if self._place is None:
            return None
        return self._place.with_name(f"{self._place.stem}-{self._identity[:12]}-{step:03}.ckpt")

    def done(self, step: int) -> None:
        """Remove the file of a training whose step was written."""
        path = self.training(step)
        if path is not None:
            path.unlink(missing_ok=True)

    def diverged(self, error: DivergedError, last_good: Model, where: str) -> DivergedError:
        """The error to raise in place of ``error``: it says where the last good network is kept, and carries it."""
        if self._place is None:
            kept = "pass a folder for checkpoints to have the network before it kept"
        else:
            path = self._place.with_name(f"{self._place.stem}-last-good.onnx")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, last_good.to_bytes())
                kept = f"the network before it is in {path}"
            except (StorageError, OSError) as failed:  # it must not hide what went wrong first
                kept = f"the network before it could not be kept: {failed}"
        return PruningDivergedError(f"{where}: {error.message}", f"{error.hint}; {kept}", last_good)


class PruningDivergedError(DivergedError):
    """Training failed in the middle of a pruning; ``last_good`` is the network before."""

    def __init__(self, message: str, hint: str, last_good: Model) -> None:
        super().__init__(message, hint)
        self.last_good = last_good
