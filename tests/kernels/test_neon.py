"""The kernels built for 64-bit ARM give what their references give, under an emulator of the processor."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from elsewhere import build_driver, run_tests

COMPILER, EMULATOR, SYSTEM = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR) and Path(SYSTEM).is_dir()),
        reason=f"needs {COMPILER}, {EMULATOR} and ARM's C library: scripts/system-packages cross",
    ),
]


def test_every_kernel_on_neon(tmp_path: Path) -> None:
    driver = build_driver(tmp_path, COMPILER, "neon", "NEON", 4, ["-O2", "-march=armv8-a"])
    found = run_tests(tmp_path, f"{EMULATOR} -L {SYSTEM} {driver}")
    assert found["levels"] == ["neon"]
