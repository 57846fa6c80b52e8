"""4-bit weights of ResNet-20 on the CIFAR-10 JPEG test rows: what rounding loses, what repair and training bring back.

Needs DLAS_DATA. First part: ``int4``, ``apot``, ``msq`` and ``po2`` per tensor, per channel, with the least squared
error and with statistics repair. Each loss against the float network on the same rows stands beside what was measured
before dlas existed, on 2,000 rows of 200 per class; which ones is not recorded, so all test rows are judged here.
No method has seen any of them: repair reads 1,000 training rows. Second part: 4-bit APoT after training, against the
float network trained equally.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import numpy as np
from _common import Row, finish, paired_interval, parser, progress

FLOAT = 81.35
# Accuracy in percent, by method: per tensor; per channel; per channel with the least squared error; per
# channel with statistics repair; the third with repair. Alpha is the largest weight where nothing is said.
EXPECTED = {
    "int4": (74.50, 78.70, 77.05, 80.90, 80.75),
    "apot": (76.45, 79.60, 77.25, 80.65, 80.20),
    "msq": (73.60, 75.40, 74.80, 81.10, 80.65),
    "po2": (77.00, 71.55, 67.85, 80.35, 79.65),
}
COLUMNS = (
    "repair=none,per_channel=false",
    "repair=none",
    "repair=none,alpha=mse",
    "repair=stats",
    "repair=stats,alpha=mse",
)
WITHIN, QAT_LOSS = 1.0, 0.5


def correct(model: object, data: object) -> np.ndarray:
    """Whether each row is labelled right."""
    from dlas.data.preprocess import prepare
    from dlas.graph.reference import Reference

    x = prepare(data, model)  # type: ignore[arg-type]
    spec, out = model.inputs[0], model.outputs[0].name  # type: ignore[attr-defined]
    with Reference(model) as reference:  # type: ignore[arg-type]
        answers = [reference.run({spec.name: x[i : i + 250]})[out] for i in range(0, len(x), 250)]
    return np.concatenate(answers).argmax(1) == data.labels  # type: ignore[attr-defined]


def table(given: object, network: object, train: object, test: object) -> list[Row]:
    """One row per method, column and set of test rows."""
    import dlas

    plain = correct(network, test)
    progress(f"float: {100 * plain.mean():.2f} %")
    rows: list[Row] = []
    cases = [(m, c, e) for m, es in EXPECTED.items() for c, e in zip(COLUMNS, es, strict=True)]
    cases.append(("po2", "repair=stats,per_channel=false", 79.05))
    if given.quick:  # type: ignore[attr-defined]
        cases = [c for c in cases if c[0] in ("int4", "po2") and c[1] in (COLUMNS[1], COLUMNS[3])]
    cases = [c for c in cases if c[0] in given.methods.split(",")]  # type: ignore[attr-defined]
    for method, options, expected in cases:
        model = dlas.compress(network, f"{method}:{options}", data=train)
        good = correct(model, test)
        loss = 100 * (plain.mean() - good.mean())
        low, high = (100 * v for v in paired_interval(plain, good))
        wanted = FLOAT - expected
        rows.append(
            Row(
                f"{method} {options}", f"{100 * good.mean():.2f} %", f"expected loss {wanted:.2f}", loss, low, high,
                len(good), f"{wanted - WITHIN:.2f} .. {wanted + WITHIN:.2f} points", bool(abs(loss - wanted) <= WITHIN),
            )
        )  # fmt: skip
        progress(f"{rows[-1].case}: {rows[-1].value}, loss {loss:.2f} (expected {wanted:.2f})")
    return rows


def trained(given: object, network: object, train: object, test: object) -> list[Row]:
    """4-bit APoT against float, both trained alike."""
    import dlas
    from dlas.compress.training import fine_tune

    epochs, count = (1, 500) if given.quick else (given.epochs, given.rows)  # type: ignore[attr-defined]
    rows: list[Row] = []
    part = train.take(np.arange(count) * len(train) // count)  # type: ignore[attr-defined, arg-type]
    for seed in range(1 if given.quick else given.seeds):  # type: ignore[attr-defined]
        model = fine_tune(
            network, part, epochs=epochs, lr=0.02, seed=seed, threads=given.threads  # type: ignore[arg-type, attr-defined]
        )  # fmt: skip
        base = correct(model, test)
        progress(f"seed {seed}: float after training {100 * base.mean():.2f} %")
        for method in ("apot", "apot:per_channel=false", "int4", "msq", "po2")[: None if given.every else 1]:  # type: ignore[attr-defined]
            joined = method + ("," if ":" in method else ":")
            small = dlas.compress(
                network, f"{joined}epochs={epochs},train_rows={count},lr=0.02,seed={seed}", data=train
            )
            good = correct(small, test)
            loss = 100 * (base.mean() - good.mean())
            low, high = (100 * v for v in paired_interval(base, good))
            rows.append(
                Row(
                    f"{method}, {epochs} epochs of {count} rows, seed {seed}", f"{100 * good.mean():.2f} %",
                    f"float {100 * base.mean():.2f} %", loss, low, high, len(good),
                    f"<= {QAT_LOSS} points", bool(loss <= QAT_LOSS),
                )
            )  # fmt: skip
            progress(f"{rows[-1].case}: {rows[-1].value}, loss {loss:.2f}")
    return rows


def main() -> int:
    """Entry point."""
    options = parser(__doc__)
    options.add_argument("--quick", action="store_true", help="a part of the table, one epoch of 500 rows")
    options.add_argument("--methods", default=",".join(EXPECTED), help="of the first part")
    options.add_argument("--part", choices=("table", "training", "all"), default="all")
    options.add_argument("--test-rows", type=int, default=0, help="test rows, 0 for all")
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--rows", type=int, default=10_000, help="training rows of the second part")
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--every", action="store_true", help="train all four methods")
    given = options.parse_args()
    if not os.environ.get("DLAS_DATA"):
        sys.stderr.write("DLAS_DATA names no folder with the CIFAR-10 rows: nothing measured\n")
        return 0
    import dlas
    from dlas.api import dataset

    network = dlas.load("models/cifar-resnet/resnet20.th")
    train, test = dataset("cifar10-train.parquet"), dataset("cifar10-test.parquet")
    count = given.test_rows or (500 if given.quick else 0)
    if count:
        test = test.take(np.arange(count) * len(test) // count)  # type: ignore[arg-type, union-attr]
    rows: list[Row] = []
    if given.part != "training":
        rows += table(given, network, train, test)
    if given.part != "table":
        rows += trained(given, network, train, test)
    if given.quick:  # too few rows and steps to hold anything to its target
        rows = [replace(row, target="not judged", holds=True) for row in rows]
    return finish("ResNet-20 with 4-bit weights: loss of accuracy in points (cifar10-jpeg)", rows, given.json)


if __name__ == "__main__":
    sys.exit(main())
