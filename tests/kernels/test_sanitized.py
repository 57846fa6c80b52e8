"""The kernels built with AddressSanitizer and UBSan read and write nothing but their tensors, and say nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from elsewhere import build_driver, run_tests

FLAGS = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]


@pytest.fixture(scope="module", autouse=True)
def _compiler(tmp_path_factory: pytest.TempPathFactory) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    empty = tmp_path_factory.mktemp("probe") / "empty.cpp"
    empty.write_text('int main() { return __builtin_cpu_supports("x86-64-v3") ? 0 : 1; }\n')
    program = empty.with_suffix("")
    for command in (["g++", *FLAGS, str(empty), "-o", str(program)], [str(program)]):
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the libraries of the sanitisers and a processor with AVX2")


@pytest.mark.slow
def test_every_kernel_with_sanitizers(tmp_path: Path) -> None:
    flags = ["-O1", "-g1", "-march=x86-64-v3", *FLAGS]
    driver = build_driver(tmp_path, "g++", "x86-64-v3", "V3", 8, flags)
    found = run_tests(
        tmp_path,
        str(driver),
        ASAN_OPTIONS=f"detect_leaks=1:log_path={tmp_path}/said-address",
        UBSAN_OPTIONS=f"print_stacktrace=1:log_path={tmp_path}/said-undefined",
    )
    assert [path.read_text()[:2000] for path in sorted(tmp_path.glob("said-*"))] == []
    assert found["levels"] == ["x86-64-v3"]
    few = {name: count for name, count in found["nodes"].items() if count < 20}
    assert not few
    assert sum(found["nodes"].values()) > 10_000
