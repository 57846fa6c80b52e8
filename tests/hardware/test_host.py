"""The machine dlas runs on."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlas.core.errors import OptionError
from dlas.hardware.target import target_for
from dlas.hardware.targets import host
from dlas.hardware.targets.host import RaplReader


def _zone(root: Path, label: str, name: str, joules: float, span: int = 1000) -> Path:
    zone = root / label
    zone.mkdir()
    (zone / "name").write_text(name + "\n")
    (zone / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (zone / "max_energy_range_uj").write_text(f"{int(span * 1e6)}\n")
    return zone


def _set(zone: Path, joules: float) -> None:
    (zone / "energy_uj").write_text(f"{int(joules * 1e6)}\n")


def test_native_is_always_usable():
    target = target_for("host")
    assert target.isa == "native"
    assert target.unusable() == ""
    assert 2**28 < target.memory_bytes < 2**50


@pytest.mark.parametrize(
    ("level", "isa", "usable"),
    [
        ("x86-64-v3", "x86-64-v2", True),
        ("x86-64-v3", "x86-64-v3", True),
        ("x86-64-v3", "x86-64-v4", False),
        ("x86-64", "x86-64-v2", False),
        ("aarch64", "x86-64-v2", False),
        ("aarch64", "native", True),
    ],
)
def test_a_level_above_the_processor_is_refused(monkeypatch, level, isa, usable):
    monkeypatch.setattr(host, "x86_level", lambda: level)
    reason = target_for(f"host:isa={isa}").unusable()
    assert (reason == "") is usable
    if not usable:
        assert isa in reason


def test_sapphire_rapids_needs_amx(monkeypatch):
    monkeypatch.setattr(host, "x86_level", lambda: "x86-64-v4")
    monkeypatch.setattr(host, "cpu_flags", lambda: frozenset({"avx512_vnni"}))
    assert "amx_int8" in target_for("host:isa=sapphirerapids").unusable()
    monkeypatch.setattr(host, "cpu_flags", lambda: frozenset(host._SAPPHIRE_RAPIDS))
    assert target_for("host:isa=sapphirerapids").unusable() == ""


def test_an_unknown_level_is_refused():
    with pytest.raises(OptionError, match="x86-64-v3"):
        target_for("host:isa=x86-64-v5")


def test_energy_adds_up_packages_and_survives_the_wrap(tmp_path):
    first = _zone(tmp_path, "intel-rapl:0", "package-0", 990)
    second = _zone(tmp_path, "intel-rapl:1", "package-1", 5)
    _zone(tmp_path, "intel-rapl:0:0", "core", 100)
    _zone(tmp_path, "intel-rapl:2", "psys", 100)
    _zone(tmp_path, "intel-rapl-mmio:0", "package-0", 7)
    reader = RaplReader.find(tmp_path)
    assert reader is not None
    assert reader.read_joules() == 0
    _set(first, 995)
    _set(second, 6)
    assert reader.read_joules() == pytest.approx(6)
    _set(first, 15)  # past 1000 and round again: 20 more
    assert reader.read_joules() == pytest.approx(26)


def test_energy_is_none_where_it_cannot_be_read(tmp_path):
    assert RaplReader.find(tmp_path / "nothing") is None
    assert RaplReader.find(tmp_path) is None
    zone = _zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (zone / "energy_uj").unlink()
    assert RaplReader.find(tmp_path) is None
    (zone / "energy_uj").write_text("not a number")
    assert RaplReader.find(tmp_path) is None
