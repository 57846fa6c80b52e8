"""Runs under a side environment's Python, which has no dlas: carries out one order and writes ``result.json``.

Usage: ``python -I driver.py order.json``. The order names the script beside this one that knows the tool.
"""

import contextlib
import importlib.metadata
import json
import os
import runpy
import sys
import traceback
from typing import Any


def main(place: str) -> None:
    """Carry out the order in the file ``place``."""
    with open(place) as file:
        order = json.load(file)
    answer: dict[str, Any] = {"versions": {name: version(name) for name in order["reports"]}}
    write(order["result"], answer)  # a crash of the process leaves the versions
    try:
        runpy.run_path(order["runner"])["convert"](order)
        answer.update(status="ok", reason="")
    except NotImplementedError as error:
        answer.update(status="unsupported", reason=reason(error))
    except SystemExit as stop:
        if stop.code in (None, 0):
            answer.update(status="ok", reason="")
        else:
            answer.update(status="crash", reason=f"the tool gave up with exit code {stop.code}")
    except BaseException as error:
        traceback.print_exc()
        answer.update(status="crash", reason=reason(error))
    write(order["result"], answer)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(0)  # libraries that crash while they are unloaded change nothing any more


def version(name: str) -> str:
    """Version of a distribution, or an empty string."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def reason(error: BaseException) -> str:
    """The error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def write(path: str, answer: dict[str, Any]) -> None:
    """Write the answer in one step."""
    with open(path + ".new", "w") as file:
        json.dump(answer, file)
    os.replace(path + ".new", path)


if __name__ == "__main__":
    main(sys.argv[1])
