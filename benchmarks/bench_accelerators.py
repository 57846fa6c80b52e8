"""Simulated accelerators: whole networks at both levels against LiteRT's reference kernels, and how busy they are.

Claims: all convolutions of MobileNetV2 take at most 10 s as simulated RTL; the exact model takes at most 1.5 times the
processor time of LiteRT's reference kernels; the multipliers of ``vm:units=1`` are used more than 84 % of the time on
its convolutions, which an array of as many elements without overlapped loading reaches. Results must be equal to the
byte, or the case counts as missed. Needs DLAS_DATA.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
from _common import Row, finish, median_interval, parser, progress, ratio_interval

NETWORK = "models/imagenet/mobilenetv2_1.0_224_int8.tflite"
RTL_LIMIT_S, TLM_LIMIT, BUSY = 10.0, 1.5, 0.84


def main() -> int:
    """Run, compare, print."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=11, help="rounds of model and reference in turn")
    options.add_argument("--accel", default="vm:units=1", help="accelerator that is simulated as RTL")
    given = options.parse_args()
    if not os.environ.get("DLAS_DATA"):
        options.error("DLAS_DATA must name the folder with the models")
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    from dlas.graph.format import load_model
    from dlas.hardware.accelerator import accelerator_for
    from dlas.runtime.offload import Offloaded

    path = Path(os.environ["DLAS_DATA"]) / NETWORK
    accelerator = accelerator_for(given.accel)
    model = load_model(path)
    tlm = Offloaded(model, accelerator)
    theirs = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF, num_threads=1)
    theirs.allocate_tensors()
    ((name, operand),) = tlm.executable.program.network.inputs.items()
    x = np.random.default_rng(0).random(operand.shape, np.float32).astype(operand.dtype)
    theirs.set_tensor(theirs.get_input_details()[0]["index"], x)
    ours, reference = [], []
    for _ in range(given.rounds):
        start = time.process_time()
        theirs.invoke()
        middle = time.process_time()
        (found,) = tlm.run({name: x}).values()
        ours.append(time.process_time() - middle)
        reference.append(middle - start)
    wanted = theirs.get_tensor(theirs.get_output_details()[0]["index"]).reshape(found.shape)
    progress("build the simulation")
    start = time.monotonic()
    assert accelerator.simulator.counters
    built = time.monotonic() - start
    rtl = Offloaded(model, accelerator, level="rtl")
    start = time.monotonic()
    (hardware,) = rtl.run({name: x}).values()
    taken = time.monotonic() - start
    ratio, low, high = ratio_interval(ours, reference)
    same = int((found != wanted).sum()), int((hardware != wanted).sum())
    convolutions = [layer for layer in tlm.layers if layer.op == "QConv"]
    cycles = sum(layer.cycles.total for layer in convolutions)
    busy = sum(layer.macs for layer in convolutions) / (accelerator.multipliers * cycles)
    equal = [a.cycles for a in tlm.layers] == [b.cycles for b in rtl.layers]
    case, times = (
        f"MobileNetV2, {accelerator.spelled()}",
        [1e3 * median_interval(v)[0] for v in (ours, reference)],
    )
    rows = [
        Row(f"{case}, model", f"{times[0]:.0f} ms", f"LiteRT reference, {times[1]:.0f} ms", ratio, low, high,
            given.rounds, f"<= {TLM_LIMIT}, no byte other", ratio <= TLM_LIMIT and same[0] == 0),
        Row(f"{case}, RTL", f"{taken:.1f} s", f"limit, {RTL_LIMIT_S:.0f} s", taken / RTL_LIMIT_S, None, None, 1,
            "<= 1, no byte and no cycle other", taken <= RTL_LIMIT_S and same[1] == 0 and equal),
        Row(f"{case}, convolutions", f"{cycles:,} cycles", f"all {accelerator.multipliers} multipliers at work", busy,
            None, None, 1, f"> {BUSY}", busy > BUSY),
    ]  # fmt: skip
    details = {"build_s": built, "other_bytes": same, "cycles": cycles}
    return finish("Accelerators, simulated", rows, given.json, details)


if __name__ == "__main__":
    sys.exit(main())
