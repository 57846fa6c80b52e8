"""Training of a network as it is: what a step before took away is learned back, or other data are got used to.

Stochastic gradient descent on labelled rows (``dlas.compress.training``). Also the way from an architecture with random
weights to a network of one's own: ``dlas compress vit finetune --epochs 30 --data D``. Zeros of pruned weights fill
again unless ``keep_zeros`` is given; quantised weights are fixed, so train before quantising.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.training import AUGMENTATIONS, OPTIMIZERS, fine_tune
from dlas.core.errors import DataError
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.data.splits import sample
from dlas.graph.model import Model


@dataclass(frozen=True)
class Options:
    """Options of ``finetune``."""

    epochs: int = option(3, "passes over the rows", low=1)
    rows: int = option(0, "training rows, as many of each class; 0 uses all", low=0)
    lr: float = option(0.02, "peak learning rate", low=0.0)
    batch_size: int = option(128, "rows per step", low=1)
    optimizer: Literal["sgd", "adamw"] = option("sgd", "how weights are stepped", choices=OPTIMIZERS)
    weight_decay: float = option(5e-4, "penalty on large weights", low=0.0)
    augment: Literal["none", "flip", "shift", "flip-shift"] = option(
        "flip", "how images are changed while training", choices=AUGMENTATIONS
    )
    keep_zeros: bool = option(False, "weights that are exactly zero stay zero")
    seed: int = option(0, "seed of rows, order and augmentation", low=0)


@methods.register("finetune")
class Finetune(Method):
    """Train all weights of the network on labelled rows."""

    name = "finetune"
    summary = "Training: adapt all weights to labelled rows, or train an architecture from random weights"
    needs_data = True
    Options = Options
    options: Options

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """Which tensors are trained; needs no rows."""
        from dlas.graph.torch_module import to_torch

        learned = list(to_torch(model).named_parameters())
        changes = tuple(Change(name, "train", "", f"{w.numel()} numbers") for name, w in learned)
        return Plan(self.spelled(), changes)

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The trained network; see :meth:`Method.apply`.

        Raises:
            DataError: No rows, no labels, or labels beyond the network's classes.
            UnsupportedError: An operator that torch cannot train.
            DivergedError: The loss became NaN or infinite.
        """
        options = self.options
        if data is None:
            raise DataError(
                f"{self.spelled()} needs training rows and none were given", "pass a data set (`--data D`)"
            )
        masks = {n: w != 0 for n, w in model.initializers.items() if w.ndim > 1 and w.dtype == np.float32}
        trained = fine_tune(
            model,
            sample(data, options.rows, options.seed) if options.rows else data,
            epochs=options.epochs,
            lr=options.lr,
            batch_size=options.batch_size,
            optimizer=options.optimizer,
            weight_decay=options.weight_decay,
            augment=options.augment,
            masks=masks if options.keep_zeros else None,
            seed=options.seed,
            progress=progress,
        )
        last = trained.history[-1]
        step = replace(last, action=self.name, options={**options_dict(options), **last.options})
        return replace(trained, history=(*trained.history[:-1], step))
