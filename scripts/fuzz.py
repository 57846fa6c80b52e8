"""Fuzz everything that reads files, for long: ``python scripts/fuzz.py --mutations 100000``.

Sound files are kept in OUT/corpus and counts in OUT/state.json, so that a run that was stopped goes on; files that
broke a promise are written to OUT/findings. ``--engine atheris`` lets coverage choose among the mutations
(``pip install 'dlas[fuzz]'``); without it every mutation is drawn from its number.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

if "--inside" in sys.argv:  # what is to be covered must be imported under the eyes of atheris
    import atheris

    with atheris.instrument_imports(include=["dlas", "onnx_ir"]):
        from dlas.data.dataset import loaders
        from dlas.graph.format import formats

        formats.members()
        loaders.members()

from dlas.core.errors import DlasError
from dlas.core.files import write_atomic
from dlas.testing.fuzz import Fuzzer, Tally, probes, table
from dlas.testing.fuzz.engine import place_of
from dlas.testing.fuzz.mutate import mutate

_BLOCK = 250
# Slow to read: they get a share, not an equal part.
_WEIGHTS = {"torch": 0.2, "safetensors": 0.2}


class Run:
    """State of a run, on disk after every block."""

    def __init__(self, out: Path, mutations: int, targets: list[str]) -> None:
        self.path, self.lock = out / "state.json", Lock()
        stored = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.tallies = {t: Tally.from_dict(stored[t]) if t in stored else Tally() for t in targets}
        whole = sum(_WEIGHTS.get(t, 1.0) for t in targets)
        self.wanted = {t: round(mutations * _WEIGHTS.get(t, 1.0) / whole) for t in targets}
        self.next = {t: tally.mutations for t, tally in self.tallies.items()}

    def take(self) -> tuple[str, range] | None:
        """The next block: of the target that lags most."""
        with self.lock:
            open_ = [t for t in self.next if self.next[t] < self.wanted[t]]
            if not open_:
                return None
            target = min(open_, key=lambda t: self.next[t] / self.wanted[t])
            first = self.next[target]
            self.next[target] = min(self.wanted[target], first + _BLOCK)
            return target, range(first, self.next[target])

    def put(self, target: str, tally: Tally) -> None:
        """Add what a block found."""
        with self.lock:
            self.tallies[target].add(tally)
            write_atomic(self.path, json.dumps({t: y.to_dict() for t, y in self.tallies.items()}))
            done = sum(t.mutations for t in self.tallies.values())
            findings = sum(len(t.findings) for t in self.tallies.values())
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {done} mutations, {findings} findings\n")


def numbered(options: argparse.Namespace) -> dict[str, Tally]:
    """The engine without coverage: blocks of numbers, in parallel worker processes."""
    make = {"keep": options.out / "findings", "corpus": options.out / "corpus", "real": options.real}
    with Fuzzer(targets=options.targets, **make) as first:
        run = Run(options.out, options.mutations, list(first.seeds))

        def serve(fuzzer: Fuzzer) -> None:
            while (block := run.take()) is not None:
                run.put(block[0], fuzzer.run(*block))

        others = [Fuzzer(targets=options.targets, **make) for _ in range(options.jobs - 1)]
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(serve, [first, *others]))
        for other in others:
            other.__exit__(None, None, None)
    return run.tallies


def guided(options: argparse.Namespace) -> dict[str, Tally]:
    """The engine with coverage: one process per target, started again where it was killed."""
    with Fuzzer(targets=options.targets, corpus=options.out / "corpus", real=options.real) as fuzzer:
        targets = list(fuzzer.seeds)
    found = {}
    for target in targets:
        command = [sys.executable, __file__, "--out", str(options.out), "--inside", target]
        command += ["--mutations", str(options.mutations // len(targets))]
        subprocess.run(command, check=False)
        place = options.out / f"atheris-{target}.json"
        if place.exists():
            found[target] = Tally.from_dict(json.loads(place.read_text()))
    return found


def inside(options: argparse.Namespace) -> None:
    """One target under atheris; ends the process."""
    import atheris

    from dlas.testing.fuzz.engine import Finding

    warnings.simplefilter("ignore")
    target, tally, seen = options.inside, Tally(), set()
    seeds = sorted((options.out / "corpus").glob(f"{target}@*"))
    kept = options.out / "atheris" / target
    work = Path(tempfile.mkdtemp())
    for suffix in {seed.suffix for seed in seeds}:
        (kept / suffix[1:]).mkdir(parents=True, exist_ok=True)
    suffix = seeds[0].suffix

    def change(data: bytes, longest: int, seed: int) -> bytes:
        return mutate(data or b"\0", random.Random(seed))[:longest]

    def one(data: bytes) -> None:
        path = work / f"m{suffix}"
        path.write_bytes(data)
        tally.mutations += 1
        try:
            probes.read(target, path)
            tally.loaded += 1
        except DlasError:
            tally.refused += 1
        except Exception as error:
            text = f"{type(error).__name__} at {place_of(error)}"
            if text not in seen:
                seen.add(text)
                tally.findings.append(Finding(target, tally.mutations, "atheris", "exception", text))
                (options.out / "findings").mkdir(exist_ok=True)
                (options.out / "findings" / f"atheris-{target}-{tally.mutations}{suffix}").write_bytes(data)
        if tally.mutations % 200 == 0 or tally.mutations >= options.mutations:
            write_atomic(options.out / f"atheris-{target}.json", json.dumps(tally.to_dict()))
        if tally.mutations >= options.mutations:
            os._exit(0)

    start = kept / "start"
    start.mkdir(exist_ok=True)
    for seed in seeds:
        if seed.suffix == suffix:
            (start / seed.name).write_bytes(seed.read_bytes())
    flags = [
        "-timeout=20",
        "-rss_limit_mb=4096",
        "-max_len=1000000",
        f"-runs={options.mutations}",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *flags, str(kept / suffix[1:]), str(start)], one, custom_mutator=change)
    atheris.Fuzz()


def main() -> int:
    """Run and print one table; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=100_000, help="mutations over all targets")
    parser.add_argument(
        "--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="worker processes"
    )
    parser.add_argument("--targets", nargs="*", default=[], help="only these")
    parser.add_argument(
        "--out", type=Path, default=Path("dlas-fuzz"), help="folder for corpus, state and findings"
    )
    parser.add_argument(
        "--real", type=Path, default=None, help="folder of real model files to add to the corpus"
    )
    parser.add_argument("--engine", choices=("numbered", "atheris"), default="numbered")
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.inside:
        inside(options)
    tallies = guided(options) if options.engine == "atheris" else numbered(options)
    sys.stdout.write(table(tallies) + "\n")
    return int(any(t.findings for t in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
