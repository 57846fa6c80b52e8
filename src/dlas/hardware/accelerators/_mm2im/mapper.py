"""Says what is multiplied when, and where the sums belong: position by position, past every tap that is not cropped.

The taps of a position that reach the output are a rectangle of the kernel, so the mapper walks over that rectangle and
nothing else. All addresses are counted up; there is no division, and the only product is that of a few rows by the
width of the output, once a row.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._mm2im.geometry import Geometry
from dlas.hardware.accelerators._mm2im.loader import Settings


class Mapper(wiring.Component):
    """Addresses and flags for the array. Its registers stand still while results are held up.

    Ports: addresses of pixel and weights; flags of a product (``first``, ``enable``, ``last`` step); per pixel of the
    position, where its sum goes and whether that is within the row (``address``, ``inside``); whether nothing has been
    added there before (``fresh``); how many rows of the output have become whole (``whole_rows``).
    """

    def __init__(self, geometry: Geometry) -> None:
        g = self.geometry = geometry
        super().__init__(
            {
                "settings": In(Settings()),
                "restart": In(1),
                "waiting": In(16),
                "drained": In(16),
                "taken": Out(1),
                "done": Out(1),
                "pixel_address": Out(range(g.input_words)),
                "weight_address": Out(range(g.weight_words)),
                "part": Out(range(max(g.steps_per_word, 2))),
                "first": Out(1),
                "enable": Out(1),
                "last": Out(1),
                "fresh": Out(1),
                "inside": Out(g.pe_count),
                "address": Out(data.ArrayLayout(range(g.sum_words), g.pe_count)),
                "whole_rows": Out(14),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The walk: steps in taps, taps in columns and rows of the kernel, positions in rows, images and groups."""
        m = Module()
        columns, rows = self.settings.columns, self.settings.rows
        going, within = Signal(), Signal()
        i, j, step = Signal(5), Signal(5), Signal(14)
        position, row, image = Signal(13), Signal(13), Signal(12)
        left, top = (
            Signal(signed(16)),
            Signal(signed(16)),
        )  # where tap 0 of the first pixel, and of the row, goes
        j_low, j_high = _range(m, "columns", left, columns.hop - columns.stride, columns)
        i_low, i_high = _range(m, "rows", top, 0, rows)
        i_now, j_now, empty = Signal(5), Signal(5), Signal()
        tap_ends, line_ends, ends, row_ends, image_ends, group_ends = (
            Signal(name=f"{n}_ends") for n in ("tap", "line", "position", "row", "image", "group")
        )
        m.d.comb += [
            going.eq(within | ((self.waiting != 0) & self._has_room(m, top, image_ends))),
            i_now.eq(Mux(within, i, i_low)), j_now.eq(Mux(within, j, j_low)),
            empty.eq((i_low > i_high) | (j_low > j_high)),
            tap_ends.eq(going & (empty | (step == self.settings.common.steps - 1))),
            line_ends.eq(tap_ends & (empty | (j_now == j_high))), ends.eq(line_ends & (empty | (i_now == i_high))),
            row_ends.eq(ends & (position == columns.positions - 1)), image_ends.eq(row_ends & (row == rows.inputs - 1)),
            group_ends.eq(image_ends & (image == rows.images - 1)),
            self.taken.eq(going & ~within), self.done.eq(ends),
            self.enable.eq(going & ~empty), self.first.eq(step == 0), self.last.eq(tap_ends & ~empty),
            self.fresh.eq(
                ((row == 0) | (i_now + rows.stride >= rows.kernel))
                & ((position == 0) | (j_now + columns.hop >= columns.kernel))
            ),
        ]  # fmt: skip
        with m.If(going):
            m.d.sync += [within.eq(~ends), step.eq(Mux(tap_ends, 0, step + 1)), i.eq(i_now), j.eq(j_now)]
        with m.If(tap_ends):
            m.d.sync += j.eq(Mux(line_ends, j_low, j_now + 1))
        with m.If(line_ends):
            m.d.sync += i.eq(i_now + 1)
        with m.If(ends):
            m.d.sync += [position.eq(position + 1), left.eq(left + columns.hop)]
        with m.If(row_ends):
            m.d.sync += [position.eq(0), left.eq(-columns.begin), row.eq(row + 1), top.eq(top + rows.stride)]
        with m.If(image_ends):
            m.d.sync += [row.eq(0), top.eq(-rows.begin), image.eq(Mux(group_ends, 0, image + 1))]
        with m.If(self.restart):
            m.d.sync += [left.eq(-columns.begin), top.eq(-rows.begin), image.eq(0)]
        self._read(m, step, ends)
        self._weights(m, within, going, step, (tap_ends, line_ends, ends, row_ends, image_ends, group_ends))
        self._sums(m, within, going, line_ends, row_ends, image_ends, left, top, j_now)
        self._whole(m, top, row_ends, image_ends)
        return m

    def _has_room(self, m: Module, top: Signal, image_ends: Signal) -> Value:
        """Whether the rows that this row of the input adds to are free."""
        rows, sums = self.settings.rows, self.settings.sums
        before, opened, reached = Signal(16), Signal(16), Signal(signed(17))
        m.d.comb += [
            reached.eq(top + rows.kernel),
            opened.eq(before + Mux(reached < 0, 0, Mux(reached > rows.outputs, rows.outputs, reached))),
        ]
        with m.If(image_ends):
            m.d.sync += before.eq(before + rows.outputs)
        with m.If(self.restart):
            m.d.sync += before.eq(0)
        return (opened - self.drained)[:16] <= sums.ring_rows

    def _read(self, m: Module, step: Signal, ends: Signal) -> None:
        """Where the pixels are."""
        common, shift = self.settings.common, self.geometry.steps_per_word.bit_length() - 1
        slot, base = Signal(16), Signal(range(self.geometry.input_words))
        m.d.comb += [self.pixel_address.eq(base + (step >> shift)), self.part.eq(step & ((1 << shift) - 1))]
        with m.If(ends):
            m.d.sync += [slot.eq(slot + 1), base.eq(base + common.words)]
            with m.If(slot == common.slots - 1):
                m.d.sync += [slot.eq(0), base.eq(0)]
        with m.If(self.restart):
            m.d.sync += [slot.eq(0), base.eq(0)]

    def _weights(
        self, m: Module, within: Signal, going: Signal, step: Signal, endings: tuple[Signal, ...]
    ) -> None:
        """Where the weights are. ``back`` is how far the taps start before the first that reaches the output."""
        tap_ends, line_ends, ends, row_ends, image_ends, group_ends = endings
        common, columns, rows, sums = (
            self.settings.common, self.settings.columns, self.settings.rows, self.settings.sums,
        )  # fmt: skip
        g, half = self.geometry, Signal()
        column_back, row_back = Signal(signed(20)), Signal(signed(22))
        start, tap, line = (Signal(range(g.weight_words), name=n) for n in ("start", "tap", "line"))
        tap_now, line_now = Signal.like(tap), Signal.like(line)
        shift = g.steps_per_word.bit_length() - 1
        m.d.comb += [
            start.eq(Mux(half, g.weight_words // 2, 0) + _positive(column_back) + _positive(row_back)),
            tap_now.eq(Mux(within, tap, start)), line_now.eq(Mux(within, line, start)),
            self.weight_address.eq(tap_now + (step >> shift)),
        ]  # fmt: skip
        with m.If(going):
            m.d.sync += [tap.eq(tap_now), line.eq(line_now)]
        with m.If(tap_ends):
            m.d.sync += tap.eq(tap_now + common.words)
        with m.If(line_ends):
            m.d.sync += [tap.eq(line_now + rows.words), line.eq(line_now + rows.words)]
        with m.If(ends & (column_back > 0)):
            m.d.sync += column_back.eq(column_back - columns.back_hop)
        with m.If(row_ends):
            m.d.sync += column_back.eq(columns.back)
            with m.If(row_back > 0):
                m.d.sync += row_back.eq(row_back - sums.back_hop)
        with m.If(image_ends):
            m.d.sync += row_back.eq(rows.back)
        with m.If(group_ends):
            m.d.sync += half.eq(~half)
        with m.If(self.restart):
            m.d.sync += [column_back.eq(columns.back), row_back.eq(rows.back), half.eq(0)]

    def _sums(
        self, m: Module, within: Signal, going: Signal, line_ends: Signal, row_ends: Signal, image_ends: Signal,
        left: Signal, top: Signal, j: Signal,
    ) -> None:  # fmt: skip
        """Where the sums go: a ring of rows of the output; ``start`` is the row of the first kept row of taps."""
        columns, rows, sums = self.settings.columns, self.settings.rows, self.settings.sums
        places = range(self.geometry.sum_words)
        start, origin, line = (Signal(places, name=f"sum_{n}") for n in ("start", "origin", "line"))
        line_now, following, next_origin = Signal.like(line), Signal.like(line), Signal.like(line)
        below, moved = Signal(signed(17)), Signal(5)
        m.d.comb += [
            line_now.eq(Mux(within, line, start)),
            below.eq(top + rows.stride),
            moved.eq(Mux(top < 0, _positive(below), rows.stride)),
            following.eq(_around(start + moved * columns.outputs, sums.ring)),
            next_origin.eq(_around(origin + sums.image, sums.ring)),
        ]
        with m.If(going):
            m.d.sync += line.eq(line_now)
        with m.If(line_ends):
            m.d.sync += line.eq(_around(line_now + columns.outputs, sums.ring))
        with m.If(row_ends):
            m.d.sync += start.eq(following)
        with m.If(image_ends):
            m.d.sync += [start.eq(next_origin), origin.eq(next_origin)]
        with m.If(self.restart):
            m.d.sync += [start.eq(0), origin.eq(0)]
        for pixel in range(self.geometry.pe_count):
            column = Signal(signed(17), name=f"column_{pixel}")
            m.d.comb += [
                column.eq(left + j + pixel * columns.stride),
                self.inside[pixel].eq((column >= 0) & (column < columns.outputs)),
                self.address[pixel].eq(line_now + column),
            ]

    def _whole(self, m: Module, top: Signal, row_ends: Signal, image_ends: Signal) -> None:
        """Rows that nothing is added to any more; the last one waits for the last row of the input in any case."""
        rows = self.settings.rows
        before, now, next_top = Signal(14), Signal(14), Signal(signed(17))
        early = Mux(next_top >= rows.outputs, rows.outputs - 1, _positive(next_top))
        m.d.comb += [next_top.eq(top + rows.stride), now.eq(Mux(image_ends, rows.outputs, early))]
        with m.If(row_ends):
            m.d.comb += self.whole_rows.eq(now - before)
            m.d.sync += before.eq(Mux(image_ends, 0, now))
        with m.If(self.restart):
            m.d.sync += before.eq(0)


def _positive(value: Value) -> Value:
    return Mux(value > 0, value, 0)


def _around(place: Value, ring: Value) -> Value:
    """A place less than twice around the ring."""
    return Mux(place >= ring, place - ring, place)


def _range(m: Module, name: str, first: Signal, more: Value | int, axis: data.View) -> tuple[Signal, Signal]:
    """First and last tap that reach the output, from any of the pixels whose tap 0 goes to ``first`` .. ``+ more``."""
    low, high = Signal(signed(17), name=f"{name}_low"), Signal(signed(17), name=f"{name}_high")
    last, room = Signal(signed(17), name=f"{name}_last"), Signal(signed(17), name=f"{name}_room")
    m.d.comb += [
        last.eq(first + more),
        low.eq(Mux(last < 0, -last, 0)),
        room.eq(axis.outputs - 1 - first),
        high.eq(Mux(room < axis.kernel - 1, room, axis.kernel - 1)),
    ]
    return low, high
