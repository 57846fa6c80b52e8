"""Studies that were never run, with everything a real one can hold: noise, failures, hostile names, many rows."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np

from dlas.core.figure import Figure, Outcome, Record, Source
from dlas.explore.pareto import hypervolume, pareto_keys, reference_point, values_of
from dlas.explore.result import Objective, Point, StudyResult

OBJECTIVES = (Objective("latency_ms"), Objective("top1", minimise=False))
BACKENDS = {"onnxruntime": 1.0, "litert": 1.35, "tvm": 2.4, "torch": 1.9}

# compression: top-1, time on onnxruntime, bytes, bytes after zstd, zeros
VARIANTS = {
    "none": (0.8094, 2.41, 1_094_000, 1_003_000, 0.0),
    "int8": (0.8041, 1.02, 312_000, 241_000, 0.01),
    "int8:per_channel=false": (0.7869, 1.01, 297_000, 228_000, 0.01),
    "float16": (0.8092, 3.10, 552_000, 501_000, 0.0),
    "magnitude:sparsity=0.5": (0.7985, 2.42, 1_094_000, 611_000, 0.5),
    "magnitude:sparsity=0.8": (0.6312, 2.40, 1_094_000, 298_000, 0.8),
    "magnitude:sparsity=0.9": (0.2871, 2.39, 1_094_000, 170_000, 0.9),
    "channel:ratio=0.25": (0.7440, 1.72, 628_000, 577_000, 0.0),
    "channel:finetune_epochs=1,ratio=0.25": (0.8021, 1.71, 628_000, 577_000, 0.0),
    "channel:finetune_epochs=1,ratio=0.25 + int8": (0.7958, 0.81, 190_000, 141_000, 0.01),
}
_BLOCKS = [
    f"layer{stage}.{block}.conv{conv}" for stage in (1, 2, 3) for block in (0, 1, 2) for conv in (1, 2)
]
LAYERS = [("conv1", "Conv"), *((name, "Conv") for name in _BLOCKS), ("linear", "Gemm")]
STACK = """name = "cifar10-resnet20"

[data]
path = "cifar10-test.parquet"   # 8,000 rows

[compress]
pipeline = ["none", "int8", { method = "magnitude", sparsity = [0.5, 0.8, 0.9] }]

[runtime]
backend = ["onnxruntime", "litert", "tvm", "torch"]
threads = [1, 2]
"""
ENVIRONMENT = {
    "cpu": "AMD EPYC 9R14",
    "cpu_flags": ["avx2", "avx512f", "avx512_vnni", "avx512_bf16"],
    "isa": "x86-64-v4",
    "cores": 2,
    "cores_usable": 2,
    "memory_bytes": 25_276_502_016,
    "os": "Linux 6.1 x86_64",
    "python": "3.11.7",
    "versions": {"dlas": "0.1.0", "onnxruntime": "1.31.1", "ai-edge-litert": "2.3.0", "torch": "2.13.0"},
    "load": 0.42,
}
_TAIL = "Fatal Python error: Segmentation fault\n" + "\n".join(
    f'  File "relax/frontend.py", line {n} in visit_{n}' for n in range(30)
)


def study(name: str = "cifar10-resnet20", model: str = "resnet20") -> StudyResult:
    """A realistic study: 10 compressions x 4 back ends x 2 thread counts minus some, with every kind of failure."""
    rng = np.random.default_rng(7)
    points = []
    for compress, backend, threads in itertools.product(VARIANTS, BACKENDS, (1, 2)):
        if backend == "torch" and threads == 2 and compress != "none":
            continue
        points.append(_point(rng, compress, backend, threads))
    return finish(name, points, model=model)


def finish(name: str, points: list[Point], model: str = "resnet20", **fields: object) -> StudyResult:
    """Pareto set, hypervolume and the rest around given points."""
    front = pareto_keys(points, OBJECTIVES)
    _, values = values_of(points, OBJECTIVES)
    volume = {}
    if front:
        reference = reference_point(values)
        volume = {"value": hypervolume(values, reference), "reference": list(map(float, reference))}
    variants = dict.fromkeys(p.choices["compress"] for p in points)
    given: dict[str, object] = {
        "changes": {v: _changes(v) for v in variants},
        "facts": {
            "model": model,
            "model_source": f"models/{model}.th",
            "model_kind": "float",
            "preprocessing": {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "layout": "NCHW"},
            "dataset": "cifar10-test",
            "rows": 8000,
            "classes": 10,
            "check_rows": 512,
            "design": "grid",
            "protocol": {"rounds": 5, "min_samples": 30, "min_seconds": 1.0},
            "notes": ["calibration rows come from cifar10-train, none of which is judged"],
            "baseline": {"compress": "none", "backend": "onnxruntime", "threads": "1", "target": "host"},
        },
        "environment": ENVIRONMENT,
        "command": "dlas run examples/cifar10-resnet20.toml --set data.path=rows.parquet --out dlas-out",
        "stack": STACK,
        **fields,
    }
    return StudyResult(name, tuple(points), OBJECTIVES, front, volume, **given)  # type: ignore[arg-type]


def large(rows: int = 10_000) -> StudyResult:
    """As many rows as asked for, all over the plane, every one with layer times."""
    rng = np.random.default_rng(3)
    grid = itertools.product((f"magnitude:sparsity={n / 10_000}" for n in range(1, 10_000)), BACKENDS, (1, 2))
    points = [_point(rng, "none", "onnxruntime", 1)]
    for compress, backend, threads in itertools.islice(grid, rows - 1):
        top1 = float(rng.uniform(0.1, 0.81))
        latency = float(np.exp(rng.normal(0.3, 0.5)))
        points.append(_good(rng, compress, backend, threads, (top1, latency, 1_094_000, 600_000, 0.5)))
    return finish("large", points)


def one_point() -> StudyResult:
    """Only the baseline."""
    return finish("single", [_point(np.random.default_rng(1), "none", "onnxruntime", 1)])


def all_failed() -> StudyResult:
    """Nothing worked, not even the baseline."""
    points = []
    for index, (compress, backend) in enumerate(itertools.product(("none", "int8"), BACKENDS)):
        record = Record(Outcome.CRASH, f"{backend}: died with SIGSEGV", stderr_tail=_TAIL)
        points.append(Point(f"{index:064x}", _choices(compress, backend, 1), record, index == 0))
    return finish("all failed", points, pending=4, changes={})


def empty() -> StudyResult:
    """A study that was interrupted before its first point."""
    return StudyResult("empty", (), OBJECTIVES, pending=12)


def _choices(compress: str, backend: str, threads: int) -> dict[str, str]:
    return {"compress": compress, "backend": backend, "threads": str(threads), "target": "host"}


def _point(rng: np.random.Generator, compress: str, backend: str, threads: int) -> Point:
    failed = _failure(compress, backend)
    if failed is None:
        return _good(rng, compress, backend, threads, VARIANTS[compress])
    verdict = {Outcome.WRONG: "label-diff"}.get(failed[0])
    if failed[1].startswith("98 %"):
        verdict = "degenerate"
    good = _good(rng, compress, backend, threads, VARIANTS[compress])
    kept = (
        good.record.figures
        if verdict
        else {k: good.record.figures[k] for k in ("top1", "agreement", "model_bytes")}
    )
    facts = {**good.record.facts, "verdict": verdict} if verdict else {"notes": []}
    tail = _TAIL if failed[0] is Outcome.CRASH else ""
    return Point(
        good.key, good.choices, Record(*failed, figures=kept, facts=facts, stderr_tail=tail), False, 2.0
    )


def _failure(compress: str, backend: str) -> tuple[Outcome, str] | None:
    if backend == "tvm" and compress.endswith("int8"):
        return Outcome.CRASH, "tvm: died with SIGSEGV while building"
    if backend == "tvm" and compress == "int8:per_channel=false":
        return Outcome.TIMEOUT, "tvm: no answer within 600 s"
    if backend == "torch" and compress.startswith("int8"):
        return Outcome.UNSUPPORTED, "torch: QLinearConv has no translation (use onnxruntime or litert)"
    if backend == "litert" and compress == "float16":
        return Outcome.WRONG, "17 of 512 labels differ, 15 of them by more than rounding explains"
    if backend == "litert" and compress == "magnitude:sparsity=0.9":
        return Outcome.WRONG, "98 % of the rows get label 3"
    return None


def _good(
    rng: np.random.Generator, compress: str, backend: str, threads: int, base: tuple[float, ...]
) -> Point:
    top1, latency, size, packed, zeros = base
    factor = BACKENDS[backend] * (0.62 if threads == 2 else 1.0) * float(rng.uniform(0.93, 1.07))
    if backend == "tvm" and compress == "float16":
        factor *= 4
    latency *= factor
    spread = float(rng.uniform(0.004, 0.03))
    speedup = 2.41 / latency
    agreement = min(1.0, top1 / 0.8094 * 0.99) if compress != "none" else 1.0
    measured, estimated = Source.MEASURED, Source.ESTIMATED
    note = "noisy" if rng.random() < 0.08 else ""
    wide = spread * (6 if note else 1)
    figures = {
        "top1": Figure(top1, "fraction", measured, top1 - 0.0088, top1 + 0.0085, 8000),
        "agreement": Figure(agreement, "fraction", measured, agreement - 0.005, min(1, agreement + 0.004), 8000),
        "latency_ms": Figure(latency, "ms", measured, latency * (1 - wide), latency * (1 + wide), 240, note),
        "speedup": Figure(speedup, "ratio", measured, speedup * (1 - spread), speedup * (1 + spread), 240),
        "peak_memory_bytes": Figure(38e6 * BACKENDS[backend] + size, "bytes", measured),
        "model_bytes": Figure(size, "bytes", measured),
        "model_zstd_bytes": Figure(packed, "bytes", measured),
        "macs": Figure(40_813_184, "count", estimated),
        "params": Figure(272_474, "count", measured),
        "sparsity": Figure(zeros, "fraction", measured),
        "label_diff": Figure(0.002, "fraction", measured, 0.0, 0.011, 512),
        "sqnr_db": Figure(92.4, "dB", measured, n=512),
        "cache_misses": Figure(12_345, "count", Source.SIMULATED),
    }  # fmt: skip
    times = latency * rng.dirichlet(np.full(len(LAYERS), 3.0))
    facts = {
        "verdict": "equal" if backend != "litert" else "score-only",
        "notes": ["arithmetic in float32"] if compress == "float16" and backend != "tvm" else [],
        "noise_floor": {"flips": 0, "rows": 512, "max_abs": 2.1e-5, "relative_l2": 1.2e-7},
        "layers": [{"name": n, "op": o, "milliseconds": float(t)} for (n, o), t in zip(LAYERS, times, strict=True)],
    }  # fmt: skip
    choices = _choices(compress, backend, threads)
    key = hashlib.sha256(f"{compress}|{backend}|{threads}".encode()).hexdigest()
    baseline = (compress, backend, threads) == ("none", "onnxruntime", 1)
    return Point(key, choices, Record(Outcome.OK, figures=figures, facts=facts), baseline, 3.2)


def _changes(variant: str) -> list[dict[str, str]]:
    if variant == "none":
        return []
    after = {
        "int8": "16x16x3x3 int8, 2304 params, 0.4% zeros",
        "float16": "16x16x3x3 float16, 2304 params",
        "magnitude": "16x16x3x3 float32, 2304 params, 80.0% zeros",
        "channel": "12x12x3x3 float32, 1296 params",
    }.get(variant.partition(":")[0], "16x16x3x3 bfloat16, 2304 params")
    before = "16x16x3x3 float32, 2304 params"
    return [{"layer": name, "op": op, "before": before, "after": after} for name, op in LAYERS]
