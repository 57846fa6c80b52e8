"""Lines of progress, from a function that may run in a worker to whoever called it."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

Tell = Callable[[str], None]

_EVERY_S = 2.0
_send: Tell | None = None


def tell_caller(text: str) -> None:
    """Pass one line to the process that called the function which runs now; outside a worker it is dropped.

    Only the thread that was called may use it: lines and the answer share one connection.
    """
    if _send is not None:
        _send(text)


def connect(send: Tell) -> None:
    """Have :func:`tell_caller` pass lines on; a worker does so before its first call."""
    global _send
    _send = send


def now_and_then(tell: Tell, every_s: float = _EVERY_S) -> Tell:
    """``tell``, for steps of which there are too many: a line once in ``every_s`` seconds, none in the first."""
    last = monotonic()

    def told(text: str) -> None:
        nonlocal last
        if monotonic() - last >= every_s:
            tell(text)
            last = monotonic()

    return told
