"""How long dlas takes to read a model file, and how much memory, against the runtime that owns the format.

Claim: at most twice the time of the runtime or 0.5 s, whichever is larger, and at most three times the file in memory,
with 24 MiB on top: the graph as Python objects and the session that checks it weigh the same for a small file. Needs
DLAS_DATA.

Both take turns in one process that has loaded every library already. The runtime's time is that of a network ready to
run: an ONNX Runtime session, a LiteRT interpreter with its tensors allocated, a torch module with the checkpoint in
it, a Keras model where TensorFlow is installed. Memory is the growth of the resident set at its highest, in a fresh
process that has read another small file of the format before.

The models of the data folder are small, so a network of 64 MiB made here is read in both formats as well: there the
24 MiB hardly count.

An architecture is traced once and dlas keeps the graph: such files have a second line, ``first time``, with an
empty cache, which is reported and not part of the claim.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from _common import Row, finish, median_interval, parser, progress, ratio_interval

TIMES, SECONDS = 2.0, 0.5
SIZES, ALLOWANCE = 3.0, 24 * 2**20
TORCH = (".th", ".pt", ".pth")


def runtime_for(path: Path) -> tuple[str, Callable[[], object]] | None:
    """Name of the runtime that owns the format, and what loads the file with it; None where there is none here."""
    if path.suffix == ".onnx":
        return "onnxruntime", lambda: _session(path)
    if path.suffix == ".tflite" and find_spec("ai_edge_litert"):
        return "LiteRT", lambda: _interpreter(path)
    if path.suffix in TORCH:
        return "torch", lambda: _module(path)
    if path.suffix in (".h5", ".keras") and find_spec("tensorflow"):
        return "keras", lambda: _keras(path)
    return None


def _session(path: Path) -> object:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _interpreter(path: Path) -> object:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def _module(path: Path) -> object:
    import torch

    from dlas.models.architecture import architecture_for

    module = architecture_for(f"cifar-resnet:depth={path.stem.removeprefix('resnet')}").build()
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    module.load_state_dict({name.removeprefix("module."): t for name, t in state.items()})
    return module


def _keras(path: Path) -> object:
    import keras

    return keras.models.load_model(path, compile=False)


def read(path: Path) -> object:
    """What dlas makes of a file, in this process."""
    from dlas.graph.format import load_model

    return load_model(path)


def seconds(load: Callable[[], object]) -> float:
    """Wall time of one load; what it gives is dropped outside the clock."""
    gc.collect()
    start = time.perf_counter()
    kept = load()
    taken = time.perf_counter() - start
    del kept
    return taken


def time_file(path: Path, rounds: int) -> list[Row]:
    """Rows about time."""
    name, runtime = runtime_for(path) or ("", None)
    taken: dict[str, list[float]] = {"dlas": [], "runtime": []}
    seconds(lambda: read(path))
    if runtime is not None:
        seconds(runtime)
    for _ in range(rounds):
        if runtime is not None:
            taken["runtime"].append(seconds(runtime))
        taken["dlas"].append(seconds(lambda: read(path)))
    median, low, high = median_interval(taken["dlas"])
    figure = f"{median:.4f} s ({low:.4f} .. {high:.4f})"
    if runtime is None:
        holds = median <= SECONDS
        return [
            Row(path.name, figure, "no runtime here", median, low, high, rounds, f"<= {SECONDS} s", holds)
        ]
    own = median_interval(taken["runtime"])[0]
    ratio = ratio_interval(taken["dlas"], taken["runtime"])
    limit = max(TIMES * own, SECONDS)
    peer = f"{name}, {own:.4f} s"
    rows = [Row(path.name, figure, peer, *ratio, rounds, f"figure <= {limit:.2f} s", median <= limit)]
    if path.suffix in TORCH:
        first = fresh(path, cold=True)
        cold = f"{first['seconds']:.2f} s, {first['bytes'] / 2**20:.0f} MiB"
        rows.append(
            Row(
                f"{path.name}, first time",
                cold,
                peer,
                first["seconds"] / own,
                None,
                None,
                1,
                "(reported)",
                True,
            )
        )
    return rows


def memory_row(path: Path) -> Row:
    """The row about memory."""
    size = sum(p.stat().st_size for p in path.rglob("*")) if path.is_dir() else path.stat().st_size
    taken = sorted(fresh(path)["bytes"] for _ in range(3))
    limit = SIZES * size + ALLOWANCE
    figure = f"{taken[1] / 2**20:.1f} MiB ({taken[0] / 2**20:.1f} .. {taken[2] / 2**20:.1f})"
    peer = f"the file, {size / 2**20:.2f} MiB"
    target = f"figure <= {limit / 2**20:.1f} MiB"
    return Row(
        f"{path.name}: memory", figure, peer, taken[1] / size, None, None, 3, target, taken[1] <= limit
    )


def fresh(path: Path, cold: bool = False) -> dict[str, float]:
    """Growth and seconds of one import in a new process; with an empty cache if ``cold``."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {**os.environ, **({"DLAS_CACHE": folder} if cold else {})}
        command = [sys.executable, __file__, "--child", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=settings)
    if done.returncode:
        raise SystemExit(f"{path.name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(path: Path) -> int:
    """Read a small file of the same format, then ``path``, and tell by how much the resident set grew."""
    with tempfile.TemporaryDirectory() as folder:
        for small in _small(path, Path(folder)):
            read(small)
    gc.collect()
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # the high-water mark starts again from what is resident now
    before = _status("VmRSS")
    start = time.perf_counter()
    kept = read(path)
    taken = time.perf_counter() - start
    grown = _status("VmHWM") - before
    del kept
    print(json.dumps({"bytes": grown, "seconds": taken}))
    return 0


def _small(path: Path, folder: Path) -> list[Path]:
    """A file of the same format that is small, and not ``path`` itself; made here where that is easy."""
    if path.suffix == ".onnx":
        import onnx
        from onnx import TensorProto, helper

        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "small", ends[:1], ends[1:])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)]), folder / "small.onnx"
        )
        return [folder / "small.onnx"]
    if path.suffix in TORCH:
        import torch

        from dlas.models.architecture import architecture_for

        torch.save(architecture_for("digits-cnn").build().state_dict(), folder / "small.pt")
        return [folder / "small.pt"]
    models = Path(os.environ["DLAS_DATA"]) / "models"
    beside = [p for p in _files(models) if p.suffix == path.suffix and p != path]
    return sorted(beside, key=lambda p: p.stat().st_size)[:1]


def large_files(folder: Path) -> list[Path]:
    """A network of 64 MiB of weights, as an ONNX file of an old and of the current opset, and as tflite."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    import dlas

    size, layers = 1024, 16
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((size, size), np.float32) / 32, f"w{i}")
        for i in range(layers)
    ]
    nodes = [helper.make_node("Gemm", [f"x{i}", f"w{i}"], [f"x{i + 1}"], transB=1) for i in range(layers)]
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["N", size]) for i in (0, layers)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    made = []
    for opset in (11, 18):
        made.append(folder / f"large-opset{opset}.onnx")
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7), made[-1]
        )
    if find_spec("ai_edge_litert"):
        made.append(folder / "large.tflite")
        dlas.save(dlas.load(made[1]), made[-1])
    return made


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}")


def _files(folder: Path) -> list[Path]:
    from dlas.graph.format import formats

    endings = {ending for _, member in formats.members() for ending in member.suffixes}
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in endings)


def main() -> int:
    """Entry point."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15, help="rounds, each loads the file with both")
    options.add_argument("--only", default="", metavar="TEXT", help="files whose name holds TEXT")
    options.add_argument("--child", type=Path, metavar="FILE", help="for the script itself")
    given = options.parse_args()
    if given.child:
        return child(given.child)
    data = os.environ.get("DLAS_DATA")
    if not data:
        options.error("DLAS_DATA must name the folder with models/")
    times: list[Row] = []
    memory: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in _files(Path(data) / "models") + large_files(Path(folder)):
            if given.only not in path.name:
                continue
            if path.suffix in (".h5", ".keras") and not find_spec("tensorflow"):
                progress(f"{path.name}: skipped, TensorFlow is not installed")
                continue
            progress(path.name)
            times += time_file(path, given.rounds)
            memory.append(memory_row(path))
    return finish("Import of model files, against the runtime of the format", times + memory, given.json)


if __name__ == "__main__":
    sys.exit(main())
