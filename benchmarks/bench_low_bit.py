"""4-bit weights by 8-bit activations against ONNX Runtime's int8 and 4-bit products and torch's int8 one.

Claims: for one row the time is that of reading the weights (at least 90 % of the measured bandwidth at their size),
at least 1.9 times as fast as int8 and 1.5 times as fast as MatMulNBits at 4096 x 4096. One thread, processor time,
candidates take turns; every sample is the mean of a block of calls of about 2 ms.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from _common import Row, finish, median_interval, parser, progress, ratio_interval

SHAPES = (
    (1, 1024, 1024), (1, 4096, 4096), (4, 4096, 4096), (8, 1024, 1024), (16, 1024, 1024), (128, 1024, 1024),
    (784, 128, 1152), (256, 2048, 2048),
)  # fmt: skip
BLOCK = 32
GEMV_GOALS = {"onnxruntime MatMulInteger u8s8": 1.9, "onnxruntime MatMulNBits": 1.5}


def node_session(
    op: str, domain: str, feeds: dict, constants: dict, dtype: int, shape: list[int], **attributes
):
    """A call of a network of one node in onnxruntime, one thread."""
    import onnx
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    types = {"float32": 1, "uint8": 2, "int8": 3}
    inputs = [helper.make_tensor_value_info(n, types[a.dtype.name], a.shape) for n, a in feeds.items()]
    node = helper.make_node(op, [*feeds, *constants], ["y"], domain=domain, **attributes)
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info("y", dtype, shape)],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)


def candidates(m: int, n: int, k: int, rng: np.random.Generator) -> dict[str, Callable[[], object]]:
    """Calls that compute ``(m, k) @ (k, n)``, by name."""
    import torch

    from dlas.kernels.formats.block import quantize
    from dlas.kernels.formats.int4 import pack_w4
    from dlas.kernels.kernel import Context, Node, Operand, kernels
    from dlas.kernels.matmul import w4a8_node
    from dlas.kernels.single import Bench

    context = Context.here(1)
    a8 = rng.integers(0, 256, (m, k)).astype(np.uint8)
    a = rng.standard_normal((m, k)).astype(np.float32)
    w = rng.integers(-8, 8, (k, n)).astype(np.int8)
    packed = pack_w4(w)
    scales = rng.random(n).astype(np.float32)
    grouped = rng.random((k // BLOCK, n)).astype(np.float16).astype(np.float32)

    def ours(name: str, node: Node, x: np.ndarray) -> Callable[[], object]:
        return Bench(kernels.get(name)(), node, [x, *[None] * (len(node.inputs) - 1)], context).caller()

    def po2(name: str) -> Callable[[], object]:
        inputs = (Operand(a.shape), Operand.of(packed.data), Operand.of(scales), None, None)
        return ours(name, Node("MatMulPo2", "x", {"K": k, "N": n, "zero": 1}, inputs, (Operand((m, n)),)), a)

    def blocks(kind: str) -> Callable[[], object]:
        # Q4_K's own quantizer searches for long: the time does not depend on the values.
        form = (
            np.zeros((n, k // 256 * 144), np.uint8)
            if kind == "Q4_K"
            else quantize(kind, np.ascontiguousarray(w.T, np.float32))
        )
        node = Node(f"MatMul{kind}", "x", {}, (Operand(a.shape), Operand.of(form)), (Operand((m, n)),))
        return ours(kind.lower().replace("_", "-"), node, a)

    codes = (w.T.reshape(n, k // BLOCK, BLOCK // 2, 2) + 8).astype(np.uint8)
    found = {
        "w4a8 u8": ours("w4a8", w4a8_node(a8, packed, scales, 128), a8),
        "w4a8 f32": ours("w4a8", w4a8_node(a, packed, scales), a),
        f"w4a8 f32, groups of {BLOCK}": ours("w4a8", w4a8_node(a, packed, grouped, group_size=BLOCK), a),
        "onnxruntime MatMulInteger u8s8": node_session(
            "MatMulInteger", "", {"a": a8}, {"w": w}, 6, [m, n]
        ),
        "onnxruntime MatMulNBits": node_session(
            "MatMulNBits", "com.microsoft", {"a": a},
            {"w": codes[..., 0] | codes[..., 1] << 4, "s": np.ascontiguousarray(grouped.T).reshape(-1)},
            1, [m, n], K=k, N=n, bits=4, block_size=BLOCK, accuracy_level=4,
        ),
    }  # fmt: skip
    if m > 16:  # torch refuses fewer rows
        left, right = torch.from_numpy(a8.astype(np.int8)), torch.from_numpy(w)
        found["torch _int_mm"] = lambda: torch._int_mm(left, right)
    if m == 1:
        found |= {"po2-gemv": po2("po2-gemv"), "po2-shift": po2("po2-shift")}
        found |= {kind: blocks(kind) for kind in ("Q4_0", "Q8_0", "Q4_K")}
    return found


def block_of(call: Callable[[], object], seconds: float = 2e-3) -> int:
    """Calls that take about ``seconds``."""
    call()
    count = 1
    while True:
        start = time.process_time()
        for _ in range(count):
            call()
        if time.process_time() - start >= seconds:
            return count
        count *= 2


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, in ``rounds`` turns."""
    counts = {name: block_of(call) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            start = time.process_time()
            for _ in range(counts[name]):
                call()
            taken[name].append((time.process_time() - start) / counts[name] * 1e3)
    return taken


def share_of_reads(m: int, n: int, k: int, rounds: int) -> Row:
    """How near "w4a8 u8" comes to reading as many bytes; both take turns: the L3 is shared with other machines."""
    from dlas.kernels.extension import choose_isa, need_native

    call, size, native = candidates(m, n, k, np.random.default_rng(0))["w4a8 u8"], n * k // 2, need_native()
    count, ours, reads = block_of(call, 1e-3), [], []
    for _ in range(rounds):
        # One pass does not bring the weights back into a cache that takes only what is evicted.
        for _ in range(4):
            call()
        blocks = []
        for _ in range(3):  # the best of blocks, as of the reads: a mean against a minimum would say less
            start = time.process_time()
            for _ in range(count):
                call()
            blocks.append((time.process_time() - start) / count * 1e3)
        ours.append(min(blocks))
        reads.append(size / native.read_bandwidth(choose_isa(), 1, 6e-3, size) / 1e6)
    share, low, high = ratio_interval(reads, ours)
    middle, bound = (size / median_interval(v)[0] / 1e6 for v in (ours, reads))
    peer = f"reads of as many bytes, {bound:.1f} GB/s"
    name = f"{m}x{n}x{k} w4a8 u8"
    return Row(name, f"{middle:.1f} GB/s", peer, share, low, high, rounds, ">= 0.9", share >= 0.9)


def rows_of(m: int, n: int, k: int, rounds: int, details: list[dict]) -> list[Row]:
    """Rows for one shape."""
    progress(f"{m} x {n} x {k}")
    taken = measure(candidates(m, n, k, np.random.default_rng(0)), rounds)
    for name, samples in taken.items():
        middle, low, high = median_interval(samples)
        least = min(samples)
        details.append(
            {"m": m, "n": n, "k": k, "case": name, "ms": middle, "low": low, "high": high, "min": least}
        )
        progress(f"  {name:34} {middle:.4f} ms ({low:.4f} .. {high:.4f}), least {least:.4f}")
    found = []
    peers = [p for p in taken if p.startswith(("onnxruntime", "torch"))]
    for peer in peers:
        case = f"w4a8 f32, groups of {BLOCK}" if "NBits" in peer else "w4a8 u8"
        middle = median_interval(taken[case])[0]
        ratio, low, high = ratio_interval(taken[peer], taken[case])
        goal = GEMV_GOALS.get(peer) if (m, n) == (1, 4096) else None
        if m >= 16:
            goal = 5.0 if "NBits" in peer else 0.9 if "Integer" in peer else None
        found.append(
            Row(
                f"{m}x{n}x{k} {case}",
                f"{middle:.4f} ms",
                peer,
                ratio,
                low,
                high,
                rounds,
                f">= {goal:g}" if goal else "",
                goal is None or ratio >= goal,
            )
        )
    if m == 1:
        found.append(share_of_reads(m, n, k, rounds))
    return found


def main() -> int:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=31)
    options.add_argument("--only", help="M,N,K instead of the table's shapes")
    given = options.parse_args()
    import torch

    torch.set_num_threads(1)
    shapes = [tuple(map(int, given.only.split(",")))] if given.only else SHAPES
    details: list[dict] = []
    rows = [row for m, n, k in shapes for row in rows_of(m, n, k, given.rounds, details)]
    title = "8-bit activations by 4-bit weights, 1 thread (ratio: how many times as fast as the peer)"
    return finish(title, rows, given.json, details)


if __name__ == "__main__":
    sys.exit(main())
