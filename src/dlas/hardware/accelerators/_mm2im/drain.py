"""The way from whole rows of sums to the bus: column after column through requantisation, bytes into words."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._mm2im.geometry import LEAVING, Geometry
from dlas.hardware.accelerators._mm2im.loader import Settings
from dlas.hardware.accelerators._mm2im.protocol import PARAMETERS
from dlas.hardware.rtl.requantize import Requantize
from dlas.hardware.rtl.sizes import BUS_BITS, REQUANTIZE_LATENCY


class Drain(wiring.Component):
    """Works off rows of the output as they become whole, a column of all elements per cycle.

    What no tap reaches was never written and counts as zero. Elements that share a channel are added up here.

    Args:
        geometry: Sizes.
        modes: Roundings that are built.
    """

    def __init__(self, geometry: Geometry, modes: tuple[str, ...]) -> None:
        g, self.modes = geometry, modes
        self.geometry = g
        super().__init__(
            {
                "settings": In(Settings()),
                "restart": In(1),
                "parameters": In(data.ArrayLayout(data.ArrayLayout(PARAMETERS, g.pe_count), 2)),
                "final": In(2),
                "whole_rows": In(14),
                "address": Out(range(g.sum_words)),
                "sums": In(data.ArrayLayout(signed(32), g.pe_count)),
                "rows": Out(16),
                "left": Out(2),
                "busy": Out(1),
                "data": Out(BUS_BITS),
                "valid": Out(1),
                "last": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Counters of columns, rows, images and groups, then the pipeline."""
        m = Module()
        columns, rows, sums = self.settings.columns, self.settings.rows, self.settings.sums
        waiting, column, row, image = Signal(16), Signal(13), Signal(13), Signal(12)
        line, half = Signal(range(self.geometry.sum_words)), Signal()
        row_ends, image_ends, group_ends = (Signal(name=f"{n}_ends") for n in ("row", "image", "group"))
        m.d.comb += [
            self.busy.eq(waiting != 0), self.address.eq(line + column),
            row_ends.eq(self.busy & (column == columns.outputs - 1)),
            image_ends.eq(row_ends & (row == rows.outputs - 1)),
            group_ends.eq(image_ends & (image == rows.images - 1)),
        ]  # fmt: skip
        m.d.sync += waiting.eq(waiting + self.whole_rows - row_ends)
        with m.If(self.busy):
            m.d.sync += column.eq(Mux(row_ends, 0, column + 1))
        with m.If(row_ends):
            following = line + columns.outputs
            m.d.sync += [
                row.eq(Mux(image_ends, 0, row + 1)), self.rows.eq(self.rows + 1),
                line.eq(Mux(following >= sums.ring, following - sums.ring, following)),
            ]  # fmt: skip
        with m.If(image_ends):
            m.d.sync += image.eq(Mux(group_ends, 0, image + 1))
        with m.If(group_ends):
            m.d.sync += half.eq(~half)
        with m.If(self.restart):
            m.d.sync += [line.eq(0), self.rows.eq(0), half.eq(0)]
        reached = self._reached(m, column, row, row_ends, image_ends)
        left = _delayed(m, Cat(group_ends & ~half, group_ends & half), LEAVING - 1, "left")
        m.d.comb += self.left.eq(left)
        values = self._channels(m, reached)
        found = self._requantized(m, values, _delayed(m, half, 2, "half"))
        ends = group_ends & self.final.bit_select(half, 1)
        flags = _delayed(m, Cat(self.busy, ends), 2 + REQUANTIZE_LATENCY, "flags")
        self._words(m, found, flags[0], flags[1])
        return m

    def _reached(self, m: Module, column: Signal, row: Signal, row_ends: Signal, image_ends: Signal) -> Value:
        """One bit per pixel of a position: whether a tap of such a pixel reaches this column and row."""
        columns, rows, sums = self.settings.columns, self.settings.rows, self.settings.sums
        phase = _phase(m, "row", row_ends, image_ends | self.restart, rows.begin, rows.stride)
        in_row = (phase < rows.kernel) & (row < sums.reached_rows)
        found = []
        for pixel in range(self.geometry.pe_count):
            shift = Signal(9, name=f"shift_{pixel}")
            start = Signal(signed(11), name=f"start_{pixel}")
            m.d.comb += [shift.eq(pixel * columns.stride), start.eq(columns.begin - shift)]
            begins = Mux(start < 0, start + columns.hop, start)
            phase = _phase(m, f"column_{pixel}", self.busy, row_ends | self.restart, begins, columns.hop)
            after = (column + columns.begin) >= shift
            before = column < sums.reached_columns + shift
            found.append(in_row & (phase < columns.kernel) & after & before)
        return Cat(*found)

    def _channels(self, m: Module, reached: Value) -> list[Value]:
        """One sum per channel, two cycles after its address: those of the elements that share it."""
        count, spread = self.geometry.pe_count, self.settings.common.spread
        reached = _delayed(m, reached, 1, "reached")
        level: list[Value] = []
        for element in range(count):
            choices = [reached[element % (1 << k)] for k in range(count.bit_length())]
            level.append(Mux(Array(choices)[spread], self.sums[element], 0))
        levels = [level]
        while len(level) > 1:
            level = [(a + b)[:32].as_signed() for a, b in zip(level[0::2], level[1::2], strict=True)]
            levels.append(level)
        found = []
        for lane in range(count):
            # With 2 ** k elements per channel, the lane's sum stands at level k; a lane beyond the last is not used.
            choices = [sums[lane] if lane < len(sums) else sums[0] for sums in levels]
            total = Signal(signed(32), name=f"channel_{lane}", reset_less=True)
            m.d.sync += total.eq(Array(choices)[spread])
            found.append(total)
        return found

    def _requantized(self, m: Module, values: list[Value], half: Value) -> Value:
        found, common = [], self.settings.common
        for lane, value in enumerate(values):
            m.submodules[f"requantize_{lane}"] = part = Requantize(1, self.modes)
            given = Mux(half, self.parameters[1][lane].as_value(), self.parameters[0][lane].as_value())
            parameters = data.View(PARAMETERS, given)
            m.d.comb += [
                part.sums[0].eq(value),
                part.bias.eq(parameters.bias),
                part.multiplier.eq(parameters.multiplier),
                part.shift.eq(parameters.shift),
                part.mode.eq(common.mode),
                part.zero_point.eq(common.zero_point),
                part.low.eq(common.low),
                part.high.eq(common.high),
            ]
            found.append(part.bytes.as_value())
        return Cat(*found)

    def _words(self, m: Module, found: Value, valid: Value, final: Value) -> None:
        """Columns into words; the last word may be filled in part."""
        per_word = self.geometry.columns_per_word
        place, whole, parts = Signal(range(max(per_word, 2))), Signal(), []
        m.d.comb += whole.eq(valid & (final | (place == per_word - 1)))
        for i in range(per_word):
            kept = Signal(len(found), name=f"kept_{i}")
            with m.If(valid & (place == i)):
                m.d.sync += kept.eq(found)
            parts.append(Mux(place == i, found, kept))
        with m.If(valid):
            m.d.sync += place.eq(Mux(whole, 0, place + 1))
        with m.If(whole):
            m.d.sync += self.data.eq(Cat(*parts))
        m.d.sync += [self.valid.eq(whole), self.last.eq(whole & final)]


def _phase(m: Module, name: str, step: Value, restart: Value, begin: Value, period: Value) -> Signal:
    """Distance from where the latest filter starts: from ``begin``, around ``period``."""
    phase = Signal(9, name=f"{name}_phase")
    with m.If(step):
        m.d.sync += phase.eq(Mux(phase + 1 >= period, 0, phase + 1))
    with m.If(restart):
        m.d.sync += phase.eq(begin)
    return phase


def _delayed(m: Module, value: Value, cycles: int, name: str) -> Value:
    for i in range(cycles):
        later = Signal(len(value), name=f"{name}_{i}")
        m.d.sync += later.eq(value)
        value = later
    return value
