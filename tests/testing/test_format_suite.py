"""Every format that can be written, under its conformance suite."""

from __future__ import annotations

from dlas.graph.format import formats
from dlas.testing.formats import FormatSuite

for _name, _member in formats.members():
    if _member.can_write:
        _suite = "Test" + _name.title().replace("-", "")
        globals()[_suite] = type(_suite, (FormatSuite,), {"format": _name})
