"""Text of unknown origin made fit for a terminal."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

# Control characters (escape sequences begin with one), invisible format characters such as those that turn the
# direction of writing, halves of surrogate pairs, and the two separators that end a line without saying so.
_REMOVED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT = frozenset("\n\t")
_SHORT = 4000


def printable(text: object, longest: int = _SHORT, *, lines: bool = True) -> str:
    """``text`` without anything that could move the cursor, change colours, titles or the order of letters.

    Args:
        text: Anything; turned into text first.
        longest: Characters kept; what is cut is counted at the end.
        lines: Whether line breaks and tabs stay; else each becomes a space.

    Returns:
        Visible characters, spaces, and line breaks and tabs where ``lines``.
    """
    whole = str(text)
    kept = whole[:longest]
    if not kept.isascii() or not kept.isprintable():
        kept = "".join(c for c in kept if c in _KEPT or not _is_control(c))
        if not lines:
            kept = kept.replace("\n", " ").replace("\t", " ")
    return kept if len(whole) <= longest else f"{kept}… ({len(whole) - longest} characters more)"


@lru_cache(maxsize=4096)
def _is_control(character: str) -> bool:
    return unicodedata.category(character) in _REMOVED
