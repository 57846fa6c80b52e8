"""After its first run a network asks the heap for nothing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dlas.kernels.extension import native

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(native() is None, reason="the native kernels were not built"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the C library of GNU"),
]

SCRIPT = """
import ctypes, json, sys
import numpy as np
from networks import residual
from dlas.kernels.kernel import Context
from dlas.runtime.artifact import Signature
from dlas.runtime.backend import deployable
from dlas.runtime.engine.engine import assembled, prepared
from dlas.runtime.engine.select import Rule, candidates, choose

library = ctypes.CDLL(sys.argv[1])
library.counted.restype = ctypes.c_long
found = {}
for threads in (1, 2):
    for rule in ("", "Conv=direct", "Conv=im2col-gemm", "Conv=spatial-pack", "Conv=winograd", "Conv=gspc-pixel"):
        model, context = deployable(residual()), Context.here(threads)
        network = prepared(model)
        choices = choose(network, candidates(network, context, [Rule.parse(rule)] if rule else []))
        with assembled(network, choices, Signature.of(model, 1), context, "rules") as executable:
            run = executable.runner(executable.signature.random_inputs())
            run()
            library.count_from_here()
            run(); run(); run(); run(); run(); run(); run(); run(); run()
            found[f"{threads} {rule}"] = library.counted()
library.count_from_here()
np.empty(1 << 20)
found["control"] = library.counted()
print(json.dumps(found))
"""  # fmt: skip


def test_runs_after_the_first_allocate_nothing(tmp_path: Path) -> None:
    library = tmp_path / "counted_malloc.so"
    command = [
        "g++",
        "-O1",
        "-std=c++17",
        "-shared",
        "-fPIC",
        str(HERE / "counted_malloc.cpp"),
        "-o",
        str(library),
    ]
    subprocess.run(command, check=True)
    environment = os.environ | {
        "LD_PRELOAD": str(library), "PYTHONPATH": str(HERE.parent / "runtime" / "engine"), "PYTHONMALLOC": "pymalloc",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(library)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found.pop("control") > 0
    assert len(found) == 12
    assert not {name: count for name, count in found.items() if count}
