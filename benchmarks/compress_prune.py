"""ICE-Pruning beside plain iterative pruning at equal sparsity, after the networks were adapted to the JPEG rows.

The plain loop is the same code with all three components off: an epoch after every step, nothing frozen, one learning
rate. Times are wall times of pruning and training; those of the probe and of tuning are shown and the ratio is given
with and without them. Accuracy is that on the JPEG test rows ("cifar10-jpeg"), which no method sees: methods judge on a
split of the training rows. The adapted networks are kept in the cache.

Run with DLAS_DATA set: ``python benchmarks/compress_prune.py --quick`` (ResNet-20, one ratio, one round).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from _common import Row, finish, median_interval, paired_interval, parser, progress

from dlas import api
from dlas.core.cache import Cache, kept_folder, key_of
from dlas.data.dataset import Dataset
from dlas.data.preprocess import prepare
from dlas.data.splits import sample
from dlas.graph.model import Model
from dlas.graph.reference import predict

ROWS = 15_000
ADAPT = {"rows": ROWS, "epochs": 3, "lr": 0.02}
SCRATCH = {"rows": ROWS, "epochs": 24, "lr": 0.1}
NETWORKS = {
    "resnet20": "models/cifar-resnet/resnet20.th",
    "resnet56": "models/cifar-resnet/resnet56.th",
    "mobilenet-v2": "mobilenet-v2:width=0.5,size=32,reduction=8,classes=10",
}
PLAIN = {"decide": False, "freeze": "none", "adapt_lr": False, "final_epochs": 0}
CASES: dict[str, dict[str, object]] = {
    "plain": PLAIN,
    "ice": {},
    "ice, published rules": {"paper": True},
    "ice, threshold 1.5": {"threshold": 1.5},
    "without decide": {"decide": False},
    "without freeze": {"freeze": "none"},
    "without adapt_lr": {"adapt_lr": False},
    "without final epoch": {"final_epochs": 0},
    "freeze by probe": {"freeze": "least-moved"},
    "only decide": {**PLAIN, "decide": True},
    "only freeze": {**PLAIN, "freeze": "prefix"},
    "ice, tuned": {"tune": True},
}


@dataclass
class Result:
    """What one case did, over its rounds."""

    right: np.ndarray
    sparsity: float
    fine_tunes: int
    steps: int
    epochs_worth: float
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(
        default_factory=list
    )  # seconds of this process, which other work cannot stretch
    extra: list[float] = field(default_factory=list)  # probe and tuning

    @property
    def accuracy(self) -> float:
        """Percent of the test rows."""
        return 100 * float(self.right.mean())


def main() -> int:
    """Prune, judge, print."""
    options = parser(__doc__)
    options.add_argument(
        "--quick", action="store_true", help="ResNet-20, ratio 0.3, 2,000 rows an epoch, one round"
    )
    options.add_argument(
        "--network", action="append", choices=NETWORKS, help="only this one; may be repeated"
    )
    options.add_argument("--ratio", action="append", type=float, help="only this one; may be repeated")
    options.add_argument("--case", action="append", choices=CASES, help="beside plain, only this one")
    options.add_argument("--rounds", type=int, default=0, help="rounds of all cases in turn")
    options.add_argument("--rows", type=int, default=0, help="training rows an epoch")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    networks = given.network or (["resnet20"] if given.quick else list(NETWORKS))
    ratios = given.ratio or ([0.3] if given.quick else [0.3, 0.5])
    cases = ["plain", *(given.case or [c for c in CASES if c != "plain"])]
    rounds = given.rounds or (1 if given.quick else 2)
    count = given.rows or 2_000
    training = api.dataset("cifar10-train.parquet")
    test = api.dataset("cifar10-test.parquet")
    if given.quick:
        test = sample(test, 2_000)
    rows, details = [], {}
    for name in networks:
        start = time.monotonic()
        model = adapted(name, training, given.threads)
        x = prepare(test, model)
        float_right = right(model, x, test)
        progress(
            f"{name}: {100 * float_right.mean():.2f} % on {len(test)} test rows, {time.monotonic() - start:.0f} s"
        )
        for ratio in ratios:
            found = measured(model, ratio, cases, rounds, count, training, x, test, given.threads)
            rows += table(f"{name} {ratio:g}", found)
            details[f"{name} {ratio:g}"] = {
                "float": 100 * float(float_right.mean()),
                **{c: {**vars(r), "right": r.accuracy} for c, r in found.items()},
            }
            ablation(f"{name}, ratio {ratio:g}, float {100 * float_right.mean():.2f} %", found)
    return finish("ICE-Pruning beside plain iterative pruning (cifar10-jpeg)", rows, given.json, details)


def adapted(name: str, training: Dataset, threads: int) -> Model:
    """The network fine-tuned (or trained) on JPEG rows, from the cache where it is there."""
    from dlas.compress.training import fine_tune

    model = api.load(NETWORKS[name])
    recipe = SCRATCH if ":" in NETWORKS[name] else ADAPT
    key = key_of("adapted", model.to_bytes(), training.hash, recipe, threads)

    def make(folder):
        done = fine_tune(
            model,
            sample(training, ROWS),
            epochs=int(recipe["epochs"]),
            lr=float(recipe["lr"]),
            threads=threads,
            progress=Ticker(f"adapting {name}"),
            checkpoint=kept_folder(folder) / "adapting.ckpt",
        )
        (folder / "model.onnx").write_bytes(done.to_bytes())

    return api.load(Cache().folder(key, make) / "model.onnx")


class Ticker:
    """Says how far something is, every tenth."""

    def __init__(self, what: str) -> None:
        self.what, self.told = what, 0.0

    def __call__(self, fraction: float, text: str) -> None:
        """See ``Progress``."""
        if fraction >= self.told + 0.1:
            self.told = fraction
            progress(f"{self.what}: {fraction:.0%}, {text}")


def measured(
    model: Model,
    ratio: float,
    cases: Sequence[str],
    rounds: int,
    count: int,
    training: Dataset,
    x: np.ndarray,
    test: Dataset,
    threads: int,
) -> dict[str, Result]:
    """Every case in turn, ``rounds`` times."""
    found: dict[str, Result] = {}
    # Rows that the network was not adapted on; a tenth of them judges. (Its makers trained it on all of them, in their
    # lossless form: no row of the training set is quite new to it.)
    unseen = np.setdiff1d(np.arange(len(training)), sample(training, ROWS).rows)
    data = sample(training.take(unseen), min(len(unseen), 5 * count), seed=1)
    for _ in range(rounds):
        for case in cases:
            options = {"ratio": ratio, "rows": count, "threads": threads, **CASES[case]}
            start, used = time.monotonic(), time.process_time()
            small = api.compress(model, "ice", data=data, **options)
            seconds, used = time.monotonic() - start, time.process_time() - used
            facts = small.history[-1].options
            if case not in found:
                shrunk = 1 - size(small) / size(model)
                numbers = (facts["fine_tunes"], len(facts["steps"]), facts["epochs_worth"])
                found[case] = Result(right(small, x, test), shrunk, *numbers)
            found[case].seconds.append(seconds)
            found[case].processor.append(used)
            phases = facts["seconds"]
            found[case].extra.append(phases.get("probe", 0.0) + phases.get("tuning", 0.0))
            times = f"{seconds:.1f} s, {used:.1f} s of processor time"
            progress(f"{case}: {times}, {found[case].accuracy:.2f} %; {facts['seconds']}")
    return found


def right(model: Model, x: np.ndarray, data: Dataset) -> np.ndarray:
    """Which rows are answered as labelled."""
    return predict(model, x).reshape(len(x), -1).argmax(1) == data.labels


def size(model: Model) -> int:
    """Weights of convolutions and linear layers."""
    return sum(a.size for a in model.initializers.values() if a.ndim >= 2)


def table(title: str, found: dict[str, Result]) -> list[Row]:
    """The claim: ICE at least 2x faster within a point of the plain loop."""
    plain = found["plain"]
    rows = []
    for case, result in found.items():
        if case == "plain":
            continue
        for label, extra in (("", False), (" without probe and tuning", True)):
            if extra and not any(result.extra):
                continue
            times = [s - e * extra for s, e in zip(result.seconds, result.extra, strict=True)]
            ratio, low, high = median_interval([a / b for a, b in zip(times, plain.seconds, strict=True)])
            loss = plain.accuracy - result.accuracy
            gap = [100 * v for v in paired_interval(result.right, plain.right)]
            deep = case == "ice" and not title.startswith("resnet20")
            rows.append(
                Row(
                    f"{title}: {case}{label}",
                    f"{np.median(times):.1f} s, {result.accuracy:.2f} % ({gap[0]:+.2f} .. {gap[1]:+.2f})",
                    f"plain, {np.median(plain.seconds):.1f} s, {plain.accuracy:.2f} %",
                    ratio,
                    low if len(times) > 1 else None,
                    high if len(times) > 1 else None,
                    len(times),
                    "<= 0.5, at most 1 point lost" if deep else "reported",
                    not deep or (ratio <= 0.5 and loss <= 1.0),
                )
            )
    return rows


def ablation(title: str, found: dict[str, Result]) -> None:
    """One line per case: what each component brings."""
    print(title)
    columns = (
        "case",
        "seconds",
        "processor",
        "probe, tuning",
        "fine-tuned",
        "epochs' worth",
        "weights removed",
        "accuracy",
    )
    lines = [
        (
            case,
            f"{np.median(r.seconds):.1f}",
            f"{np.median(r.processor):.1f}",
            f"{np.median(r.extra):.1f}",
            f"{r.fine_tunes} of {r.steps}",
            f"{r.epochs_worth:.2f}",
            f"{100 * r.sparsity:.1f} %",
            f"{r.accuracy:.2f} %",
        )
        for case, r in found.items()
    ]
    widths = [max(len(line[i]) for line in [columns, *lines]) for i in range(len(columns))]
    for line in (columns, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print()


if __name__ == "__main__":
    sys.exit(main())
