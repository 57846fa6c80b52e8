"""Options of the engine that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dlas.core.errors import OptionError
from dlas.core.options import Choice

Policy = Annotated[
    str,
    typer.Option(
        help="How the engine chooses kernels: portfolio (default), measure, rules, or fixed (--impl)."
    ),
]
Impl = Annotated[
    list[str] | None,
    typer.Option(
        help="Kernel the engine must use, such as Conv=gspc or node:/layer1/conv=onnxruntime; the last one wins."
    ),
]
Plugin = Annotated[
    list[Path] | None,
    typer.Option(help="Shared object with layers of your own for the engine; loading it runs its code."),
]
Isa = Annotated[str, typer.Option(help="Instruction set, such as x86-64-v3.")]


def engine_choice(
    backend: str, policy: str = "", impl: Sequence[str] | None = None, plugin: Sequence[Path] | None = None
) -> str:
    """``backend`` with the engine's options from the command line added, checked for names that nothing has.

    Raises:
        OptionError: They are given and the back end is another.
        UnknownNameError: No such kernel; with plug-ins only the worker that loads them can tell.
    """
    from dlas.runtime.backends.engine import POLICIES
    from dlas.runtime.engine.select import Rule

    if policy and policy not in POLICIES:
        raise OptionError("--policy", policy, "one of " + ", ".join(POLICIES))
    for text in () if plugin else impl or ():
        Rule.parse(text)
    choice = Choice.parse(backend)
    given = {
        "policy": policy,
        "impl": "+".join(impl or ()),
        "plugin": "+".join(str(path.resolve()) for path in plugin or ()),
    }
    given = {name: value for name, value in given.items() if value}
    if not given:
        return str(choice)
    if choice.name != "engine":
        name, value = next(iter(given.items()))
        raise OptionError(
            f"--{name}", value, f"none with the back end {choice.name}: it is an option of engine"
        )
    options = choice.as_dict()
    if "impl" in options and "impl" in given:
        given["impl"] = f"{options['impl']}+{given['impl']}"
    return str(Choice.of("engine", **{**options, **given}))


def engine_target(target: str, isa: str) -> str:
    """``target`` held to an instruction set; raises OptionError where it names one of its own."""
    if not isa:
        return target
    choice = Choice.parse(target)
    if "isa" in choice.as_dict():
        raise OptionError("--isa", isa, f"none beside --target {target}, which names one")
    return str(Choice.of(choice.name, **{**choice.as_dict(), "isa": isa}))
