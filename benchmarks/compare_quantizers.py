"""dlas's int8 beside Microsoft Olive and NNCF: the same network, calibration rows and test rows, one process each.

Claim: dlas takes less time from the ONNX file to the quantised and judged file, and its network is not less accurate.
Needs DLAS_DATA and, once, ``--make-env FOLDER`` (3 GB): Olive and NNCF get an environment each, from the pinned
requirements in ``benchmarks/envs``, because neither can share one with dlas.

Every tool starts from the same file (batch norms folded) and the same 300 rows in their final form, which is NNCF's
default number, quantises with its defaults, writes the file and judges it with ONNX Runtime; a second setting of each
peer is what its manual advises for accuracy. The time is that of the whole process, imports included; the rounds take
turns. The results' latencies are taken in turn in one process, on one thread: each bare file as ONNX Runtime takes it
counts; that of dlas as its own back end compiles it is shown beside.

dlas is held to the peer's accuracy: the 95 % interval of the difference must reach 0. A quantised network can be right
more often than its float self by chance, with other labels, not better ones: the share of rows that keep the float
network's label tells the two apart and is shown as well.

One more setting of dlas fits an offset per class to the labels of the calibration rows (``class-bias``). No peer is
told them, so that line is reported and holds nobody to anything.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _common import Row, finish, median_interval, paired_interval, parser, progress, ratio_interval
from _quantize_with import LABELLED, SETTINGS

HERE = Path(__file__).parent
COMPILED = "dlas, compiled"
CALIBRATION_ROWS = 300
CIFAR = ("cifar10-train.parquet", "cifar10-test.parquet")
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet20": {"file": "cifar-resnet/resnet20.th", "data": CIFAR},
    "ic_resnet8": {
        "file": "mlperf-tiny/ic_resnet8_float.tflite",
        "data": CIFAR,
        "preprocessing": {"height": 32, "width": 32, "layout": "NHWC"},
    },
    "mobilenet_v1_0.25": {
        "file": "imagenet/mobilenet_v1_0.25_128_float.tflite",
        "data": ("imagenet-sample.parquet",),  # one set: calibration rows are taken out of it and not judged
        "preprocessing": {
            "height": 128, "width": 128, "resize": 146, "layout": "NHWC", "scale": 1 / 127.5, "mean": (1.0,),
        },
    },
}  # fmt: skip


def make_environments(folder: Path) -> int:
    """A virtual environment per peer, from its lock file."""
    for lock in sorted((HERE / "envs").glob("*.txt")):
        place = folder / lock.stem
        progress(f"{place}: venv and {lock.name}")
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([place / "bin" / "pip", "install", "--quiet", "--requirement", lock], check=True)
    return 0


def prepare_files(name: str, rows: int, folder: Path) -> dict[str, Any]:
    """The files every tool starts from: network, calibration rows, test rows; gives the float network's answers."""
    from _quantize_with import answers

    import dlas
    from dlas.data.find import load_dataset
    from dlas.data.preprocess import prepare
    from dlas.data.splits import sample
    from dlas.graph.passes import simplified

    network = NETWORKS[name]
    model = dlas.load(f"models/{network['file']}", preprocessing=network.get("preprocessing"))
    sets = [load_dataset(s) for s in network["data"]]
    calibration = sample(sets[0], CALIBRATION_ROWS)
    test = sets[-1]
    if len(sets) == 1:
        test = test.take(np.setdiff1d(np.arange(len(test)), calibration.rows))
    test = test.head(rows)
    plain = replace(simplified(model), preprocessing=None, source={}, history=())
    dlas.save(plain, folder / "model.onnx")
    np.save(folder / "calibration.npy", prepare(calibration, model))
    np.save(folder / "calibration_labels.npy", np.asarray(calibration.labels))
    np.save(folder / "rows.npy", prepare(test, model))
    return {
        "labels": test.labels,
        "float": answers(folder / "model.onnx", np.load(folder / "rows.npy", mmap_mode="r")),
        "shape": [list(s.shape) for s in plain.inputs],
    }


def run(setting: str, envs: Path, folder: Path) -> dict[str, Any]:
    """One tool in its own process, from file to judged file."""
    tool = SETTINGS[setting][0]
    python = Path(sys.executable) if tool == "dlas" else envs / tool / "bin" / "python"
    result = folder / f"{re.sub(r'[^a-z0-9]+', '-', setting)}.onnx"
    result.unlink(missing_ok=True)
    command = [str(python), str(HERE / "_quantize_with.py"), setting, str(folder), str(result)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        progress(f"{setting} failed: {last[:300]}")
        return {"error": last}
    told = json.loads(done.stdout.splitlines()[-1])
    return {**told, "wall_s": wall, "result": result, "answers": np.load(result.with_suffix(".npy"))}


def latencies(files: dict[str, Path]) -> dict[str, Any]:
    """Timing of one row through each file, taken in turn, one thread; of dlas's also as its own back end runs it."""
    import onnxruntime

    import dlas
    from dlas.core.timing import Protocol, measure

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    runners = {}
    for name, path in files.items():
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        shape = [d if isinstance(d, int) else 1 for d in given.shape]
        feed = {given.name: np.random.default_rng(0).standard_normal(shape, np.float32)}
        runners[name] = lambda session=session, feed=feed: session.run(None, feed)
    with dlas.compile(files["dlas"], threads=1) as executable:
        runners[COMPILED] = executable.runner(feed)
        return measure(runners, Protocol(rounds=10))


def compare(name: str, envs: Path, rounds: int, rows: int, details: dict[str, Any]) -> list[Row]:
    """Rows for one network."""
    runs: dict[str, list[dict[str, Any]]] = {s: [] for s in SETTINGS}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        progress(f"{name}: files")
        facts = prepare_files(name, rows, folder)
        for turn in range(rounds + 1):
            progress(f"{name}: round {turn} of {rounds}{'' if turn else ' (warm-up, not counted)'}")
            for setting in [s for s in SETTINGS if s not in failed]:
                taken = run(setting, envs, folder)
                if "error" in taken:
                    failed[setting] = taken["error"]
                    runs.pop(setting)
                elif turn:
                    runs[setting].append(taken)
        if "dlas" in failed:
            raise SystemExit(f"dlas failed on {name}: {failed['dlas']}")
        progress(f"{name}: latencies")
        files = {s: r[-1]["result"] for s, r in runs.items()}
        timings = latencies({"float32": folder / "model.onnx", **files})
        sizes = {s: path.stat().st_size for s, path in files.items()}
    hits = {s: r[-1]["answers"] == facts["labels"] for s, r in runs.items()}
    right = facts["float"] == facts["labels"]
    details[name] = {
        "input": facts["shape"],
        "failed": failed,
        "float32": {"top1": float(right.mean()), "latency_ms": timings["float32"].median},
        COMPILED: {"latency_ms": timings[COMPILED].median},
        **{
            s: {
                "wall_s": [x["wall_s"] for x in r],
                "quantise_s": [x["quantise_s"] for x in r],
                "evaluate_s": [x["evaluate_s"] for x in r],
                "top1": float(hits[s].mean()),
                "float_label": float((r[-1]["answers"] == facts["float"]).mean()),
                "latency_ms": timings[s].median,
                "bytes": sizes[s],
                "versions": r[-1]["versions"],
            }
            for s, r in runs.items()
        },
    }
    peers = [s for s in runs if SETTINGS[s][0] != "dlas"]
    rows = [row for peer in peers for row in _rows(name, peer, runs, facts, timings)]
    return rows + [
        Row(f"{name}: all", "", f"{peer}, failed: {why[:60]}", math.nan, None, None, 0, "(peer failed)", True)
        for peer, why in failed.items()
    ]


def _rows(name: str, peer: str, runs: Any, facts: Any, timings: Any) -> list[Row]:
    from dlas.core.timing import ratio

    walls = {s: [x["wall_s"] for x in runs[s]] for s in ("dlas", peer)}
    middle = {s: median_interval(w)[0] for s, w in walls.items()}
    times = ratio_interval(walls["dlas"], walls[peer])
    found = {s: runs[s][-1]["answers"] for s in ("dlas", LABELLED, peer) if s in runs}
    hits = {s: labels == facts["labels"] for s, labels in found.items()}
    same = {s: labels == facts["float"] for s, labels in found.items()}
    right = facts["float"] == facts["labels"]
    accuracy, (low, high) = _difference(hits, "dlas", peer)
    points = (accuracy, low, high, len(right), "interval reaches 0 or more", high >= 0)
    agreement, (least, most) = _difference(same, "dlas", peer)
    speeds = {s: ratio(timings[s], timings[peer]) for s in ("dlas", COMPILED)}
    return [
        Row(
            f"{name}: seconds",
            f"{middle['dlas']:.2f} s",
            f"{peer}, {middle[peer]:.2f} s",
            *times,
            len(walls["dlas"]),
            "< 1",
            times[2] < 1,
        ),
        Row(
            f"{name}: points above the peer",
            f"top-1 {hits['dlas'].mean():.2%} (float {right.mean():.2%})",
            f"{peer}, {hits[peer].mean():.2%}",
            *points,
        ),
        *_labelled(name, peer, hits, right),
        Row(
            f"{name}: points more with float's label",
            f"{same['dlas'].mean():.2%}",
            f"{peer}, {same[peer].mean():.2%}",
            agreement,
            least,
            most,
            len(right),
            "(reported)",
            True,
        ),
        *(
            Row(
                f"{name}: latency of {'the file' if s == 'dlas' else 'it compiled by dlas'}",
                f"{timings[s].median:.4g} ms (float {timings['float32'].median:.4g} ms)",
                f"{peer}, {timings[peer].median:.4g} ms",
                speed.value,
                speed.low,
                speed.high,
                speed.n or 0,
                "interval reaches 1 or less" if s == "dlas" else "(reported)",
                s != "dlas" or (speed.low is not None and speed.low <= 1),
            )
            for s, speed in speeds.items()
        ),
    ]


def _labelled(name: str, peer: str, hits: dict[str, np.ndarray], right: np.ndarray) -> list[Row]:
    """The same of the setting that is told the labels: reported, as the peer is not told them."""
    if LABELLED not in hits:
        return []
    points, (low, high) = _difference(hits, LABELLED, peer)
    return [
        Row(
            f"{name}: points above the peer, with class-bias",
            f"top-1 {hits[LABELLED].mean():.2%} (float {right.mean():.2%})",
            f"{peer}, {hits[peer].mean():.2%}",
            points,
            low,
            high,
            len(right),
            "(reported)",
            True,
        )
    ]


def _difference(shares: dict[str, np.ndarray], setting: str, peer: str) -> tuple[float, tuple[float, float]]:
    """Points that a setting is above the peer, with the 95 % interval, over the same rows."""
    low, high = paired_interval(shares[setting], shares[peer])
    return 100 * float(shares[setting].mean() - shares[peer].mean()), (100 * low, 100 * high)


def main() -> int:
    """Entry point."""
    options = parser(__doc__)
    options.add_argument(
        "--make-env", type=Path, metavar="FOLDER", help="build the peers' environments and leave"
    )
    options.add_argument(
        "--envs", type=Path, metavar="FOLDER", help="where they are; default: below DLAS_CACHE"
    )
    options.add_argument("--network", action="append", choices=sorted(NETWORKS), help="repeat; default: all")
    options.add_argument("--rounds", type=int, default=5, help="counted rounds, each runs every setting once")
    options.add_argument("--rows", type=int, default=8000, help="test rows to judge on")
    given: argparse.Namespace = options.parse_args()
    if given.make_env:
        return make_environments(given.make_env)
    if not os.environ.get("DLAS_DATA"):
        options.error("DLAS_DATA must name the folder with models/ and the data sets")
    if given.envs is None:
        from dlas.core.cache import default_root

        given.envs = default_root() / "peers"
    missing = [t for t in ("olive", "nncf") if not (given.envs / t / "bin" / "python").exists()]
    if missing:
        options.error(
            f"no environment for {', '.join(missing)} in {given.envs}; build it with --make-env {given.envs}"
        )
    details: dict[str, Any] = {}
    rows: list[Row] = []
    for name in given.network or NETWORKS:
        rows += compare(name, given.envs.resolve(), given.rounds, given.rows, details)
    return finish("int8 from file to judged file: dlas beside Olive and NNCF", rows, given.json, details)


if __name__ == "__main__":
    sys.exit(main())
