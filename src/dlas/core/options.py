"""Typed options of a choice, and the one spelling of a choice: ``name:key=value,key=value``.

A member of a family declares its options as a frozen dataclass whose fields are made by :func:`option`; this module
turns text, TOML values or keyword arguments into that dataclass and refuses what it does not accept.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dlas.core.errors import DlasError, OptionError, UnknownNameError

O = TypeVar("O")  # noqa: E741 - the options dataclass

_CHOICE = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*)(?::(?P<options>.+))?$")


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] = (),
    use: str = "",
) -> Any:
    """A dataclass field with its accepted range.

    Args:
        default: Value when nothing is given.
        help: One line for ``dlas list`` and ``--help``.
        low: Smallest accepted value.
        high: Largest accepted value.
        below: Bound the value must stay strictly under.
        choices: The only accepted values.
        use: For what it is looked at, where the member does several things (``reading`` or ``writing`` of a format).
    """
    return dataclasses.field(
        default=default,
        metadata={"help": help, "low": low, "high": high, "below": below, "choices": choices, "use": use},
    )


@dataclass(frozen=True)
class NoOptions:
    """Options of a choice that has none."""


@dataclass(frozen=True)
class Choice:
    """A choice as written: a name and the options given for it.

    ``str(choice)`` is canonical (options sorted by name), so it can serve as a key.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, name: str, **options: Any) -> Choice:
        """Build a choice from keyword options."""
        return cls(name, tuple(sorted(options.items())))

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Read ``name`` or ``name:key=value,key=value``; a bare ``key`` means ``key=true``.

        Raises:
            OptionError: The text has another form.
        """
        match = _CHOICE.match(text.strip())
        if match is None:
            raise OptionError("choice", text, "a name, or name:key=value,key=value")
        options: dict[str, Any] = {}
        for part in filter(None, (match["options"] or "").split(",")):
            key, sign, value = part.partition("=")
            options[key.strip().replace("-", "_")] = parse_value(value.strip()) if sign else True
        return cls.of(match["name"], **options)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return self.name + ":" + ",".join(f"{k}={_spell(v)}" for k, v in self.options)

    def as_dict(self) -> dict[str, Any]:
        """The options as a dictionary."""
        return dict(self.options)


def parse_value(text: str) -> Any:
    """``true``/``false``, integers and floats become what they look like; anything else stays text."""
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def split_choices(text: str) -> list[str]:
    """Split ``a,b:x=1,y=2,c`` into choices: a part with ``=`` and no ``:`` belongs to the one before it."""
    found: list[str] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        if found and "=" in part and ":" not in part:
            found[-1] += "," + part
        else:
            found.append(part)
    return found


def build_options(kind: type[O], given: Mapping[str, Any], owner: str) -> O:
    """Make the options dataclass ``kind`` from ``given``, checking names, types and ranges.

    Raises:
        UnknownNameError: An option the owner does not have.
        OptionError: A value of the wrong type or outside its range.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in fields:
            raise UnknownNameError(f"option of {owner}", name, fields)
        values[name] = _checked(f"{owner}: {name}", value, hints[name], fields[name].metadata)
    return kind(**values)


def describe_options(kind: type) -> dict[str, dict[str, Any]]:
    """Name to type, default, range and help of every option, for ``dlas list``."""
    hints = typing.get_type_hints(kind)
    described = {}
    for f in dataclasses.fields(kind):
        meta = {k: v for k, v in f.metadata.items() if v not in (None, (), "")}
        described[f.name] = {"type": _type_name(hints[f.name]), "default": f.default, **meta}
    return described


def options_dict(options: Any) -> dict[str, Any]:
    """Options dataclass to a plain dictionary, defaults included (the full recipe, fit for provenance)."""
    return dataclasses.asdict(options)


def _checked(label: str, value: Any, hint: Any, meta: Mapping[str, Any]) -> Any:
    accepted = _members(hint)
    if value is None and type(None) in accepted:
        return None
    if isinstance(value, bool):
        if bool not in accepted:
            raise OptionError(label, value, _type_name(hint))
    elif isinstance(value, int) and int not in accepted and float in accepted:
        value = float(value)
    elif isinstance(value, int | float) and str in accepted and type(value) not in accepted:
        value = str(value)
    if isinstance(value, list):
        value = tuple(value)
    if type(value) not in accepted:
        raise OptionError(label, value, _type_name(hint))
    choices = meta.get("choices") or ()
    if choices and value not in choices:
        raise OptionError(label, value, "one of " + ", ".join(map(str, choices)))
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high, below = meta.get("low"), meta.get("high"), meta.get("below")
        bad = (
            value != value
            or (low is not None and value < low)
            or (high is not None and value > high)
            or (below is not None and value >= below)
        )
        if bad:
            parts = [
                f"{sign} {bound}"
                for sign, bound in ((">=", low), ("<=", high), ("<", below))
                if bound is not None
            ]
            raise OptionError(label, value, "a number " + " and ".join(parts or ["that is finite"]))
    return value


def _members(hint: Any) -> tuple[type, ...]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return tuple(m for arm in typing.get_args(hint) for m in _members(arm))
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return tuple({type(v) for v in typing.get_args(hint)})
    return (origin or hint,)


def _type_name(hint: Any) -> str:
    return " or ".join("none" if m is type(None) else m.__name__ for m in _members(hint))


def _spell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class Configurable:
    """Base of every member of a family: it declares what it is and holds validated options.

    Class attributes (data about the member, no code):
        name: Registered name.
        summary: One line of purpose.
        Options: Frozen dataclass of its options.
        requires: Importable modules it needs, each with the extra that installs it.
    """

    name: typing.ClassVar[str] = ""
    summary: typing.ClassVar[str] = ""
    Options: typing.ClassVar[type] = NoOptions
    requires: typing.ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: Any = None, **given: Any) -> None:
        if options is not None and given:
            raise DlasError(f"{self.name}: give either an options object or keyword options, not both")
        self.options = options if options is not None else build_options(type(self).Options, given, self.name)

    @classmethod
    def missing(cls) -> str:
        """Why this member cannot be used here (which extra to install), or an empty string."""
        from dlas.core.lazy import installed

        for module, extra in cls.requires.items():
            if not installed(module):
                return f"needs {module}: pip install 'dlas[{extra}]'"
        return ""

    def spelled(self) -> str:
        """This member with its non-default options, as a user would write it."""
        fields = dataclasses.fields(self.options)
        changed = {
            f.name: getattr(self.options, f.name)
            for f in fields
            if getattr(self.options, f.name) != f.default
        }
        return str(Choice.of(self.name, **changed))
