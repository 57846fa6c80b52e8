"""Building the native kernels in other ways than the package does, and running their tests there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dlas

HERE = Path(__file__).parent
NATIVE = Path(dlas.__file__).parent / "kernels" / "native"
WARNINGS = ("-Wall", "-Wextra", "-Wno-psabi", "-Wno-ignored-attributes")
# Tests that compute nodes by native kernels.
TESTS = (
    *("block_kernels", "conv_blocked", "conv_bsr", "conv_csr", "conv_direct", "conv_first", "conv_gemm"),
    *("conv_grouped", "conv_transpose", "depthwise", "elementwise_kernels", "gemm", "int8_others"),
    *("int8_weighted", "low_bit", "move", "normalisation_kernels", "pool", "recurrent", "winograd"),
)


def build_driver(
    folder: Path, compiler: str, isa: str, namespace: str, lanes: int, flags: Sequence[str]
) -> Path:
    """The program ``native_driver`` with the kernels of one instruction set.

    Raises:
        AssertionError: It does not compile, or only with warnings.
    """
    definitions = [
        f'-DDLAS_ISA="{isa}"',
        f"-DDLAS_NS={namespace}",
        f"-DDLAS_VL={lanes}",
        f"-DDLAS_{namespace}=1",
    ]
    common = [compiler, "-std=c++17", "-fno-math-errno", "-ffp-contract=fast", *WARNINGS, *flags]
    common += [f"-I{NATIVE}", f"-I{NATIVE / 'core'}"]
    header = folder / "all.h"
    library = "".join(f"#include <{name}>\n" for name in ("algorithm", "memory", "cmath", "cstring"))
    header.write_text(f'#include "{NATIVE}/isa/layer.h"\n{library}')
    _call([*common, *definitions, "-x", "c++-header", str(header), "-o", f"{header}.gch"])
    core = [
        *(p for p in sorted((NATIVE / "core").glob("*.cpp")) if p.name != "module.cpp"),
        HERE / "native_driver.cpp",
    ]
    jobs = [[*common, "-c", str(source)] for source in core]
    kernels = sorted((NATIVE / "isa").glob("*.cpp"))
    jobs += [[*common, *definitions, "-include", str(header), "-c", str(source)] for source in kernels]
    objects = [folder / f"{source.parent.name}-{source.stem}.o" for source in [*core, *kernels]]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_call, [[*job, "-o", str(made)] for job, made in zip(jobs, objects, strict=True)]))
    program = folder / "native_driver"
    _call([compiler, *flags, *map(str, objects), "-pthread", "-o", str(program)])
    return program


def _call(command: list[str]) -> None:
    nice = shutil.which("nice")
    done = subprocess.run([nice, *command] if nice else command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert not done.stderr, done.stderr[-4000:]


def run_tests(folder: Path, command: str, tests: Sequence[str] = TESTS, **environment: str) -> dict[str, Any]:
    """Run the kernels' tests with the kernels of ``command``.

    Returns:
        ``nodes``: nodes that each kernel computed; ``runs``: those with one thread and with two.

    Raises:
        AssertionError: One of them fails, or an implementation computed fewer than 200 nodes.
    """
    report = folder / "report.json"
    environment |= {
        "DLAS_NATIVE": str(HERE / "remote_native.py"),
        "DLAS_REMOTE": command,
        "DLAS_REMOTE_REPORT": str(report),
    }
    files = [str(HERE / f"test_{name}.py") for name in tests]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, cwd=HERE.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
    found = json.loads(report.read_text())
    assert found["status"] == 0, done.stderr[-4000:]
    implementations: Counter[str] = Counter()
    for kernel, count in found["nodes"].items():
        implementations[kernel.split("=")[1]] += count
        assert count >= 20, f"{kernel} computed {count} nodes"
    assert min(implementations.values()) >= 200, implementations
    return found
