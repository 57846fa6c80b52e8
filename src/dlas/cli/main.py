"""The ``dlas`` command: collects the command modules and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Annotated, Any

import typer

import dlas
from dlas.cli import (
    asymmetric,
    attack,
    bench,
    compare,
    compress,
    convert,
    data,
    doctor,
    hw,
    info,
    listing,
    localize,
    mutate,
    optimize,
    profile,
    repair,
    report,
    run,
    serve,
    study,
)
from dlas.core.errors import DlasError

# typer carries its own copy of click, so its errors are found through the one it exports.
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

_INTERRUPTED = 130

app = typer.Typer(
    name="dlas",
    help="Compress, convert, check, compile and measure a network for a small device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _module in (
    run,
    listing,
    info,
    doctor,
    data,
    compress,
    convert,
    compare,
    localize,
    mutate,
    attack,
    repair,
    optimize,
    bench,
    profile,
    hw,
    asymmetric,
    study,
    report,
    serve,
):
    _module.add_to(app)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"dlas {dlas.__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["DLAS_DEBUG"] = "1"


def main(arguments: list[str] | None = None) -> None:
    """Entry point; leaves with 0, 1 (a check failed), 2 (user error), 3 (our defect) or 130 (interrupted)."""
    sys.exit(run_command(sys.argv[1:] if arguments is None else arguments))


def run_command(arguments: list[str]) -> int:
    """Run one command line and return its exit code.

    An error is one line on standard error; with ``--json`` standard output gets an object with it as well.
    """
    json = "--json" in arguments
    try:
        result = app(arguments, standalone_mode=False)
        if result == _INTERRUPTED:  # typer's word for Ctrl-C
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except DlasError as error:
        _debug()
        return _fail(error.message, error.exit_code, error.hint, json=json)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; the same command goes on where it was", _INTERRUPTED, json=json)
    except _UsageError as error:
        return _fail(error.format_message().rstrip(".") + "; see --help", 2, json=json)
    except typer.Exit as stop:
        return stop.exit_code
    except BrokenPipeError:
        # The reader of our output went away (`dlas list | head`): nothing is left to be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        _debug()
        return _fail(
            f"internal error: {type(error).__name__}: {error}",
            3,
            "this is a defect of dlas; --debug shows where",
            json=json,
        )


def _fail(text: str, code: int, hint: str = "", *, json: bool) -> int:
    from dlas.cli._shared import say, write_json

    text, hint = " ".join(text.split()), " ".join(hint.split())
    say(f"dlas: {text} ({hint})" if hint else f"dlas: {text}")
    if json:
        with contextlib.suppress(BrokenPipeError):
            write_json({"error": text, "hint": hint, "exit_code": code})
    return code


def _debug() -> None:
    from dlas.cli._shared import say

    if os.environ.get("DLAS_DEBUG"):
        say(traceback.format_exc())


if __name__ == "__main__":
    main()
