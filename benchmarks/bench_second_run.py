"""A second run of the same study against its first run, both as a user starts them, start-up and report included.

Claim: at most 5 % of the first. The cache and the study file start empty.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import Row, finish, parser, progress

LIMIT = 0.05


def main() -> int:
    """Entry point."""
    options = parser(__doc__)
    options.add_argument("--stack", type=Path, help="stack file; default the embedded study")
    options.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to dlas run"
    )
    options.add_argument("--repeat", type=int, default=3, help="how often the second run is timed")
    given = options.parse_args()
    command = [sys.executable, "-m", "dlas.cli.main", "run", *([str(given.stack)] if given.stack else [])]
    command += [part for text in given.set for part in ("--set", text)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "DLAS_CACHE": str(Path(folder) / "cache")}
        command += ["--out", str(Path(folder) / "out")]
        progress("first run")
        first = timed(command, environment)
        again = []
        for number in range(given.repeat):
            progress(f"second run, {number + 1} of {given.repeat}")
            again.append(timed(command, environment))
    ratios = sorted(seconds / first for seconds in again)
    ratio = ratios[len(ratios) // 2]
    name = given.stack.name if given.stack else "embedded study"
    row = Row(
        f"{name}: second run",
        f"{sorted(again)[len(again) // 2]:.2f} s",
        f"first run, {first:.1f} s",
        ratio,
        ratios[0],
        ratios[-1],
        len(again),
        f"<= {LIMIT}",
        ratio <= LIMIT,
    )
    return finish("The same study again (the interval is the whole range)", [row], given.json)


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Seconds a command takes; it must succeed."""
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} left with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
