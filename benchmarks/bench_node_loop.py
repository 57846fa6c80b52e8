"""What the engine's loop adds to every node.

Claim: at most 0.5 us per node on one thread. A chain of 200 Relu nodes over 16 numbers does next to no work, so its
time is that of the loop and of calling a kernel. The processor time of a block of runs is divided by the nodes.
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise

from _common import Row, finish, median_interval, parser, progress

NODES, LIMIT = 200, 500.0


def main() -> int:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--blocks", type=int, default=40, help="blocks of 100 runs")
    given = options.parse_args()
    import onnx
    from onnx import TensorProto, helper

    from dlas.graph.model import Model
    from dlas.kernels.kernel import Context
    from dlas.runtime.artifact import Signature
    from dlas.runtime.engine.engine import assembled, prepared
    from dlas.runtime.engine.select import candidates, choose

    names = [f"v{i}" for i in range(NODES + 1)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 16]) for n in (names[0], names[-1])]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in pairwise(names)]
    proto = helper.make_model(helper.make_graph(nodes, "chain", ends[:1], ends[1:]))
    onnx.checker.check_model(proto)
    model = Model.from_proto(proto, "chain")
    network, context = prepared(model), Context.here(1)
    choices = choose(network, candidates(network, context, []))
    with assembled(network, choices, Signature.of(model, 1), context, "rules") as executable:
        steps = len(executable.steps)
        progress(f"{steps} steps on {context.isa}")
        run = executable.runner(executable.signature.random_inputs())
        run()
        samples = []
        for _ in range(given.blocks):
            before = time.process_time_ns()
            for _ in range(100):
                run()
            samples.append((time.process_time_ns() - before) / (100 * steps))
    middle, low, high = median_interval(samples)
    ratio, ends_of = middle / LIMIT, (low / LIMIT, high / LIMIT)
    row = Row(
        f"{steps} Relu nodes of 16 numbers", f"{middle:.0f} ns per node", f"{LIMIT:.0f} ns", ratio, *ends_of,
        len(samples), "<= 1", steps == NODES and middle <= LIMIT,
    )  # fmt: skip
    return finish("The engine's loop over nodes, 1 thread", [row], given.json, {"ns_per_node": samples})


if __name__ == "__main__":
    sys.exit(main())
