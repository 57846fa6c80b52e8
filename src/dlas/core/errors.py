"""The one error family of dlas.

A message says what was wrong, the value received and what is accepted; the hint says what to do next. The command
line prints both on one line and leaves with ``exit_code``: 2 for something the user can mend, 1 for a check that
failed, 3 for a defect of dlas itself (any exception outside this family).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 2000  # characters


class DlasError(Exception):
    """Anything dlas refuses to do, with the reason and the way out."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        # A name of ten million letters is no message.
        self.message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…"
        self.hint = hint if len(hint) <= _LONGEST else f"{hint[:_LONGEST]}…"
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class OptionError(DlasError):
    """An option has a value outside what it accepts."""

    def __init__(self, option: str, value: object, accepted: str, hint: str = "") -> None:
        super().__init__(f"{option} = {value!r} is not accepted: expected {accepted}", hint)


class UnknownNameError(DlasError):
    """A name that no registry, table or model knows; carries the closest ones that exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name[:100], names, n=3, cutoff=0.5)
        if close:
            guess = "did you mean " + " or ".join(repr(c) for c in close) + "?"
        elif names:
            shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            guess = f"known: {shown}"
        else:
            guess = "none is known"
        super().__init__(f"unknown {kind} {name!r}: {guess}", hint)


class ModelError(DlasError):
    """A model file is missing, truncated, of another type than it says, or not a valid network."""


class DataError(DlasError):
    """A data set is missing, unreadable, empty or does not fit the model."""


class ShapeError(DlasError):
    """An array or tensor has another shape or dtype than the network declares."""


class StorageError(DlasError):
    """A disk is full, read-only or gone, or a place may not be written.

    It is no fault of what was tried, so a study keeps no row of it: the run stops, and goes on where it was later.
    """


class UnsupportedError(DlasError):
    """The choice exists but cannot do what was asked of it; a study keeps this as a row, not as a failure."""


class MissingDependencyError(UnsupportedError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs {library}, which is not installed",
            f"pip install 'dlas[{extra}]'",
        )


class CheckFailedError(DlasError):
    """A comparison the user asked to be enforced did not hold."""

    exit_code = 1
