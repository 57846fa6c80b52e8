"""Every compression method, under its conformance suite."""

from __future__ import annotations

from dlas.compress.method import methods
from dlas.testing.methods import MethodSuite

# Every registered method with its defaults; a new one is tested without a line here.
for _name in methods.names():
    _suite = "Test" + _name.title().replace("-", "")
    globals()[_suite] = type(_suite, (MethodSuite,), {"method": _name})


class TestInt8PerTensor(MethodSuite):
    method = "int8:per_channel=false,calibration=min-max"
