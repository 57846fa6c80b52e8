"""What a figure depends on besides the network: machine, system, library versions, load. Imports nothing heavy."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlas.core.lazy import distribution_version

# Distributions whose version can change a figure; only their metadata is read.
DISTRIBUTIONS = (
    "ai-edge-litert", "apache-tvm", "apache-tvm-ffi", "dlas", "ethos-u-vela", "ml-dtypes", "numpy", "onnx",
    "onnx-ir", "onnxruntime", "onnxscript", "openvino", "pillow", "pyarrow", "scikit-learn", "torch",
)  # fmt: skip

# Processor features that change which kernels a library picks.
FLAGS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm",
    "sve", "sve2",
)  # fmt: skip

_V2 = {"cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"}
_V3 = _V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def fingerprint() -> dict[str, Any]:
    """Everything a reader needs to judge or repeat a measurement; plain values, fit for JSON.

    ``cores_usable`` is what the calling process may run on, so take the fingerprint outside pinned workers.
    """
    return {
        "cpu": cpu_model(),
        "cpu_flags": list(relevant_flags()),
        "isa": x86_level(),
        "cores": os.cpu_count() or 1,
        "cores_usable": usable_cores(),
        "memory_bytes": memory_bytes(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": dict(versions()),
        "load": load(),
    }


def machine_key() -> str:
    """Short stable hash of what makes two timings comparable: processor, its features, usable cores; not the load."""
    parts = [cpu_model(), platform.machine(), list(relevant_flags()), usable_cores()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def x86_level() -> str:
    """Micro-architecture level by the x86-64 psABI (``x86-64-v4``), or the machine name elsewhere (``aarch64``)."""
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        return machine
    flags = cpu_flags()
    for level, needed in (("v4", _V4), ("v3", _V3), ("v2", _V2)):
        if needed <= flags:
            return f"x86-64-{level}"
    return "x86-64"


def cpu_model() -> str:
    """Processor name as the system reports it."""
    return _cpuinfo()[0]


def relevant_flags() -> tuple[str, ...]:
    """Those of :data:`FLAGS` that this processor has."""
    return tuple(flag for flag in FLAGS if flag in cpu_flags())


def cpu_flags() -> frozenset[str]:
    """Every feature of this processor, as ``/proc/cpuinfo`` spells them; empty where it cannot be read."""
    return _cpuinfo()[1]


def usable_cores() -> int:
    """Logical processors this process may run on."""
    return len(os.sched_getaffinity(0))


def load() -> float:
    """Load average over the last minute."""
    return round(os.getloadavg()[0], 2)


@functools.cache
def versions() -> Mapping[str, str]:
    """Version of every installed distribution of :data:`DISTRIBUTIONS`, read from metadata."""
    found = {name: distribution_version(name) for name in DISTRIBUTIONS}
    return {name: version for name, version in found.items() if version}


@functools.cache
def _cpuinfo() -> tuple[str, frozenset[str]]:
    model, flags = "", frozenset[str]()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = (part.strip() for part in line.partition(":"))
                if not key and flags:
                    break
                if key in ("model name", "Model", "Hardware") and not model:
                    model = value
                elif key in ("flags", "Features"):
                    flags = frozenset(value.split())
    except OSError:
        pass
    return model or platform.processor() or platform.machine(), flags


def memory_bytes() -> int:
    """Physical memory, or the limit of the container this process runs in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # A container's own limit is what counts inside it.
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, int(Path(place).read_text()))
        except (OSError, ValueError):
            continue
    return total
