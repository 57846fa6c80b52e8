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
import traceback
from typing import Any

_PR_SET_PDEATHSIG = 1
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


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

    from dlas.core import _wire

    for module in setup["preload"]:
        importlib.import_module(module)
    with socket.socket(fileno=setup["socket"]) as link:

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
    full = False
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        full = True
        text = f"cannot write {error.filename or 'a file'}: {error.strerror}"
    elif isinstance(error, DlasError):
        text = error.message if ours else str(error)
    return {
        "reason": " ".join(text.split()) or type(error).__name__,
        "unsupported": isinstance(error, UnsupportedError),
        # Compilers and other native code say it in words only.
        "storage": full or ours or os.strerror(errno.ENOSPC) in text,
        "hint": error.hint if ours else "",
        "exit_code": error.exit_code if isinstance(error, DlasError) else 1,
    }


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
