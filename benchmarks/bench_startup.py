"""How long ``import dlas`` and ``dlas --help`` take, against a Python that does nothing, taken in turn.

Claim: at most 0.3 s each, and no heavy library is loaded.
"""

from __future__ import annotations

import subprocess
import sys
import time

from _common import Row, finish, median_interval, parser, ratio_interval

LIMIT_S = 0.3
HEAVY = (
    "ai_edge_litert", "altair", "numpy", "onnx", "onnx_ir", "onnxruntime", "openvino", "pandas", "pyarrow", "scipy",
    "sklearn", "tensorflow", "torch", "tvm",
)  # fmt: skip
_REPORT = f"\nimport sys; sys.stderr.write(','.join(sorted(set({HEAVY!r}) & set(sys.modules))))"
CASES = {
    "bare": "pass",
    "import dlas": "import dlas",
    "dlas --help": "from dlas.cli.main import run_command; run_command(['--help'])",
}


def run(code: str) -> tuple[float, str]:
    """Seconds of a fresh interpreter, and what it wrote to standard error."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stderr


def main() -> int:
    """Entry point."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=21, help="rounds, each starts every case once")
    given = options.parse_args()
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for code in CASES.values():
        run(code)  # compiled files and the page cache are warm from here on
    for _ in range(given.rounds):
        for name, code in CASES.items():
            times[name].append(run(code)[0])
    rows = []
    for name, code in CASES.items():
        if name == "bare":
            continue
        loaded = run(code + _REPORT)[1]
        median, low, high = median_interval(times[name])
        ratio = ratio_interval(times[name], times["bare"])
        bare = median_interval(times["bare"])[0]
        figure = f"{median:.3f} s ({low:.3f} .. {high:.3f}); heavy modules: {loaded or 'none'}"
        holds = median <= LIMIT_S and not loaded
        target = f"figure <= {LIMIT_S} s"
        rows.append(Row(name, figure, f"python -c pass, {bare:.3f} s", *ratio, given.rounds, target, holds))
    return finish("Start-up time of a fresh interpreter", rows, given.json)


if __name__ == "__main__":
    sys.exit(main())
