"""Train an architecture of dlas from scratch and write it as ONNX, with how it was made in its metadata.

Run from the repository root, for example ``python scripts/train.py vit:stem=conv --data cifar10-train.parquet --judged
cifar10-test.parquet --output vit.onnx``. Killed and started again with the same options, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from dlas.compress.from_scratch import from_scratch
from dlas.compress.training import Schedule
from dlas.core.errors import DlasError
from dlas.core.files import write_atomic
from dlas.data.find import load_dataset
from dlas.data.splits import sample

_DEFAULTS = {"epochs": 30, "lr": 1e-3, "weight_decay": 0.05, "augment": "flip-shift", "optimizer": "adamw"}


def main() -> int:
    """Train, measure on rows that training never saw, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("architecture", help="name:key=value, see `dlas list models`")
    parser.add_argument("--data", required=True, help="labelled training rows")
    parser.add_argument("--split", default="", help="split of them, where the data set has any")
    parser.add_argument("--rows", type=int, default=0, help="rows of them, as many of each class; 0 takes all")
    parser.add_argument("--judged", default="", help="labelled rows to judge the result on")
    parser.add_argument("--judged-split", default="", help="split of these")
    parser.add_argument("--judged-rows", type=int, default=0, help="rows of these; 0 takes all")
    parser.add_argument("--output", type=Path, required=True)
    for field in fields(Schedule):
        default = _DEFAULTS.get(field.name, field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(default), default=default)
    given = parser.parse_args()
    schedule = Schedule(**{f.name: getattr(given, f.name) for f in fields(Schedule)})
    rows = load_dataset(given.data, split=given.split)
    judged = load_dataset(given.judged, split=given.judged_split) if given.judged else None
    if judged is not None and given.judged_rows:
        judged = sample(judged, given.judged_rows)
    checkpoint = given.output.with_suffix(".ckpt")
    last = ""

    def tell(part: float, what: str) -> None:
        nonlocal last
        if what != last:
            sys.stderr.write(f"{part:4.0%} {what}\n")
        last = what

    model = from_scratch(
        given.architecture,
        sample(rows, given.rows, schedule.seed) if given.rows else rows,
        schedule,
        judged=judged,
        name=given.output.stem,
        progress=tell,
        checkpoint=checkpoint,
    )
    write_atomic(given.output, model.to_bytes())
    checkpoint.unlink(missing_ok=True)
    sys.stderr.write("\n".join(model.history[0].notes) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DlasError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
