"""Per-format unpackers: where a sub-block of 16 weights stands in the planes of its super-block, and what it means.

Each format is one class; all of them feed the same multipliers. ``sub`` is the number of the sub-block, 0 .. 15, of
which a second group of lanes takes the odd ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from amaranth.hdl import Array, Cat, Const, Value

from dlas.hardware.accelerators._bfp.formats import SUB_BLOCK


class Unpacker:
    """A format whose codes are the bytes of the low plane and that has no scales: Q8_0."""

    def low_address(self, sub: Value) -> Value:
        """Word of the low plane."""
        return sub

    def high_address(self, sub: Value) -> Value:
        """Word of the high plane."""
        return Const(0, 1)

    def code(self, low: Value, high: Value, sub: Value) -> Value:
        """A signed code out of a byte of each plane."""
        return low.as_signed()

    def scale(self, word: Value, sub: Value) -> Value:
        """The signed scale of a sub-block, out of the word of scales."""
        return Const(1, 8).as_signed()

    def minimum(self, word: Value, sub: Value) -> Value:
        """Its minimum, 6 bits without a sign."""
        return Const(0, 6)


class _Q2(Unpacker):
    def low_address(self, sub: Value) -> Value:
        return Cat(sub[0], sub[3])

    def code(self, low: Value, high: Value, sub: Value) -> Value:
        return Cat(_two_bits(low, sub), Const(0, 1)).as_signed()

    def scale(self, word: Value, sub: Value) -> Value:
        return Cat(word.word_select(sub, 8)[:4], Const(0, 4)).as_signed()

    def minimum(self, word: Value, sub: Value) -> Value:
        return word.word_select(sub, 8)[4:]


class _Q3(_Q2):
    def high_address(self, sub: Value) -> Value:
        return sub[0]

    def code(self, low: Value, high: Value, sub: Value) -> Value:
        return Cat(_two_bits(low, sub), ~high.bit_select(sub[1:], 1)).as_signed()  # a clear bit subtracts 4

    def scale(self, word: Value, sub: Value) -> Value:
        low = _pick([b[:4] for b in _bytes(word, 0, 8)] + [b[4:] for b in _bytes(word, 0, 8)], sub)
        high = _pick(_bytes(word, 8, 4), sub[:2]).word_select(sub[2:], 2)
        return Cat(low, high[0], ~high[1]).as_signed()  # less 32

    def minimum(self, word: Value, sub: Value) -> Value:
        return Const(0, 6)


class _Q4(Unpacker):
    def low_address(self, sub: Value) -> Value:
        return Cat(sub[0], sub[2:])

    def code(self, low: Value, high: Value, sub: Value) -> Value:
        return Cat(low.word_select(sub[1], 4), Const(0, 1)).as_signed()

    def scale(self, word: Value, sub: Value) -> Value:
        first, _, rest = (_bytes(word, 4 * i, 4) for i in range(3))
        whole = [byte[:6] for byte in first] + [Cat(r[:4], f[6:]) for r, f in zip(rest, first, strict=True)]
        return Cat(_pick(whole, sub[1:]), Const(0, 2)).as_signed()

    def minimum(self, word: Value, sub: Value) -> Value:
        _, second, rest = (_bytes(word, 4 * i, 4) for i in range(3))
        whole = [byte[:6] for byte in second] + [Cat(r[4:], s[6:]) for r, s in zip(rest, second, strict=True)]
        return _pick(whole, sub[1:])


class _Q5(_Q4):
    def high_address(self, sub: Value) -> Value:
        return sub[0]

    def code(self, low: Value, high: Value, sub: Value) -> Value:
        return Cat(low.word_select(sub[1], 4), high.bit_select(sub[1:], 1), Const(0, 1)).as_signed()


class _Q6(Unpacker):
    def low_address(self, sub: Value) -> Value:
        return Cat(sub[0], sub[1], sub[3])

    def high_address(self, sub: Value) -> Value:
        return Cat(sub[0], sub[3])

    def code(self, low: Value, high: Value, sub: Value) -> Value:
        top = _two_bits(high, sub)
        return Cat(low.word_select(sub[2], 4), top[0], ~top[1]).as_signed()  # less 32

    def scale(self, word: Value, sub: Value) -> Value:
        return word.word_select(sub, 8).as_signed()


UNPACKERS: Mapping[str, Unpacker] = {
    "Q2_K": _Q2(),
    "Q3_K": _Q3(),
    "Q4_K": _Q4(),
    "Q5_K": _Q5(),
    "Q6_K": _Q6(),
    "Q8_0": Unpacker(),
}


def lane(word: Value, place: int) -> Value:
    """A byte of a word of 16."""
    assert place < SUB_BLOCK
    return word[8 * place : 8 * place + 8]


def _two_bits(byte: Value, sub: Value) -> Value:
    """The pair of bits that belongs to a quarter of 128 elements."""
    return byte.word_select(sub[1:3], 2)


def _bytes(word: Value, first: int, count: int) -> list[Value]:
    return [lane(word, first + i) for i in range(count)]


def _pick(options: list[Value], index: Value) -> Value:
    return Value.cast(Array(options)[index])
