"""What runs inside a worker process: answer calls until the parent hangs up.

Only the standard library is imported before affinity and the tie to the parent are set; thread counts are already in
the environment when the interpreter starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

_PR_SET_PDEATHSIG = 1
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_LITTLE = 64 << 20  # bytes; a compiler that ran out of room has removed its unfinished files by now


def main(setup: dict[str, Any]) -> None:
    """Serve calls on the inherited socket.

    Args:
        setup: ``socket`` (descriptor), ``parent`` (process id), ``path`` (``sys.path`` of the parent) and ``threads``
            (number of processors to stay on, or None) and ``preload`` (modules to import before the first call).
    """
    _die_with(setup["parent"])
    if setup["threads"]:
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[: setup["threads"]])
    faulthandler.enable()
    sys.path[:] = setup["path"]
    os.set_inheritable(setup["socket"], False)

    from dlas.core import _wire, telling

    for module in setup["preload"]:
        importlib.import_module(module)
    with socket.socket(fileno=setup["socket"]) as link:

        def send(message: dict[str, Any]) -> None:
            for part in _wire.pack(message):
                link.sendall(part)

        telling.connect(lambda text: send({"told": str(text)}))

        def read(count: int) -> bytearray:
            return _read(link, count)

        while True:
            try:
                request = _wire.unpack(read)
            except EOFError:
                return
            for part in _answer(request):
                link.sendall(part)


def _answer(request: dict[str, Any]) -> list[bytes | memoryview]:
    from dlas.core import _wire

    try:
        module, _, name = request["function"].partition(":")
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        value = function(*request["args"], **request["kwargs"])
        return _wire.pack({"value": value})
    except BaseException as error:
        with contextlib.suppress(OSError):  # the log is on a disk that may be full
            traceback.print_exc()
            sys.stderr.flush()
        return _wire.pack({"error": _describe(error)})
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()


def _describe(error: BaseException) -> dict[str, Any]:
    from dlas.core.errors import DlasError, StorageError, UnsupportedError

    ours = isinstance(error, StorageError)
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    refusal = next((e for e in _chain(error) if isinstance(e, OSError) and e.errno in _NO_ROOM), None)
    if ours:
        text = error.message
    elif refusal is not None:
        text = f"cannot write {refusal.filename or 'a file'}: {refusal.strerror}"
    elif isinstance(error, DlasError):
        text = str(error)
    return {
        "reason": " ".join(text.split()) or type(error).__name__,
        "unsupported": isinstance(error, UnsupportedError),
        "storage": ours or refusal is not None or _said_in_words(text),
        "hint": error.hint if ours else "",
        "exit_code": error.exit_code if isinstance(error, DlasError) else 1,
    }


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, as a traceback shows them."""
    following: BaseException | None = error
    seen: set[int] = set()
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _said_in_words(text: str) -> bool:
    """Whether native code ran out of room: it says so at the end of a line, and there is hardly any.

    Names in a network stand in messages too, so words alone prove nothing.
    """
    words = os.strerror(errno.ENOSPC)
    return any(line.rstrip(" .\t'\")").endswith(words) for line in text.splitlines()) and any(
        _is_full(place) for place in (tempfile.gettempdir, os.getcwd)
    )


def _is_full(place: Callable[[], str]) -> bool:
    try:
        there = os.statvfs(place())
    except OSError:  # the folder is gone, or no temporary file can be made anywhere
        return True
    no_names = there.f_files > 0 and there.f_favail == 0
    return there.f_blocks > 0 and (no_names or there.f_bavail * there.f_frsize < _LITTLE)


def _read(link: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        received = link.recv_into(view[got:])
        if received == 0:
            raise EOFError
        got += received
    return data


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the parent is gone, however it went."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the call above
        os._exit(1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
