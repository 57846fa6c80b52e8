"""Whole networks on the engine against other back ends, float32, batch 1.

Claims: the portfolio takes at most 1.02 times the best single back end on every network, with one and two threads, and
is strictly faster on at least three; own kernels alone (policy `measure`) take at most as long as ONNX Runtime on
ResNet-20, 0.67 times the best peer on WRN-40-2 with 16 groups, 1.15 times on MobileNetV2 and 1.10 times on ResNet-18.
All engines take turns in one process: processor time with one thread, the lower quartile of wall time with two.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _common import Row, finish, parser, progress, ratio_interval

NETWORKS = (
    "cifar-resnet:depth=20",
    "wide-resnet:groups=1",
    "wide-resnet:groups=4",
    "wide-resnet:groups=16",
    "mobilenet-v2",
    "resnet:depth=18",
    "imagenet/squeezenet1.0_deepcompressed.onnx",
    "mlperf-tiny/ic_resnet8_float.tflite",
    "mlperf-tiny/kws_dscnn_float.tflite",
    "mlperf-tiny/vww_mobilenetv1_96_float.tflite",
    "mlperf-tiny/ad01_autoencoder_float.tflite",
)
PEERS = ("onnxruntime", "openvino", "litert", "torch:mode=channels_last")
OWN = "engine:policy=measure"
PORTFOLIO = "engine:policy=portfolio"
GOALS = {
    "cifar-resnet:depth=20": ("onnxruntime", 1.0),
    "wide-resnet:groups=16": ("best", 0.67),
    "mobilenet-v2": ("best", 1.15),
    "resnet:depth=18": ("best", 1.10),
}
BLOCK_S = 0.02
BLOCKS = 15
PAUSE_S = 0.02  # the threads of the engine before spin on for a while, on the processors of the one whose turn it is


def main() -> int:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("networks", nargs="*", help="only these")
    options.add_argument("--threads", default="1,2")
    given = options.parse_args()
    rows: list[Row] = []
    details: dict[str, dict[str, float]] = {}
    for threads in (int(t) for t in given.threads.split(",")):
        ahead = 0
        for name in given.networks or NETWORKS:
            samples = measured(name, threads)
            if samples is None:
                continue
            medians = {engine: statistic(values, threads) for engine, values in samples.items()}
            details[f"{name}, {threads} threads"] = {k: 1e3 * v for k, v in medians.items()}
            progress(f"{name}, {threads}: " + ", ".join(f"{k} {1e3 * v:.3f}" for k, v in medians.items()))
            peers = [p for p in PEERS if p in samples]
            best = min(peers, key=medians.__getitem__)
            portfolio = row(name, threads, PORTFOLIO, best, samples, 1.02, "<= 1.02 x the best back end")
            rows.append(portfolio)
            ahead += portfolio.high is not None and portfolio.high < 1
            goal = GOALS.get(name)
            if goal is not None and threads == 1:
                peer = best if goal[0] == "best" else goal[0]
                rows.append(
                    row(name, threads, OWN, peer, samples, goal[1], f"own kernels <= {goal[1]} x {goal[0]}")
                )
        if not given.networks:
            text = "faster than every back end, interval below 1"
            rows.append(
                Row(
                    f"networks, {threads} threads",
                    f"{ahead}",
                    "all",
                    ahead,
                    None,
                    None,
                    1,
                    f">= 3 {text}",
                    ahead >= 3,
                )
            )
    return finish("Whole networks, float32, batch 1", rows, given.json, details)


def row(
    name: str,
    threads: int,
    engine: str,
    peer: str,
    samples: dict[str, list[float]],
    limit: float,
    target: str,
) -> Row:
    """One comparison; medians with one thread, lower quartiles with two."""
    ratio, low, high = ratio_interval(samples[engine], samples[peer])
    if threads > 1:
        ratio = statistic(samples[engine], threads) / statistic(samples[peer], threads)
    value = f"{1e3 * statistic(samples[engine], threads):.3f} ms"
    text = f"{Path(name).name}, {threads} thread{'s' * (threads > 1)}, {engine.partition('=')[2]}"
    return Row(text, value, peer, ratio, low, high, len(samples[engine]), target, ratio <= limit)


def statistic(values: list[float], threads: int) -> float:
    """Median of processor time, or the lower quartile of wall time where neighbours may take a processor away."""
    return float(np.median(values)) if threads == 1 else float(np.percentile(values, 25))


def measured(name: str, threads: int) -> dict[str, list[float]] | None:
    """Seconds per run of every engine, in turns; None where the network is not here."""
    from dlas import api
    from dlas.core.errors import DlasError
    from dlas.runtime.artifact import Signature
    from dlas.runtime.backend import backend_for, deployable

    folder = Path(os.environ.get("DLAS_DATA", "../shared/data")) / "models"
    source = str(folder / name) if "/" in name else name
    if "/" in name and not Path(source).is_file():
        progress(f"{name} is not here")
        return None
    model = deployable(api.load(source))
    inputs = Signature.of(model, 1).random_inputs()
    runners: dict[str, Callable[[], object]] = {}
    kept = []
    for engine in (PORTFOLIO, OWN, *PEERS):
        try:
            executable = backend_for(engine).compile(model, threads=threads)
        except DlasError as error:
            progress(f"{engine}: {error}")
            continue
        kept.append(executable)
        runners[engine] = executable.runner(inputs)
    clock = time.process_time if threads == 1 else time.perf_counter
    found: dict[str, list[float]] = {engine: [] for engine in runners}
    counts = {}
    for engine, run in runners.items():
        run()
        start = clock()
        run()
        counts[engine] = max(1, round(BLOCK_S / max(clock() - start, 1e-6)))
    for _ in range(BLOCKS * (1 if threads == 1 else 3)):
        for engine, run in runners.items():
            if threads > 1:
                time.sleep(PAUSE_S)
            for _ in range(1 + counts[engine] // 4):
                run()
            start = clock()
            for _ in range(counts[engine]):
                run()
            found[engine].append((clock() - start) / counts[engine])
    for executable in kept:
        executable.close()
    return found


if __name__ == "__main__":
    sys.exit(main())
