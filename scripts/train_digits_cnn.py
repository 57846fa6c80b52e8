"""Train the network that dlas ships: ``digits-cnn`` on the digits of scikit-learn.

Run from the repository root: ``python scripts/train_digits_cnn.py``. Takes about a minute on two cores and writes
``src/dlas/models/pretrained/digits-cnn.onnx``, whose metadata say how it was made and how often it is right. The
split is by the hash of each sample, so it is the same wherever the data come from.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from dlas.compress.training import Schedule, train
from dlas.data.find import load_dataset
from dlas.data.preprocess import prepare
from dlas.graph.model import Model, Step, step_versions
from dlas.graph.reference import predict
from dlas.graph.torch_export import from_module
from dlas.models.architecture import architecture_for

NAME = "digits-cnn"
LARGEST_FILE = 200_000
PLACE = Path(__file__).resolve().parent.parent / "src" / "dlas" / "models" / "pretrained" / f"{NAME}.onnx"


def main() -> int:
    """Train, measure on the test rows, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--output", type=Path, default=PLACE)
    given = parser.parse_args()

    import torch

    torch.manual_seed(given.seed)
    architecture = architecture_for(NAME)
    module = architecture.build()
    rows, judged = load_dataset("digits", split="train"), load_dataset("digits", split="test")
    assert rows.labels is not None
    assert judged.labels is not None
    schedule = Schedule(
        given.epochs, lr=0.1, batch_size=64, seed=given.seed, augment="shift", clip_norm=5.0, threads=1
    )
    losses = train(
        module,
        prepare(rows, architecture.preprocessing),
        rows.labels,
        schedule,
        progress=lambda part, what: sys.stderr.write(f"\r{part:4.0%} {what}"),
    )
    model = from_module(
        module,
        np.zeros((2, *architecture.input_shape), np.float32),
        NAME,
        architecture.preprocessing,
        source={
            "script": "scripts/train_digits_cnn.py",
            "architecture": architecture.spelled(),
            "data": rows.source,
        },
    )
    right = int(np.sum(predict(model, prepare(judged, model)).argmax(1) == judged.labels))
    trained = Step(
        "train",
        {
            **dataclasses.asdict(schedule),
            "data": rows.source,
            "train_rows": len(rows),
            "test_rows": len(judged),
        },
        step_versions("torch", "scikit-learn"),
        (
            f"test top-1: {right / len(judged):.4f} ({right} of {len(judged)} rows)",
            f"mean loss of the last epoch: {losses[-1]:.4g}",
        ),
    )
    model = dataclasses.replace(
        model,
        source={**model.source, "test_top1": f"{right / len(judged):.4f}", "test_rows": str(len(judged))},
        history=(trained, *model.history),
    )
    size = write(model, given.output)
    sys.stderr.write(f"\n{given.output.name}: {size} bytes, {right} of {len(judged)} test rows right\n")
    return 0


def write(model: Model, path: Path) -> int:
    """Write the ONNX file in one piece; returns its size in bytes."""
    content = model.to_bytes()
    if len(content) > LARGEST_FILE:
        raise SystemExit(
            f"the file would be {len(content)} bytes, at most {LARGEST_FILE} are meant to be shipped"
        )
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
    return len(content)


if __name__ == "__main__":
    sys.exit(main())
