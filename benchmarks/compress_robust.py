"""Ternary networks trained with Jacobian regularisation against the float networks of MLPerf Tiny, under attack.

Claim: at a fraction of the bytes, they answer more rows rightly once an attack has changed these, and about as many as
they are. ResNet-8 on the CIFAR-10 JPEG rows (``cifar10-jpeg``: 11 points below the lossless images, not comparable with
published accuracy) and DS-CNN on spoken digits of a speaker that no training heard. Needs DLAS_DATA.

Every network is trained from random weights on the same rows for the same number of epochs, once per seed: float with
cross-entropy; ternary (``ternary-stq``) without, and with the Jacobian. Attacks work on the deployed network: FGSM, PGD
with 7 and 40 steps without a random start, Square as a black box, and what PGD found on the float network of the same
seed (transfer). "worst" is the share of rows that none of them brings down. Bytes: of the float network its float32
weights, of the ternary ones their packed codes, scales and biases.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _common import Row, finish, parser, progress

SPEAKERS = ("theo", "lucas", "jackson", "nicolas", "george", "yweweler")
ATTACKS = "fgsm,pgd:steps=7,random_start=false,{more}square:queries={queries}"
LONGER = "pgd:steps=40,random_start=false,step=0.1,"
EPS = ("2/255", "8/255")


@dataclass(frozen=True)
class Case:
    """A data set with its network."""

    name: str
    float_network: str
    ternary_network: str
    lr: float
    augment: str
    jacobian: float


CASES = {
    "digits": Case("spoken digits", "ds-cnn:classes=10", "ds-cnn:classes=10,width=96", 0.1, "none", 0.02),
    "cifar": Case("cifar10-jpeg", "resnet8", "resnet8:width=24", 0.1, "flip-shift", 0.03),
}


@dataclass(frozen=True)
class Judged:
    """Shares of right answers of one network: as it is, and by attack and eps."""

    nbytes: int
    clean: float
    shares: dict[str, float]


def rows_of(case: str, seed: int, train_rows: int, test_rows: int) -> tuple[Any, Any]:
    """Training and test rows; the speaker that is left out goes with the seed."""
    from dlas.data.find import load_dataset
    from dlas.data.splits import sample

    if case == "digits":
        speaker = SPEAKERS[seed % len(SPEAKERS)]
        train = load_dataset("spoken-digits.parquet", split=f"speaker!={speaker}")
        test = load_dataset("spoken-digits.parquet", split=f"speaker={speaker}")
    else:
        train, test = load_dataset("cifar10-train.parquet"), load_dataset("cifar10-test.parquet")
    train = sample(train, train_rows, seed) if 0 < train_rows < len(train) else train
    return train, sample(test, test_rows, 0) if test_rows < len(test) else test


def networks(case: Case, train: Any, seed: int, given: Any) -> dict[str, tuple[Any, int]]:
    """Each network with its bytes."""
    import dlas
    from dlas.compress.training import fine_tune

    made: dict[str, tuple[Any, int]] = {}
    start = time.monotonic()
    network = fine_tune(
        untrained(case.float_network, seed),
        train,
        epochs=given.epochs,
        lr=case.lr,
        batch_size=given.batch,
        seed=seed,
        augment=case.augment,
        clip_norm=5.0,
        threads=given.threads,
    )
    size = sum(a.nbytes for n, a in network.initializers.items() if "running" not in n)
    made["float"] = (network, size)
    progress(f"{case.name}, seed {seed}: float, {time.monotonic() - start:.0f} s")
    for name, weight in (("ternary", 0.0), ("ternary+jacobian", given.jacobian or case.jacobian)):
        start = time.monotonic()
        options = {
            "epochs": given.epochs,
            "lr": case.lr,
            "batch_size": given.batch,
            "augment": case.augment,
            "seed": seed,
            "threads": given.threads,
            "jacobian": weight,
            "ramp_epochs": given.epochs / 3,
        }
        start_from = untrained(case.float_network if given.quick else case.ternary_network, seed)
        small = dlas.compress(start_from, "ternary-stq", data=train, **options)
        made[name] = (small, int(small.history[-1].notes[0].split()[0]))
        progress(f"{case.name}, seed {seed}: {name}, {time.monotonic() - start:.0f} s")
    return made


def untrained(architecture: str, seed: int) -> Any:
    """An architecture with the random weights of a seed."""
    import torch

    from dlas.graph.torch_export import from_module
    from dlas.models.architecture import architecture_for

    member = architecture_for(architecture)
    torch.manual_seed(seed)
    example = np.zeros((2, *member.input_shape), np.float32)
    return from_module(member.build(), example, member.name, member.preprocessing)


def judge(made: dict[str, tuple[Any, int]], test: Any, given: Any) -> dict[str, Judged]:
    """Every network under every attack; the float one is the source of what is transferred."""
    from dlas.verify.attack import attack_networks
    from dlas.verify.running import Subject

    shares: dict[str, dict[str, float]] = {name: {} for name in made}
    clean: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        subjects = []
        for name, (network, _) in made.items():
            path = Path(folder) / f"{name}.onnx"
            path.write_bytes(network.to_bytes())
            subjects.append(Subject.open(path))
        for eps in EPS:
            report = attack_networks(
                subjects,
                test,
                attacks=ATTACKS.format(queries=given.queries, more="" if given.quick else LONGER),
                eps=eps,
                rows=len(test),
            )
            for name, model in zip(made, report.models, strict=True):
                assert model.clean is not None
                assert model.worst is not None
                clean[name] = model.clean.value
                for result in model.results:
                    if result.robust is not None:
                        shares[name][f"{eps} {result.title}"] = result.robust.value
                shares[name][f"{eps} worst"] = model.worst.value
    return {name: Judged(made[name][1], clean[name], shares[name]) for name in made}


def table(case: Case, found: list[dict[str, Judged]], rows: int) -> list[Row]:
    """Means over the seeds, with what must hold."""

    def mean(name: str, key: str) -> float:
        values = [f[name].clean if key == "clean" else f[name].shares.get(key, np.nan) for f in found]
        return float(np.mean(values))

    def difference(key: str, first: str, second: str) -> tuple[float, float, float]:
        gaps = [
            100
            * (
                (a[first].clean - a[second].clean)
                if key == "clean"
                else a[first].shares[key] - a[second].shares[key]
            )
            for a in found
        ]
        spread = 1.96 * np.std(gaps, ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else np.nan
        return float(np.mean(gaps)), float(np.mean(gaps) - spread), float(np.mean(gaps) + spread)

    robust, plain, peer = "ternary+jacobian", "ternary", "float"
    n = rows * len(found)
    lines = []
    size, other = found[0][robust].nbytes, found[0][peer].nbytes
    lines.append(
        Row(f"{case.name}: bytes of the weights", f"{size} B", f"float, {other} B", size / other, None, None, 1,
            "<= 1", size <= other)
    )  # fmt: skip
    keys = ["clean", *(k for k in found[0][robust].shares if k in found[0][peer].shares)]
    for key in keys:
        gap, low, high = difference(key, robust, peer)
        target = {"clean": "(reported)"}.get(key, "points above 0" if key.endswith("worst") else "(reported)")
        holds = target == "(reported)" or gap > 0
        lines.append(
            Row(f"{case.name}: {key}", f"{100 * mean(robust, key):.1f} %", f"float, {100 * mean(peer, key):.1f} %",
                gap, *_ends(low, high), n, target, holds)
        )  # fmt: skip
    for key in (
        "clean",
        *(f"{eps} worst" for eps in EPS),
        *(k for k in keys if k.startswith(f"{EPS[0]} pgd:")),
    ):
        gap, low, high = difference(key, robust, plain)
        target = {"clean": "points within 3"}.get(
            key, "points above 0" if key.startswith(f"{EPS[0]} pgd:") else "(reported)"
        )
        holds = {"clean": abs(gap) <= 3}.get(key, target == "(reported)" or gap > 0)
        lines.append(
            Row(f"{case.name}: {key}", f"{100 * mean(robust, key):.1f} %",
                f"ternary without, {100 * mean(plain, key):.1f} %", gap, *_ends(low, high), n, target, holds)
        )  # fmt: skip
    return lines


def _ends(low: float, high: float) -> tuple[float | None, float | None]:
    return (None, None) if np.isnan(low) else (low, high)


def main() -> int:
    """Entry point."""
    options = parser(__doc__)
    options.add_argument("--case", action="append", choices=sorted(CASES), help="repeat; default: all")
    options.add_argument(
        "--quick", action="store_true", help="one seed, few rows, epochs and queries, no wider networks"
    )
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--epochs", type=int, default=0, help="default: 15, with --quick 8")
    options.add_argument("--train-rows", type=int, default=0, help="default: 10,000, with --quick 1000")
    options.add_argument(
        "--rows", type=int, default=0, help="rows under attack; default: 1000, with --quick 100"
    )
    options.add_argument("--queries", type=int, default=0, help="of Square; default: 1000, with --quick 100")
    options.add_argument(
        "--jacobian", type=float, default=0.0, help="weight of the Jacobian; default: per case"
    )
    options.add_argument("--batch", type=int, default=0, help="rows per step; default: 64, with --quick 32")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    if not os.environ.get("DLAS_DATA"):
        options.error("DLAS_DATA must name the folder with the data sets")
    quick = given.quick
    given.seeds = 1 if quick else given.seeds
    given.epochs = given.epochs or (8 if quick else 15)
    given.train_rows = given.train_rows or (1000 if quick else 10_000)
    given.rows = given.rows or (100 if quick else 1000)
    given.queries = given.queries or (100 if quick else 1000)
    given.batch = given.batch or (32 if quick else 64)
    lines: list[Row] = []
    details: dict[str, Any] = {}
    for key in given.case or CASES:
        case, found, rows = CASES[key], [], 0
        for seed in range(given.seeds):
            train, test = rows_of(key, seed, given.train_rows, given.rows)
            found.append(judge(networks(case, train, seed, given), test, given))
            rows = len(test)
            details.setdefault(key, []).append({n: vars(j) for n, j in found[-1].items()})
            for name, judged in found[-1].items():
                worst = ", ".join(f"{k} {100 * v:.1f}" for k, v in judged.shares.items())
                progress(
                    f"{case.name}, seed {seed}: {name} {judged.nbytes} B, clean {100 * judged.clean:.1f}, {worst}"
                )
        lines += table(case, found, rows)
    return finish("robust ternary networks beside float ones", lines, given.json, details)


if __name__ == "__main__":
    sys.exit(main())
