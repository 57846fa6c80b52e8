"""Train an architecture of dlas from random weights into a Model that says how it was made.

The one way networks come about that nobody published: ``digits-cnn`` ships trained like this, others are trained once
by their recipe and kept where the user wants them.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np

from dlas.compress.training import Progress, Schedule, train
from dlas.core.errors import DataError
from dlas.data.dataset import Dataset
from dlas.data.preprocess import prepare
from dlas.graph.model import Model, Step, step_versions
from dlas.models.architecture import architecture_for

if TYPE_CHECKING:
    from pathlib import Path

    from dlas.compress.training import LossHook


def from_scratch(
    architecture: str,
    data: Dataset,
    schedule: Schedule,
    *,
    judged: Dataset | None = None,
    name: str = "",
    loss: LossHook | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Model:
    """A network trained from the random weights of the schedule's seed.

    Args:
        architecture: As ``name:key=value``.
        data: Labelled training rows.
        schedule: How to train.
        judged: Rows that training never sees; the share of right labels goes into the history.
        name: Name of the Model; default: that of the architecture.
        loss: See :func:`~dlas.compress.training.train`.
        progress: Told how far it is.
        checkpoint: File to go on from after a kill; see :func:`~dlas.compress.training.train`.

    Raises:
        OptionError: An option of the architecture does not accept the value.
        DataError: No labels, labels beyond the network's classes, or rows that do not fit it.
        DlasError: The loss became NaN or infinite.
    """
    import torch

    from dlas.graph.torch_export import from_module

    member = architecture_for(architecture)
    for rows in (data, *([judged] if judged is not None else [])):
        _check_labels(rows, member.classes)
    assert data.labels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(schedule.seed)
        module = member.build()
    losses = train(
        module,
        prepare(data, member.preprocessing),
        np.asarray(data.labels, np.int64),
        schedule,
        loss=loss,
        progress=progress,
        checkpoint=checkpoint,
    )
    model = from_module(
        module,
        np.zeros((2, *member.input_shape), np.float32),
        name or member.name,
        member.preprocessing,
        source={"architecture": member.spelled(), "data": f"{data.name} ({data.hash[:16]})"},
    )
    notes = [f"mean loss of the last epoch: {losses[-1]:.4g}"]
    options = {**asdict(schedule), "architecture": member.spelled(), "data": data.hash, "rows": len(data)}
    if judged is not None:
        right = accuracy(model, judged)
        options |= {"test_data": judged.hash, "test_rows": len(judged), "test_top1": right}
        notes.append(f"top-1 on {len(judged)} rows of {judged.name} that training never saw: {right:.4f}")
    step = Step("train", options, step_versions("torch"), tuple(notes))
    return replace(model, history=(step, *model.history))


def accuracy(model: Model, data: Dataset) -> float:
    """Share of rows whose label has the highest score; rows are decoded and run a thousand at a time."""
    from dlas.graph.reference import predict

    assert data.labels is not None
    labels = np.asarray(data.labels)
    right = 0
    for start in range(0, len(data), 1000):
        rows = np.arange(start, min(start + 1000, len(data)))
        right += int((predict(model, prepare(data.take(rows), model)).argmax(1) == labels[rows]).sum())
    return right / len(data)


def _check_labels(data: Dataset, classes: int) -> None:
    if len(data) == 0 or data.labels is None:
        raise DataError(f"{data.name} has no labelled rows", "training needs rows with labels")
    labels = np.asarray(data.labels)
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels of {data.name} go from {labels.min()} to {labels.max()}, the network has {classes} outputs",
            "give the architecture as many classes as the data have (`:classes=N`)",
        )
