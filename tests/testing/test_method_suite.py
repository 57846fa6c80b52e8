"""Every compression method, under its conformance suite."""

from __future__ import annotations

from dlas.compress.method import methods
from dlas.testing.methods import MethodSuite

# What the tiny network of the suite needs to be changed at all.
OPTIONS = {"dynamic-int8": "min_elements=1"}
# They train on hundreds of rows and prune inside blocks: the suite meets them in tests/compress, on such a network.
ELSEWHERE = {"fisher", "ice"}

# Every registered method with its defaults; a new one is tested without a line here.
for _name in sorted(set(methods.names()) - ELSEWHERE):
    _suite = "Test" + _name.title().replace("-", "")
    _choice = f"{_name}:{OPTIONS[_name]}" if _name in OPTIONS else _name
    globals()[_suite] = type(_suite, (MethodSuite,), {"method": _choice})


class TestInt8PerTensor(MethodSuite):
    method = "int8:per_channel=false,calibration=min-max"
