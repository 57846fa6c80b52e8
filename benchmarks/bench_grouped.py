"""Grouped 3x3 convolutions: the best kernel of dlas against single-layer sessions of other engines.

Claim: over (channels, side) in (64, 32), (128, 28), (256, 14) and 4 to 32 groups dlas is at least 2.5 times as fast as
ONNX Runtime, 2.4 times torch and 3.2 times OpenVINO (geometric means), and nowhere slower than 0.95 times the best.
One thread, processor time, all engines in turn in one process. The peers take and give the plain layout, as their
sessions do; dlas's kernel works in its own layout, as it does inside a network, and in a last set of rows in the plain
one. Where the best kernel does fewer products than the definition (Winograd's filtering, which ``exact`` leaves out),
its row says so, and "dlas, direct" is the best kernel that does all of them. GFLOP/s count the definition's.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from _common import Row, finish, median_interval, parser, progress, ratio_interval

SIZES = ((64, 32), (128, 28), (256, 14))
GROUPS = (1, 4, 8, 16, 32)
GOALS = {"onnxruntime": 2.5, "torch": 2.4, "openvino": 3.2}
FLOOR = 0.95  # of the best peer
SCALING = 0.15  # time of 16 groups over that of one, 128 channels
BLOCK_S = 0.008  # processor time of one sample
ROLES = ("dlas", "dlas, direct", "dlas, plain")


@dataclass(frozen=True)
class Candidate:
    """A kernel of dlas, prepared for a layer.

    Attributes:
        plain: Whether it works in the plain layout.
        exact: Whether it differs from the definition by rounding only, and so does all its products.
        run: Once.
        output: Run and give the result.
    """

    plain: bool
    exact: bool
    run: Callable[[], object]
    output: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Layer:
    """A square 3x3 convolution with padding 1.

    Attributes:
        channels: In and out.
        side: Rows and columns.
        groups: Groups.
    """

    channels: int
    side: int
    groups: int

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.channels}x{self.side}x{self.side} g={self.groups}"

    @property
    def flop(self) -> float:
        """Operations, two per multiply-accumulate."""
        return 2.0 * 9 * self.channels * self.side**2 * self.channels / self.groups

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Input, weights, bias."""
        rng = np.random.default_rng(self.channels + self.groups)
        x = rng.standard_normal((1, self.channels, self.side, self.side))
        w = rng.standard_normal((self.channels, self.channels // self.groups, 3, 3))
        b = rng.standard_normal(self.channels)
        return x.astype(np.float32), w.astype(np.float32), b.astype(np.float32)

    def onnx(self) -> bytes:
        """A model of this layer alone."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        _, w, b = self.arrays()
        shape = [1, self.channels, self.side, self.side]
        node = helper.make_node(
            "Conv", ["x", "w", "b"], ["y"], group=self.groups, pads=[1, 1, 1, 1], kernel_shape=[3, 3]
        )
        graph = helper.make_graph(
            [node],
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        return model.SerializeToString()


def with_onnxruntime(layer: Layer) -> tuple[Callable[[], object], Callable[[], np.ndarray]]:
    """What runs the layer once, and what gives its output."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.inter_op_num_threads = 1
    session = ort.InferenceSession(layer.onnx(), settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    x = layer.arrays()[0]
    binding.bind_cpu_input("x", x)
    y = np.empty_like(x)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    return lambda: session.run_with_iobinding(binding), lambda: y


def with_torch(layer: Layer) -> tuple[Callable[[], object], Callable[[], np.ndarray]]:
    """What runs the layer once, and what gives its output."""
    import torch

    torch.set_num_threads(1)
    x, w, b = (torch.from_numpy(a) for a in layer.arrays())

    def run() -> object:
        with torch.inference_mode():
            return torch.nn.functional.conv2d(x, w, b, padding=1, groups=layer.groups)

    return run, lambda: run().numpy()  # type: ignore[attr-defined]


def with_openvino(layer: Layer) -> tuple[Callable[[], object], Callable[[], np.ndarray]]:
    """What runs the layer once, and what gives its output."""
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    request = core.compile_model(core.read_model(layer.onnx(), b""), "CPU", settings).create_infer_request()
    x = layer.arrays()[0]
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))

    def run() -> None:
        request.start_async()
        request.wait()

    return run, lambda: request.get_output_tensor().data.copy()


def with_dlas(layer: Layer, names: list[str] | None) -> dict[str, Candidate]:
    """Every kernel that takes the layer, by its name, algorithm and layout."""
    from dlas.kernels.kernel import Context, Node, Operand, kernels
    from dlas.kernels.layout import Layout
    from dlas.kernels.single import Bench

    x, w, b = layer.arrays()
    attributes = {
        "kernel_shape": [3, 3],
        "strides": [1, 1],
        "dilations": [1, 1],
        "pads": [1, 1, 1, 1],
        "group": layer.groups,
    }
    node = Node(
        "Conv",
        layer.name,
        attributes,
        (Operand(x.shape), Operand.of(w), Operand.of(b)),
        (Operand(x.shape),),
    )
    context, found = Context.here(1), {}
    for name in names or kernels.names():
        kernel = kernels.get(name)()
        if "Conv" not in kernel.ops or kernel.missing() or kernel.refuses(node, context):
            continue
        for form in kernel.forms(node, context):
            bench = Bench(kernel, node, [x, None, None], context, form)
            plain = form.inputs[0] is Layout.PLAIN and form.outputs[0] is Layout.PLAIN
            how = (
                f"{name}, {form.inputs[0]}" if kernel.exact else f"{name} (fewer products), {form.inputs[0]}"
            )
            found[how] = Candidate(plain, kernel.exact, bench.caller(), lambda bench=bench: bench.run()[0])
    return found


def sample(run: Callable[[], object], count: int) -> float:
    """Processor milliseconds per run."""
    start = time.process_time()
    for _ in range(count):
        run()
    return (time.process_time() - start) / count * 1e3


def runs_per_sample(run: Callable[[], object]) -> int:
    """As many as fill a sample."""
    run()
    once = min(sample(run, 3) for _ in range(3)) / 1e3
    return max(1, round(BLOCK_S / max(once, 1e-6)))


def fastest(kernels: dict[str, Callable[[], object]]) -> str:
    """The kernel with the shortest of a few samples."""
    counts = {name: runs_per_sample(run) for name, run in kernels.items()}
    best = dict.fromkeys(kernels, float("inf"))
    for _ in range(5):
        for name, run in kernels.items():
            best[name] = min(best[name], sample(run, counts[name]))
    return min(best, key=lambda name: best[name])


def measure(
    layer: Layer, rounds: int, names: list[str] | None
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Milliseconds of every engine, round by round, and which kernel stood for each of ``ROLES``."""
    kernels = with_dlas(layer, names)
    among = (
        kernels,
        {n: k for n, k in kernels.items() if k.exact},
        {n: k for n, k in kernels.items() if k.plain},
    )
    chosen = {
        role: fastest({name: kernel.run for name, kernel in some.items()})
        for role, some in zip(ROLES, among, strict=True)
    }
    peers = {
        "onnxruntime": with_onnxruntime(layer),
        "torch": with_torch(layer),
        "openvino": with_openvino(layer),
    }
    runs = {role: kernels[name].run for role, name in chosen.items()} | {n: p[0] for n, p in peers.items()}
    counts = {name: runs_per_sample(run) for name, run in runs.items()}
    wanted = peers["onnxruntime"]
    wanted[0]()
    for name in chosen.values():
        if not np.allclose(kernels[name].output(), wanted[1](), atol=1e-3):
            raise SystemExit(f"{layer.name}: {name} and onnxruntime disagree")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(sample(run, counts[name]))
    return times, chosen


def rows_of(layer: Layer, times: dict[str, list[float]], chosen: dict[str, str]) -> list[Row]:
    """One row per peer for each of ``ROLES``."""
    rows = []
    for role, kernel in chosen.items():
        own, low, high = median_interval(times[role])
        value = f"{own:.4f} ({low:.4f} .. {high:.4f}) ms, {layer.flop / own / 1e6:.0f} GFLOP/s"
        for peer in GOALS:
            ratio, low, high = ratio_interval(times[peer], times[role])
            target, holds = (f"at least {FLOOR}", ratio >= FLOOR) if role == "dlas" else ("", True)
            named = f"{peer} {median_interval(times[peer])[0]:.4f} ms"
            rows.append(
                Row(
                    f"{layer.name}: {role} = {kernel}",
                    value,
                    named,
                    ratio,
                    low,
                    high,
                    len(times[role]),
                    target,
                    holds,
                )
            )
    return rows


def means(all_times: dict[Layer, dict[str, list[float]]]) -> list[Row]:
    """Geometric means over the grouped layers, and how time shrinks with the groups."""
    grouped = [layer for layer in all_times if layer.groups > 1]
    rows = []
    for role in ROLES:
        for peer, goal in GOALS.items():
            logs = [
                np.log(np.array(all_times[layer][peer]) / np.array(all_times[layer][role]))
                for layer in grouped
            ]
            rounds = np.exp(np.mean(logs, axis=0)) if logs else np.array([np.nan])
            ratio, low, high = median_interval(list(rounds))
            target, holds = (f"at least {goal}", ratio >= goal) if role == "dlas" else ("", True)
            rows.append(
                Row("geometric mean, g > 1", role, peer, ratio, low, high, len(rounds), target, holds)
            )
    one, sixteen = Layer(128, 28, 1), Layer(128, 28, 16)
    if one in all_times and sixteen in all_times:
        for role in ROLES[:2]:
            ratio, low, high = ratio_interval(all_times[sixteen][role], all_times[one][role])
            case, count = "128x28x28: 16 groups over 1", len(all_times[one][role])
            holds = ratio <= SCALING
            rows.append(Row(case, role, "itself", ratio, low, high, count, f"at most {SCALING}", holds))
    return rows


def main() -> int:
    """Entry point."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15, help="rounds, each visits every engine")
    options.add_argument("--groups", type=int, nargs="+", default=list(GROUPS), help="numbers of groups")
    options.add_argument("--kernels", nargs="+", help="kernels of dlas to choose from; default all")
    given = options.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    all_times: dict[Layer, dict[str, list[float]]] = {}
    rows: list[Row] = []
    for channels, side in SIZES:
        for groups in given.groups:
            layer = Layer(channels, side, groups)
            progress(layer.name)
            all_times[layer], chosen = measure(layer, given.rounds, given.kernels)
            rows += rows_of(layer, all_times[layer], chosen)
    rows += means(all_times)
    details = [{"layer": layer.name, "ms": times} for layer, times in all_times.items()]
    return finish("Grouped 3x3 convolutions, one thread (ratio: peer over dlas)", rows, given.json, details)


if __name__ == "__main__":
    sys.exit(main())
