"""dlas's ONNX Runtime latency against a bare onnxruntime loop with the same settings, taken in turn.

Claim: what dlas reports is within 2 % of what the user's own loop would show. Three candidates take turns on the same
processor: a bare loop, written here without dlas; dlas's Sampler in this process; dlas's session in a worker process,
which is where ``dlas run`` and ``dlas bench`` measure.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _common import Row, finish, median_interval, parser, progress, ratio_interval

LIMIT = 0.02


class BareLoop:
    """An onnxruntime session and a clock."""

    def __init__(self, model: bytes, feed: dict[str, np.ndarray], threads: int) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        self._feed = feed

    def round(self, seconds: float) -> float:
        """Median milliseconds per run."""
        session, feed, taken = self._session, self._feed, []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            start = time.perf_counter_ns()
            session.run(None, feed)
            taken.append(time.perf_counter_ns() - start)
        return float(np.median(taken)) / 1e6


def compare(path: str, threads: int, rounds: int, seconds: float) -> list[Row]:
    """Rows for one network."""
    import dlas
    from dlas.core.timing import Protocol, Sampler
    from dlas.runtime.bench import WorkerSampler

    model = dlas.load(path)
    progress(f"{model.name}, {threads} thread(s)")
    spec = model.inputs[0]
    feed = {spec.name: np.random.default_rng(0).standard_normal(spec.bound(1)).astype(spec.dtype)}
    bare = BareLoop(model.to_bytes(), feed, threads)
    protocol = Protocol()
    worker = WorkerSampler(threads, 600.0)
    with dlas.compile(model, threads=threads) as executable, tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        artifact.mkdir()
        (Path(folder) / "model.onnx").write_bytes(model.to_bytes())
        worker.call("build", "onnxruntime", str(Path(folder) / "model.onnx"), "host", str(artifact), 1)
        worker.open("onnxruntime", str(artifact), "host", threads)
        worker.call("feed", feed)
        samplers = {
            "Sampler, this process": Sampler(executable.runner(feed)),
            "session, worker process": worker,
        }
        for sampler in samplers.values():
            sampler.warm_up(protocol)
        bare.round(protocol.warmup_s)
        times: dict[str, list[float]] = {name: [] for name in ("bare", *samplers)}
        for _ in range(rounds):
            times["bare"].append(bare.round(seconds))
            for name, sampler in samplers.items():
                times[name].append(float(np.median(sampler.sample(seconds))))
        worker.close()
    rows = []
    for name in samplers:
        ratio, low, high = ratio_interval(times[name], times["bare"])
        value = f"{median_interval(times[name])[0]:.4g} ms"
        target = f"within {LIMIT:.0%} of 1"
        holds = abs(ratio - 1) <= LIMIT
        peer = f"bare onnxruntime loop, {median_interval(times['bare'])[0]:.4g} ms"
        rows.append(Row(f"{model.name}: dlas {name}", value, peer, ratio, low, high, rounds, target, holds))
    return rows


def main() -> int:
    """Entry point."""
    options = parser(__doc__)
    options.add_argument(
        "--model", action="append", help="network to time (repeat); default digits-cnn and ResNet-20"
    )
    options.add_argument("--threads", type=int, default=1, help="threads, pinned to as many processors")
    options.add_argument("--rounds", type=int, default=20, help="rounds, each visits every candidate")
    options.add_argument("--seconds", type=float, default=0.3, help="seconds per candidate and round")
    given = options.parse_args()
    # The worker inherits this, so all candidates run on the same processors.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    networks = given.model or ["digits-cnn"]
    if not given.model and os.environ.get("DLAS_DATA"):
        networks.append("models/cifar-resnet/resnet20.th")
    rows = [row for path in networks for row in compare(path, given.threads, given.rounds, given.seconds)]
    return finish("ONNX Runtime latency as dlas reports it, against a bare loop", rows, given.json)


if __name__ == "__main__":
    sys.exit(main())
