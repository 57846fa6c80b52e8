"""The extension module loads and computes on processors that lack AVX, and takes AVX2 where there is no more."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dlas.kernels.extension import isa_levels, native

EMULATOR = "qemu-x86_64"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which(EMULATOR) is None, reason=f"needs {EMULATOR}: scripts/system-packages cross"
    ),
    pytest.mark.skipif(native() is None, reason="the native kernels were not built"),
]
needs_sse4 = pytest.mark.skipif(
    native() is None or "x86-64-v2" not in isa_levels(),
    reason="built without DLAS_SSE4, as on processors that have AVX2",
)

SCRIPT = """
import numpy as np
from dlas.kernels.extension import isa_levels
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.reference.conv import conv2d
from dlas.kernels.single import Bench

rng = np.random.default_rng(0)
x, w = (rng.standard_normal(s, dtype=np.float32) for s in ((1, 6, 9, 9), (10, 6, 3, 3)))
window = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1]}
node = Node("Conv", "n", {**window, "kernel_shape": [3, 3], "group": 1}, (Operand(x.shape), Operand.of(w)),
            (Operand((1, 10, 9, 9)),))
for isa in isa_levels():
    for name in ("spatial-pack", "im2col-gemm", "winograd", "direct"):
        found = Bench(kernels.get(name)(), node, [x, None], Context.here(2, isa)).run()[0]
        assert np.abs(found - conv2d(x, w, **window)).max() < 1e-4, name
print(" ".join(isa_levels()))
"""  # fmt: skip


@needs_sse4
@pytest.mark.parametrize(
    ("processor", "levels"), [("Nehalem", "x86-64-v2"), ("Haswell", "x86-64-v3 x86-64-v2")]
)
def test_the_module_works_on(processor: str, levels: str) -> None:
    done = subprocess.run(
        [EMULATOR, "-cpu", processor, sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == levels


def test_the_emulator_stops_at_what_the_processor_lacks(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    source, program = tmp_path / "avx.cpp", tmp_path / "avx"
    source.write_text('int main() { asm volatile("vxorps %ymm0, %ymm0, %ymm0"); }\n')
    subprocess.run(["g++", str(source), "-o", str(program)], check=True)
    ends = [
        subprocess.run([EMULATOR, "-cpu", cpu, str(program)], capture_output=True, check=False).returncode
        for cpu in ("Nehalem", "Haswell")
    ]
    assert ends[0] != 0
    assert ends[1] == 0
