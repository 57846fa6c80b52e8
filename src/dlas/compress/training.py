"""The one training loop of the package: stochastic gradient descent on cross-entropy, repeatable for a seed.

Used to fine-tune a Model after compression and to train small networks from scratch. Momentum SGD with a cosine
schedule (Loshchilov and Hutter 2017, arXiv:1608.03983), or AdamW (the same, 2019, arXiv:1711.05101), without which
transformers hardly learn; gradients are clipped by norm, because a graph whose batch normalisation is folded has
nothing left that would tame a large step.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlas.compress.checkpoint import Checkpoint, next_checkpoint
from dlas.compress.losses import cross_entropy
from dlas.core.environment import cpu_flags
from dlas.core.errors import DataError, DlasError, OptionError
from dlas.core.provenance import made_with
from dlas.data.dataset import Dataset
from dlas.graph.model import Model, Step, step_versions

if TYPE_CHECKING:
    import torch
    from torch import nn

Progress = Callable[[float, str], None]
"""Called with the fraction done (0..1) and what is being done."""

LossHook = Callable[[Any, Any, Any], Any]
"""Called with (outputs, labels, inputs) of a batch, as tensors; returns the loss to descend."""

StepHook = Callable[[float], None]
"""Called before each step with the fraction of the steps done (0 .. below 1): for what changes as training goes on."""

AUGMENTATIONS = ("none", "flip", "shift", "flip-shift")
PRECISIONS = ("auto", "float32", "bfloat16")
OPTIMIZERS = ("sgd", "adamw")
DECAYS = ("cosine", "none")


class DivergedError(DlasError):
    """The loss, or a weight, became NaN or infinite: what was trained is of no use."""


@dataclass(frozen=True)
class Schedule:
    """How to train.

    Attributes:
        epochs: Passes over the rows.
        lr: Peak learning rate; it rises over the first 5 % of the steps and falls to zero along a cosine (``decay``).
        batch_size: Rows per step.
        seed: Seed of order and augmentation.
        momentum: Momentum of SGD (Nesterov), or the decay of AdamW's mean of gradients.
        weight_decay: L2 penalty on weights of two or more dimensions; with AdamW the share of them that is taken off
            at each step, times the learning rate.
        augment: ``none``, ``flip`` (left-right), ``shift`` (by up to an eighth of the side) or ``flip-shift``;
            for ``(N, C, H, W)`` inputs.
        clip_norm: Largest norm of the gradient of one step.
        threads: Threads of torch; the result is repeatable for one number of threads.
        precision: Of products and convolutions; weights, their updates and statistics stay float32. ``auto`` is
            bfloat16 where the processor multiplies it, else float32. A loss that differentiates twice needs float32.
        decay: ``cosine``, or ``none`` for a learning rate that stays what it is from the first step on.
        optimizer: ``sgd`` or ``adamw``.
    """

    epochs: int
    lr: float
    batch_size: int = 128
    seed: int = 0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = "none"
    clip_norm: float = 1.0
    threads: int = 2
    precision: str = "auto"
    decay: str = "cosine"
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("threads", 1)):
            if getattr(self, name) < low:
                raise OptionError(f"training: {name}", getattr(self, name), f"a number >= {low}")
        for name in ("lr", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(f"training: {name}", getattr(self, name), "a positive number")
        if not 0 <= self.momentum < 1:
            raise OptionError("training: momentum", self.momentum, "a number >= 0 and < 1")
        if not 0 <= self.weight_decay < math.inf:
            raise OptionError("training: weight_decay", self.weight_decay, "a number >= 0")
        if self.augment not in AUGMENTATIONS:
            raise OptionError("training: augment", self.augment, "one of " + ", ".join(AUGMENTATIONS))
        if self.precision not in PRECISIONS:
            raise OptionError("training: precision", self.precision, "one of " + ", ".join(PRECISIONS))
        if self.optimizer not in OPTIMIZERS:
            raise OptionError("training: optimizer", self.optimizer, "one of " + ", ".join(OPTIMIZERS))
        if self.decay not in DECAYS:
            raise OptionError("training: decay", self.decay, "one of " + ", ".join(DECAYS))

    @property
    def narrow(self) -> bool:
        """Whether products are computed in bfloat16 on this machine."""
        native = {"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_flags())
        return self.precision == "bfloat16" or (self.precision == "auto" and bool(native))

    @property
    def facts(self) -> dict[str, Any]:
        """Every setting, with the precision that this machine computes in instead of ``auto``."""
        return {**asdict(self), "precision": "bfloat16" if self.narrow else "float32"}


def fine_tune(
    model: Model,
    data: Dataset,
    *,
    epochs: int,
    lr: float = 0.03,
    batch_size: int = 128,
    seed: int = 0,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    clip_norm: float = 0.5,
    augment: str = "flip",
    optimizer: str = "sgd",
    masks: Mapping[str, np.ndarray] | None = None,
    loss: LossHook | None = None,
    prepared: Callable[[Any], object] | None = None,
    threads: int = 2,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Model:
    """Train the weights of a Model on labelled rows, starting from what they are.

    Args:
        model: The network; its first output is taken as logits ``(N, classes)`` (probabilities are recognised).
        data: Training rows with labels, never the rows the network will be judged on.
        epochs: Passes over the rows; 0 returns the Model as it is.
        lr: Peak learning rate.
        batch_size: Rows per step.
        seed: Seed of order and augmentation.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty on weights.
        clip_norm: Largest norm of the gradient of one step.
        augment: ``none``, ``flip``, ``shift`` or ``flip-shift``; left out for inputs that are not images.
        optimizer: ``sgd`` or ``adamw``.
        masks: Initializer name to an array of its shape; where it is zero, the weight is set to zero and stays so.
        loss: Loss in place of the cross-entropy.
        prepared: Given the module before it is trained, to change its weights and values as they are read
            (``on_weight``, ``on_value``); what comes back are the weights behind such changes.
        threads: Threads of torch.
        progress: Told how far it is.
        checkpoint: File to go on from after a kill; see :func:`train`.

    Returns:
        The same graph with other weights, and one more line of history.

    Raises:
        DataError: No labels, or labels beyond the network's classes.
        UnsupportedError: An operator that torch cannot train.
        DivergedError: The loss became NaN or infinite.
    """
    if epochs == 0:
        return model
    from dlas.data.preprocess import prepare
    from dlas.graph.torch_module import to_torch, weights_back

    labels = _labels(data)
    module = to_torch(model)
    if prepared is not None:
        prepared(module)
    inputs = prepare(data, model)
    images = inputs.ndim == 4 and (model.preprocessing is None or model.preprocessing.layout == "NCHW")
    augment = augment if images else "none"
    schedule = Schedule(
        epochs, lr, batch_size, seed, momentum, weight_decay, augment, clip_norm, threads, optimizer=optimizer
    )
    losses = train(
        module,
        inputs,
        labels,
        schedule,
        masks=_by_tensor(module, masks),
        loss=loss,
        progress=progress,
        checkpoint=checkpoint,
    )
    step = Step(
        "fine-tune",
        {**schedule.facts, "masked": len(masks or {}), "rows": len(data), "data": data.name},
        step_versions("torch"),
        (f"mean loss of the epochs: {', '.join(f'{v:.4g}' for v in losses)}",),
    )
    return model.with_step(weights_back(model, module), step)


def train(
    module: nn.Module,
    inputs: np.ndarray,
    labels: np.ndarray,
    schedule: Schedule,
    *,
    masks: Mapping[torch.Tensor, np.ndarray] | None = None,
    loss: LossHook | None = None,
    frozen: Collection[torch.Tensor] = (),
    each_step: StepHook | None = None,
    input_gradients: bool = False,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> list[float]:
    """Train a module in place; it is in eval mode afterwards.

    Args:
        module: Network whose first output is ``(N, classes)``.
        inputs: ``(N, ...)`` array as the network expects it.
        labels: ``(N,) int64`` class indices.
        schedule: How to train.
        masks: Parameter to an array of its shape; zeros are kept at zero.
        loss: Loss in place of the cross-entropy; to be resumed it must depend on nothing that training changes but
            the weights.
        frozen: Parameters that stay as they are; where all that a layer reads is frozen, no gradient is computed.
        each_step: Told how far training is before each step.
        input_gradients: Whether the loss differentiates by the inputs of the batch.
        progress: Told how far it is, and where it was resumed.
        checkpoint: File to save the state in now and then, and to go on from after a kill: with the same number of
            threads the weights are those of a run that was never stopped. The caller removes it once the result is
            safe. Default: what :func:`~dlas.compress.checkpoint.checkpoints_in` provides.

    Returns:
        Mean loss of each epoch.

    Raises:
        DivergedError: The loss became NaN or infinite; the weights are then of no use.
    """
    if len(inputs) != len(labels):
        raise DataError(f"{len(inputs)} inputs but {len(labels)} labels")
    place = checkpoint or next_checkpoint()
    with _repeatable(schedule.threads, schedule.seed):
        thawed = [p for p in frozen if p.requires_grad]
        for parameter in thawed:
            parameter.requires_grad_(False)
        module.train()
        try:
            run = _Run(module, inputs, labels, schedule, masks or {}, loss, each_step, input_gradients)
            saved = Checkpoint(place, run.identity()) if place is not None else None
            return run.to_the_end(saved, progress or (lambda fraction, text: None))
        finally:
            module.eval()
            for parameter in thawed:
                parameter.requires_grad_(True)


class _Run:
    """One training and where it is: what is saved and what is not."""

    def __init__(
        self,
        module: nn.Module,
        inputs: np.ndarray,
        labels: np.ndarray,
        schedule: Schedule,
        masks: Mapping[torch.Tensor, np.ndarray],
        loss: LossHook | None,
        each_step: StepHook | None,
        input_gradients: bool,
    ) -> None:
        import torch

        self.module, self.inputs, self.labels, self.schedule = module, inputs, labels, schedule
        self.each_step, self.input_gradients = each_step, input_gradients
        self.kept = [(p, torch.from_numpy(np.asarray(m) != 0)) for p, m in masks.items()]
        self.loss = loss or cross_entropy
        self.optimizer = _optimizer(module, schedule)
        self.steps = schedule.epochs * math.ceil(len(inputs) / schedule.batch_size)
        self.random = np.random.default_rng(schedule.seed)
        self.order = np.zeros(0, np.int64)  # of the rows in this epoch
        self.done = 0
        self.total = 0.0  # loss over the rows of this epoch so far
        self.means: list[float] = []

    def to_the_end(self, saved: Checkpoint | None, progress: Progress) -> list[float]:
        """Do what is left to do; mean loss of each epoch."""
        state = saved.read() if saved is not None else None
        if state is not None:
            self.restore(state)
            progress(self.done / self.steps, f"resumed at step {self.done} of {self.steps}")
        else:
            _apply(self.kept)
        while self.done < self.steps:
            self.advance()
            progress(self.done / self.steps, f"epoch {self.epoch} of {self.schedule.epochs}")
            # The last one says that there is nothing left to do, where a step trains several times.
            if saved is not None and (saved.due or (saved.written and self.done == self.steps)):
                saved.write(self.state())
        return self.means

    @property
    def epoch(self) -> int:
        """Epoch of the last step, from 1."""
        return -(-self.done * self.schedule.epochs // self.steps)

    def advance(self) -> None:
        """One step: a batch forward and back."""
        import torch

        schedule = self.schedule
        start = self.done % (self.steps // schedule.epochs) * schedule.batch_size
        if start == 0:
            self.order, self.total = self.random.permutation(len(self.inputs)), 0.0
        rows = self.order[start : start + schedule.batch_size]
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.lr * (
                _factor(self.done, self.steps) if schedule.decay == "cosine" else 1.0
            )
        if self.each_step is not None:
            self.each_step(self.done / self.steps)
        x = torch.from_numpy(_augmented(self.random, self.inputs[rows], schedule.augment))
        if x.dim() == 4:  # convolutions run a quarter faster
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_(self.input_gradients)
        y = torch.from_numpy(self.labels[rows])
        with torch.autocast("cpu", torch.bfloat16, enabled=schedule.narrow):
            answer = self.module(x)
        value = self.loss(answer[0] if isinstance(answer, tuple) else answer, y, x)
        self.done += 1
        if not math.isfinite(value.item()):
            raise DivergedError(
                f"training diverged in epoch {self.epoch}: the loss is {value.item()}",
                f"use a smaller learning rate than {schedule.lr:g}",
            )
        self.optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), schedule.clip_norm)
        self.optimizer.step()
        _apply(self.kept)
        self.total += value.item() * len(rows)
        if start + len(rows) == len(self.inputs):
            self.means.append(self.total / len(self.inputs))

    def identity(self) -> str:
        """Hash of everything the result depends on, apart from what a loss of the caller looks at."""
        digest = hashlib.sha256()
        loss = getattr(self.loss, "__qualname__", type(self.loss).__name__)
        learned = [name for name, p in self.module.named_parameters() if p.requires_grad]
        facts = [self.schedule.facts, loss, learned, self.input_gradients, made_with()]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        tensors = {**self.tensors(), **{f"mask {i}": mask for i, (_, mask) in enumerate(self.kept)}}
        arrays = {name: t.detach().numpy() for name, t in tensors.items()}
        for name, array in {**arrays, "inputs": self.inputs, "labels": self.labels}.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything the module holds, whether it is learned or counted."""
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def state(self) -> dict[str, Any]:
        """All that :meth:`restore` needs to go on with the same numbers."""
        import torch

        return {
            "tensors": {name: tensor.detach() for name, tensor in self.tensors().items()},
            "optimizer": self.optimizer.state_dict(),
            "torch random": torch.get_rng_state(),
            "random": json.dumps(self.random.bit_generator.state),
            "order": torch.from_numpy(self.order),
            "done": self.done,
            "total": self.total,
            "means": list(self.means),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where :meth:`state` was taken; it belongs to the same training, which its identity ensures."""
        import torch

        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(state["tensors"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch random"])
        self.random.bit_generator.state = json.loads(state["random"])
        self.order = state["order"].numpy()
        self.done, self.total, self.means = state["done"], state["total"], list(state["means"])


def _optimizer(module: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    import torch

    learned = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in learned if p.dim() > 1]
    plain = [p for p in learned if p.dim() <= 1]
    if not decayed and not plain:
        raise DlasError(
            "the network has no weights to train", "quantised weights are fixed: train before quantising"
        )
    groups = [
        {"params": decayed, "weight_decay": schedule.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.lr, betas=(schedule.momentum, 0.999))
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum, nesterov=schedule.momentum > 0)


def _labels(data: Dataset) -> np.ndarray:
    if data.labels is None:
        raise DataError(f"{data.name} has no labels to train on", "use a data set with labels")
    return np.asarray(data.labels, np.int64)


def _by_tensor(module: Any, masks: Mapping[str, np.ndarray] | None) -> dict[torch.Tensor, np.ndarray]:
    weights = module.weights()
    found = {}
    for name, mask in (masks or {}).items():
        if name not in weights:
            raise DlasError(f"a mask is given for {name!r}, which the network does not have")
        if tuple(weights[name].shape) != np.shape(mask):
            raise DlasError(
                f"the mask of {name!r} is {list(np.shape(mask))}, the weight {list(weights[name].shape)}"
            )
        found[weights[name]] = mask
    return found


def _factor(step: int, steps: int) -> float:
    """Cosine with a short linear rise."""
    rise = max(1, steps // 20)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _augmented(random: np.random.Generator, batch: np.ndarray, how: str) -> np.ndarray:
    """A changed copy of ``(N, C, H, W)`` images; what a shift uncovers repeats the edge."""
    if "flip" in how:
        chosen = random.random(len(batch)) < 0.5
        batch = np.where(chosen[:, None, None, None], batch[..., ::-1], batch)
    if "shift" in how:
        _, _, height, width = batch.shape
        down, right = max(1, height // 8), max(1, width // 8)
        padded = np.pad(batch, ((0, 0), (0, 0), (down, down), (right, right)), mode="edge")
        tops = random.integers(0, 2 * down + 1, len(batch))
        lefts = random.integers(0, 2 * right + 1, len(batch))
        batch = np.stack(
            [p[:, t : t + height, s : s + width] for p, t, s in zip(padded, tops, lefts, strict=True)]
        )
    return np.ascontiguousarray(batch)


def _apply(kept: list[tuple[Any, Any]]) -> None:
    import torch

    with torch.no_grad():
        for weight, mask in kept:
            weight.mul_(mask)


@contextmanager
def _repeatable(threads: int, seed: int) -> Iterator[None]:
    """A fixed number of threads and seed, and torch's own state back afterwards."""
    import torch

    before, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(state)
