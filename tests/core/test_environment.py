from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

from dlas.core import environment


def test_fingerprint_is_complete_and_plain():
    facts = environment.fingerprint()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu"]
    assert facts["versions"]["numpy"] == np.__version__
    assert 0 < facts["cores_usable"] <= facts["cores"]
    assert facts["memory_bytes"] > 2**28
    assert set(facts["cpu_flags"]) <= set(environment.FLAGS)
    assert facts["load"] >= 0


def test_fast_and_light():
    code = (
        "import sys, dlas.core.environment as e; e.fingerprint();"
        "sys.exit(bool({'numpy', 'torch', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_machine_key_follows_the_machine_and_not_the_load(monkeypatch):
    key = environment.machine_key()
    assert len(key) == 16
    monkeypatch.setattr(environment, "load", lambda: 99.0)
    assert environment.machine_key() == key
    monkeypatch.setattr(environment, "usable_cores", lambda: 999)
    assert environment.machine_key() != key


def test_x86_levels(monkeypatch):
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    v2, v3, v4 = environment._V2, environment._V3, environment._V4
    for flags, level in [
        (set(), "x86-64"),
        (v2, "x86-64-v2"),
        (v3, "x86-64-v3"),
        (v3 - {"fma"}, "x86-64-v2"),
        (v4 | {"amx_int8"}, "x86-64-v4"),
        (v4 - {"avx2"}, "x86-64-v2"),
    ]:
        monkeypatch.setattr(environment, "_cpuinfo", lambda flags=flags: ("cpu", frozenset(flags)))
        assert environment.x86_level() == level
    monkeypatch.setattr(environment.platform, "machine", lambda: "aarch64")
    assert environment.x86_level() == "aarch64"
