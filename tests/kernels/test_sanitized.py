"""The kernels built with AddressSanitizer and UBSan read and write nothing but their tensors, and say nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from elsewhere import HERE, build_driver, run_tests

SANITIZERS = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
PROBE = 'int main() {{ return __builtin_cpu_supports("{}") ? 0 : 1; }}\n'
# A softmax over 64 numbers of which there are 8.
TOO_SHORT = """
import numpy as np
from dlas.kernels.extension import need_native
from dlas.kernels.layout import Storage

native, spec = need_native(), ([64], [1], "float32")
softmax = native.Kernel(native.Context(1), native.isa_levels()[0], "Softmax", "softmax", {"axis": 0}, [spec], [spec])
x = Storage((64,), (1,), "float32", 0, 8).view(np.zeros(8, np.float32))
softmax.run([x], [np.zeros(64, np.float32)])
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


@pytest.mark.parametrize(
    ("isa", "namespace", "lanes", "flags"),
    [("x86-64-v3", "V3", 8, []), ("x86-64-v4", "V4", 16, ["-mprefer-vector-width=512"])],
)
def test_every_kernel_with_sanitizers(
    tmp_path: Path, isa: str, namespace: str, lanes: int, flags: list[str]
) -> None:
    (tmp_path / "probe.cpp").write_text(PROBE.format(isa))
    program = str(tmp_path / "probe")
    for command in (["g++", *SANITIZERS, f"{program}.cpp", "-o", program], [program]):
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip(f"needs the libraries of the sanitisers and a processor with {isa}")
    driver = build_driver(
        tmp_path, "g++", isa, namespace, lanes, ["-O1", "-g1", f"-march={isa}", *flags, *SANITIZERS]
    )
    options = {
        "ASAN_OPTIONS": f"detect_leaks=1:log_path={tmp_path}/said-address",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={tmp_path}/said-undefined",
    }
    found = run_tests(tmp_path, str(driver), **options)
    assert _said(tmp_path) == ""
    assert found["levels"] == [isa]

    # That silence means something: one wrong read is reported.
    remote = {"DLAS_NATIVE": str(HERE / "remote_native.py"), "DLAS_REMOTE": str(driver)}
    done = subprocess.run(
        [sys.executable, "-c", TOO_SHORT], env=os.environ | options | remote, capture_output=True, check=False
    )
    assert done.returncode != 0
    assert "heap-buffer-overflow" in _said(tmp_path)


def _said(folder: Path) -> str:
    return "\n".join(path.read_text()[:2000] for path in sorted(folder.glob("said-*")))
