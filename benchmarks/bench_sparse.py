"""Convolutions with unstructured sparse weights: dlas without the zeros, against dense ones with them.

Claim: at 90 % zeros the better of csr-direct and csr-gemm is at least 1.9 times as fast as ONNX Runtime, which computes
the zeros; what the estimate takes is never much slower than the best of the three. One thread, processor time, all in
turn in one process. Of the kernels, only spatial-pack (dense) works in a layout of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from _common import Row, finish, median_interval, parser, progress, ratio_interval

LAYERS = ((128, 28), (64, 32), (256, 14))  # channels, side
SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
GOAL = 1.9  # over onnxruntime at 90 %
WRONG_CHOICE = 1.15  # the estimate's kernel over the best
SPARSE = ("csr-direct", "csr-gemm")
DENSE = "spatial-pack"
BLOCK_S = 0.01  # processor time of one sample


@dataclass(frozen=True)
class Layer:
    """A square 3x3 convolution with padding 1.

    Attributes:
        channels: In and out.
        side: Rows and columns.
        sparsity: Share of the weights that are 0.
    """

    channels: int
    side: int
    sparsity: float

    @property
    def name(self) -> str:
        """Filters by taps, side, zeros."""
        return f"{self.channels}x{9 * self.channels}@{self.side}, {self.sparsity:.0%} zeros"

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Input and weights; exactly this share of the weights is 0."""
        rng = np.random.default_rng(self.channels)
        x = rng.standard_normal((1, self.channels, self.side, self.side), dtype=np.float32)
        w = rng.standard_normal((self.channels, self.channels, 3, 3), dtype=np.float32)
        w.reshape(-1)[rng.permutation(w.size)[: round(self.sparsity * w.size)]] = 0
        return x, w


def with_onnxruntime(layer: Layer) -> tuple[Callable[[], object], np.ndarray]:
    """What runs the layer once, and its output."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    x, w = layer.arrays()
    shape = list(x.shape)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    y = np.empty_like(x)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    session.run_with_iobinding(binding)
    return lambda: session.run_with_iobinding(binding), y


def with_dlas(layer: Layer, expected: np.ndarray) -> tuple[dict[str, Callable[[], object]], str]:
    """What runs the layer once by each kernel, and the kernel that the estimate takes."""
    from dlas.kernels.kernel import Context, Node, Operand, kernels
    from dlas.kernels.single import Bench

    x, w = layer.arrays()
    attributes = {
        "kernel_shape": [3, 3],
        "strides": [1, 1],
        "dilations": [1, 1],
        "pads": [1, 1, 1, 1],
        "group": 1,
    }
    node = Node("Conv", layer.name, attributes, (Operand(x.shape), Operand.of(w)), (Operand(x.shape),))
    context, runs, costs = Context.here(1), {}, {}
    for name in (*SPARSE, DENSE):
        kernel = kernels.get(name)()
        form = kernel.forms(node, context)[0]
        bench = Bench(kernel, node, [x, None], context, form)
        if not np.allclose(bench.run()[0], expected, atol=1e-3):
            raise SystemExit(f"{layer.name}: {name} and onnxruntime disagree")
        runs[name], costs[name] = bench.caller(), kernel.cost(node, form, context)
    return runs, min(costs, key=lambda name: costs[name])


def sample(run: Callable[[], object], count: int) -> float:
    """Processor milliseconds per run."""
    start = time.process_time()
    for _ in range(count):
        run()
    return (time.process_time() - start) / count * 1e3


def measure(layer: Layer, rounds: int) -> tuple[dict[str, list[float]], str]:
    """Milliseconds of everyone, round by round, and the kernel that the estimate takes."""
    peer, expected = with_onnxruntime(layer)
    runs, taken = with_dlas(layer, expected)
    runs["onnxruntime"] = peer
    counts = {}
    for name, run in runs.items():
        run()
        counts[name] = max(1, round(BLOCK_S * 1e3 / max(min(sample(run, 2) for _ in range(3)), 1e-3)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()  # its data back into the caches
            times[name].append(sample(run, counts[name]))
    return times, taken


def rows_of(layer: Layer, times: dict[str, list[float]], taken: str) -> list[Row]:
    """The better sparse kernel over both dense ones, and what the estimate took over the best."""
    medians = {name: float(np.median(values)) for name, values in times.items()}
    sparse = min(SPARSE, key=lambda name: medians[name])
    own, low, high = median_interval(times[sparse])
    rows = []
    for peer in ("onnxruntime", DENSE):
        ratio, r_low, r_high = ratio_interval(times[peer], times[sparse])
        must = peer == "onnxruntime" and layer.sparsity == 0.9
        rows.append(
            Row(
                f"{layer.name}: {sparse}",
                f"{own:.3f} ({low:.3f} .. {high:.3f}) ms",
                f"{peer} {medians[peer]:.3f} ms",
                ratio,
                r_low,
                r_high,
                len(times[sparse]),
                f"at least {GOAL}" if must else "",
                ratio >= GOAL if must else True,
            )
        )
    best = min((*SPARSE, DENSE), key=lambda name: medians[name])
    ratio, low, high = ratio_interval(times[taken], times[best])
    rows.append(
        Row(
            f"{layer.name}: the estimate takes {taken}",
            f"{medians[taken]:.3f} ms",
            f"{best} {medians[best]:.3f} ms",
            ratio,
            low,
            high,
            len(times[best]),
            f"at most {WRONG_CHOICE}",
            ratio <= WRONG_CHOICE,
        )
    )
    return rows


def main() -> int:
    """Measure, print, and say whether the claim holds."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15, help="samples of each (default 15)")
    given = options.parse_args()
    rows, details = [], []
    for channels, side in LAYERS:
        for sparsity in SPARSITIES:
            layer = Layer(channels, side, sparsity)
            progress(layer.name)
            times, taken = measure(layer, given.rounds)
            rows += rows_of(layer, times, taken)
            details.append({"layer": layer.name, "milliseconds": times, "taken": taken})
    return finish("Sparse convolutions, one thread", rows, given.json, details)


if __name__ == "__main__":
    sys.exit(main())
