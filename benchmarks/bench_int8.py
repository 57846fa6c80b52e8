"""int8 networks and layers: the engine's own kernels against LiteRT (XNNPACK) and ONNX Runtime, one thread.

Networks: every int8 network of the data folder, with LiteRT's own rounding, so that both give the same bytes. Layers:
convolutions of ResNet-8 and MobileNetV2 as single nodes against ONNX Runtime's QLinearConv. Samples are CPU time per
call, least of a few blocks, taken in turn with the peer's; a ratio below 1 means that dlas takes less.

    python benchmarks/bench_int8.py DATA_FOLDER [--only networks|layers] [--rounds 15]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import Row, finish, parser, progress, ratio_interval

from dlas.graph.format import load_model
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.single import Bench
from dlas.runtime.engine.lower import lower
from dlas.runtime.engine.passes import run_passes
from dlas.runtime.engine.program import Bound, Program
from dlas.runtime.engine.quantized import lower_quantized
from dlas.runtime.engine.select import candidates, choose

NETWORKS = {
    "ResNet-8": "mlperf-tiny/ic_resnet8_int8.tflite",
    "DS-CNN": "mlperf-tiny/kws_dscnn_int8.tflite",
    "wake word": "mlperf-tiny/streaming_wakeword_int8.tflite",
    "autoencoder": "mlperf-tiny/ad01_autoencoder_int8.tflite",
    "MobileNetV1 0.25 128": "imagenet/mobilenet_v1_0.25_128_int8.tflite",
    "MobileNetV1 0.25 128 uint8": "imagenet/mobilenet_v1_0.25_128_uint8.tflite",
    "MobileNetV2 224": "imagenet/mobilenetv2_1.0_224_int8.tflite",
    "MobileNetV2 224 (4-bit steps)": "pot/apot_mobilenetv2_4bit_imagenet.tflite",
    "ResNet-20 (4-bit steps)": "pot/apot_resnet20_4bit_cifar10.tflite",
}
# network, input channels, size, output channels, kernel, stride; equal channels and "depthwise" where named so
LAYERS = [
    ("ResNet-8", 3, 32, 16, 3, 1), ("ResNet-8", 16, 32, 16, 3, 1), ("ResNet-8", 32, 16, 32, 3, 1),
    ("ResNet-8", 64, 8, 64, 3, 1), ("MobileNetV2", 3, 224, 32, 3, 2), ("MobileNetV2", 32, 112, 16, 1, 1),
    ("MobileNetV2", 16, 112, 96, 1, 1), ("MobileNetV2", 24, 56, 144, 1, 1), ("MobileNetV2", 144, 28, 32, 1, 1),
    ("MobileNetV2", 384, 14, 64, 1, 1), ("MobileNetV2", 160, 7, 960, 1, 1), ("MobileNetV2", 320, 7, 1280, 1, 1),
    ("depthwise", 32, 112, 32, 3, 1), ("depthwise", 96, 112, 96, 3, 2), ("depthwise", 144, 56, 144, 3, 1),
    ("depthwise", 384, 14, 384, 3, 1), ("depthwise", 960, 7, 960, 3, 1),
]  # fmt: skip


def main() -> int:
    """Measure and print; the exit code is 1 where a target is missed."""
    options = parser(__doc__)
    options.add_argument(
        "data", type=Path, help="folder that holds models/mlperf-tiny, models/imagenet, models/pot"
    )
    options.add_argument("--only", choices=["networks", "layers"], help="half of it")
    options.add_argument("--rounds", type=int, default=15, help="samples of each side")
    given = options.parse_args()
    rows: list[Row] = []
    if given.only != "layers":
        for name, file in NETWORKS.items():
            progress(name)
            rows.append(network(name, given.data / "models" / file, given.rounds))
    if given.only != "networks":
        for layer in LAYERS:
            progress(" ".join(map(str, layer)))
            rows.append(one_layer(layer, given.rounds))
    return finish("int8, one thread, CPU time", rows, given.json)


def network(name: str, path: Path, rounds: int) -> Row:
    """A whole network against LiteRT's default, which must give the same bytes."""
    from ai_edge_litert.interpreter import Interpreter

    lowered = run_passes(lower_quantized(lower(load_model(path)), "xnnpack"))
    context = Context.here(1)
    program = Program(lowered, choose(lowered, candidates(lowered, context, [], exact=True)), context)
    theirs = Interpreter(str(path), num_threads=1)
    theirs.allocate_tensors()
    (operand,) = lowered.inputs.values()
    rng = np.random.default_rng(0)
    x = rng.random(operand.shape, np.float32) if operand.dtype == "float32" else None
    if x is None:
        limits = np.iinfo(operand.dtype)
        x = rng.integers(limits.min, limits.max + 1, operand.shape).astype(operand.dtype)
    theirs.set_tensor(theirs.get_input_details()[0]["index"], x)
    theirs.invoke()
    expected = theirs.get_tensor(theirs.get_output_details()[0]["index"])
    y = np.empty(expected.shape, expected.dtype)
    program.bind(Bound([x], [y]))
    program.run()
    if not np.array_equal(y, expected):
        raise SystemExit(f"{name}: {int((y != expected).sum())} of {y.size} outputs differ from LiteRT's")
    return compared(name, program.run, theirs.invoke, "LiteRT", rounds)


def one_layer(layer: tuple[str, int, int, int, int, int], rounds: int) -> Row:
    """A convolution of bytes, ONNX's rounding, against a session of one QLinearConv; both must give the same bytes."""
    kind, ins, size, outs, kernel, stride = layer
    groups = ins if kind == "depthwise" else 1
    rng = np.random.default_rng(0)
    pad, out = (kernel - 1) // 2, (size + 2 * ((kernel - 1) // 2) - kernel) // stride + 1
    x = rng.integers(0, 256, (1, ins, size, size)).astype(np.uint8)
    w = rng.integers(-127, 128, (outs, ins // groups, kernel, kernel)).astype(np.int8)
    bias = rng.integers(-2000, 2000, outs).astype(np.int32)
    scales = np.full(outs, np.float32(0.02) * np.float32(0.003) / np.float32(0.05), np.float32)
    attributes: dict[str, Any] = {
        "kernel_shape": (kernel, kernel), "strides": (stride, stride), "dilations": (1, 1), "pads": (pad,) * 4,
        "group": groups, "x_zero_point": 124, "y_zero_point": 0, "rounding": "onnx",
    }  # fmt: skip
    inputs = (Operand(x.shape, "uint8"), Operand.of(w), Operand.of(bias), Operand.of(scales))
    op, member = ("QDepthwise", "int8-depthwise") if groups > 1 else ("QConv", "int8-conv")
    node = Node(op, "layer", attributes, inputs, (Operand((1, outs, out, out), "uint8"),))
    bench = Bench(kernels.get(member)(), node, [x, None, None, None], Context.here(1))
    run, found = peer(x, w, bias, attributes)
    if np.abs(bench.run()[0].astype(int) - found.astype(int)).max() > 1:
        raise SystemExit(f"{layer}: the bytes differ from ONNX Runtime's")
    macs = out * out * outs * (ins // groups) * kernel * kernel
    name = f"{kind} {ins}->{outs} {size} k{kernel} s{stride}"
    return compared(name, bench.caller(), run, "ONNX Runtime", rounds, macs)


def peer(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, attributes: dict[str, Any]
) -> tuple[Callable, np.ndarray]:
    """ONNX Runtime's call of the same layer, and its output."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "xs": np.float32(0.02), "xz": np.uint8(attributes["x_zero_point"]), "w": w,
        "ws": np.full(len(w), 0.003, np.float32), "wz": np.zeros(len(w), np.int8), "ys": np.float32(0.05),
        "yz": np.uint8(0), "b": bias,
    }  # fmt: skip
    window = {k: attributes[k] for k in ("kernel_shape", "strides", "pads", "group")}
    node = helper.make_node(
        "QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"], **window
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding), session.run(None, {"x": x})[0]


def compared(
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    other: str,
    rounds: int,
    macs: int = 0,
) -> Row:
    """Both in turn; ``macs`` also gives the figure as operations per second."""
    mine, peers = [], []
    for _ in range(rounds):
        mine.append(sample(ours))
        peers.append(sample(theirs))
    ratio, low, high = ratio_interval(mine, peers)
    best = min(mine)
    figure = f"{1e6 * best:.1f} us" + (f", {2e-9 * macs / best:.0f} GOP/s" if macs else "")
    figure += f" (peer {1e6 * min(peers):.1f})"
    return Row(name, figure, other, ratio, low, high, rounds, "<= 1.00", ratio <= 1.0)


def sample(call: Callable[[], object], blocks: int = 3, seconds: float = 0.004) -> float:
    """Seconds of CPU time per call, least of a few blocks."""
    call()
    best = np.inf
    for _ in range(blocks):
        count, start = 0, time.process_time()
        while (taken := time.process_time() - start) < seconds:
            call()
            count += 1
        best = min(best, taken / max(count, 1))
    return float(best)


if __name__ == "__main__":
    raise SystemExit(main())
