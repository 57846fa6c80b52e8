"""A fresh child process for steps that may crash, hang or eat all memory.

Converters, compilers and engines run third-party native code. A :class:`Worker` runs named functions in a child
Python process, one after the other, so that state can live in the child's module globals; whatever happens to the
child becomes a :class:`WorkerFailure` with an outcome, a reason and the last lines the child wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from dlas.core import _wire
from dlas.core.errors import DlasError, StorageError
from dlas.core.figure import Outcome
from dlas.core.files import scratch_folder
from dlas.core.telling import Tell
from dlas.core.text import printable

_ROOM = "make room on the disk, or point DLAS_CACHE, TMPDIR and the output at one that has"
_TICK_S = 0.05
_TAIL_LINES = 20
_TAIL_BYTES = 16384
_TOLD = 200  # characters of a line of progress
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "TVM_NUM_THREADS",
    "RAYON_NUM_THREADS",
)  # fmt: skip
_SIGNAL_WORDS = {
    signal.SIGSEGV: "segmentation fault",
    signal.SIGABRT: "aborted itself",
    signal.SIGILL: "illegal instruction",
    signal.SIGFPE: "arithmetic error",
    signal.SIGBUS: "bad memory access",
}


class WorkerFailure(DlasError):  # noqa: N818 - it is an outcome to record, not only an error
    """A call in a worker did not return.

    Attributes:
        outcome: ``crash``, ``timeout`` or ``unsupported``.
        reason: Why, in one line.
        stderr_tail: Last lines the worker wrote to its standard streams.
    """

    def __init__(self, outcome: Outcome, reason: str, stderr_tail: str = "", exit_code: int = 1) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason
        self.stderr_tail = stderr_tail
        self.exit_code = exit_code


class _LinkError(Exception):
    """The other end of the socket is gone."""


class Worker:
    """A child process that serves calls; use as a context manager or call :meth:`close`.

    Args:
        threads: The child stays on this many of the processors allowed to the parent, and the thread pools of OpenMP,
            BLAS and TVM are sized to it before anything is imported. None leaves both alone.
        memory_bytes: The child is killed when it and its own children together hold more than this in memory.
        env: Environment variables to add.
        name: What the worker is called in messages.
        preload: Modules that the child imports before its first call, while the parent does something else.
    """

    def __init__(
        self,
        *,
        threads: int | None = None,
        memory_bytes: int | None = None,
        env: Mapping[str, str] | None = None,
        name: str = "worker",
        preload: Sequence[str] = (),
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads = {threads}: expected at least 1")
        self.name = name
        self.memory_bytes = memory_bytes
        self._ended = ""
        self._held = contextlib.ExitStack()
        scratch = self._held.enter_context(scratch_folder())
        self._log: IO[bytes] = self._held.enter_context((scratch / "log").open("w+b"))
        ours, theirs = socket.socketpair()
        self._link = ours
        setup = {
            "socket": theirs.fileno(),
            "parent": os.getpid(),
            "path": [str(p) for p in sys.path],
            "threads": threads,
            "preload": list(preload),
        }
        counts = dict.fromkeys(_THREAD_VARIABLES, str(threads)) if threads else {}
        with theirs:
            self._process = _spawn(
                [sys.executable, "-P", "-m", "dlas.core._worker_child", json.dumps(setup)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                # Temporary files of the libraries go with the worker, however it ends.
                env={**os.environ, "TMPDIR": str(scratch), **counts, **(env or {})},
                start_new_session=True,  # Ctrl-C goes to the parent alone; the group can be killed as one
            )

    @property
    def alive(self) -> bool:
        """Whether the worker can take another call."""
        return not self._ended and not self._is_dead()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def call(
        self,
        function: str,
        /,
        *args: Any,
        timeout_s: float = 300,
        tell: Tell | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run ``function`` in the child and return its value.

        Args:
            function: ``package.module:function``; imported in the child.
            args: Positional arguments: JSON-like values, bytes, NumPy arrays, and lists, tuples and dictionaries of
                these. Paths arrive as text.
            timeout_s: Longest time to wait for the answer.
            tell: Receives the lines that the function gives to :func:`dlas.core.telling.tell_caller` as it works.
            kwargs: Keyword arguments, as ``args``.

        Raises:
            WorkerFailure: The function raised (the worker lives on), or the child died, hung or took too much memory
                (the worker has ended).
            StorageError: The function raised because a disk is full or cannot be written (the worker lives on).
        """
        if self._ended:
            raise WorkerFailure(Outcome.CRASH, f"the {self.name} has ended: {self._ended}")
        message = _wire.pack({"function": function, "args": args, "kwargs": kwargs})
        try:
            reply = self._exchange(message, timeout_s, tell)
        except _LinkError:
            raise self._fail(Outcome.CRASH, "") from None
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise self._fail(Outcome.CRASH, f"its answer cannot be read: {error}") from error
        except WorkerFailure:
            raise
        except BaseException as error:  # Ctrl-C in the middle of an answer: the link is out of step
            self._end(type(error).__name__)
            raise
        if "error" in reply:
            error = reply["error"]
            if error["storage"]:
                raise StorageError(error["reason"], error["hint"] or _ROOM)
            outcome = Outcome.UNSUPPORTED if error["unsupported"] else Outcome.CRASH
            raise WorkerFailure(outcome, error["reason"], self.stderr_tail(), error["exit_code"])
        return reply["value"]

    def stderr_tail(self) -> str:
        """The last lines the child wrote to its standard streams (20 at most)."""
        if self._log.closed:
            return ""
        end = os.fstat(self._log.fileno()).st_size
        # pread, because the child shares the file's position.
        text = os.pread(self._log.fileno(), _TAIL_BYTES, max(0, end - _TAIL_BYTES)).decode(errors="replace")
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        lines = [printable(line.rstrip("\r").rsplit("\r", 1)[-1], _TAIL_BYTES) for line in text.split("\n")]
        return "\n".join([line.rstrip() for line in lines if line.strip()][-_TAIL_LINES:])

    def close(self) -> None:
        """End the child and everything it started; calling it again does nothing."""
        self._end("it was closed")
        self._held.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()

    def _exchange(self, message: list[bytes | memoryview], timeout_s: float, tell: Tell | None) -> Any:
        deadline = time.monotonic() + timeout_s
        self._link.settimeout(_TICK_S)
        polls = 0

        def patiently(step: Callable[[], int]) -> int:
            nonlocal polls
            while True:
                try:
                    done = step()
                except TimeoutError:
                    polls += 1
                    self._check(polls, deadline, timeout_s)
                    continue
                except OSError as error:
                    raise _LinkError from error
                if done == 0:
                    raise _LinkError
                return done

        def read(count: int) -> bytearray:
            data = bytearray(count)
            view, got = memoryview(data), 0
            while got < count:
                rest = view[got:]
                got += patiently(lambda rest=rest: self._link.recv_into(rest))
            return data

        for part in message:
            view, sent = memoryview(part).cast("B"), 0
            while sent < len(view):
                rest = view[sent:]
                sent += patiently(lambda rest=rest: self._link.send(rest))
        while "told" in (reply := _wire.unpack(read)):
            if tell is not None:
                tell(printable(reply["told"], _TOLD, lines=False))
            self._check(polls, deadline, timeout_s)
        return reply

    def _check(self, polls: int, deadline: float, timeout_s: float) -> None:
        if self._is_dead():
            raise _LinkError
        if time.monotonic() > deadline:
            raise self._fail(Outcome.TIMEOUT, f"no answer within {timeout_s:g} s")
        if self.memory_bytes is not None:
            # Looking for grandchildren costs more, so it is done twice a second only.
            used = _resident(self.pid, with_children=polls % 10 == 0)
            if used > self.memory_bytes:
                limit = f"{self.memory_bytes / 2**30:.3g} GiB"
                raise self._fail(Outcome.CRASH, f"used more than {limit} of memory")

    def _fail(self, outcome: Outcome, reason: str) -> WorkerFailure:
        """End the child; an empty ``reason`` means that it ended by itself and left word in its exit status."""
        until = time.monotonic() + 5
        while not reason and not self._is_dead() and time.monotonic() < until:
            time.sleep(0.002)
        died = not reason and self._is_dead()
        self._end(reason or "it is gone")
        if not reason:
            reason = cause_of_death(self._process.returncode) if died else "it closed its connection"
            self._ended = reason
        return WorkerFailure(outcome, reason, self.stderr_tail())

    def _is_dead(self) -> bool:
        # WNOWAIT leaves the zombie in place: as long as it is there, its id (and its group's) is not given away,
        # and `_end` can safely signal the group.
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = reason
        self._link.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def run_in_worker(
    function: str,
    /,
    *args: Any,
    timeout_s: float = 300,
    memory_bytes: int | None = None,
    threads: int | None = None,
    tell: Tell | None = None,
    **kwargs: Any,
) -> Any:
    """One call in a worker of its own; arguments and errors as :meth:`Worker.call`."""
    with Worker(threads=threads, memory_bytes=memory_bytes) as worker:
        return worker.call(function, *args, timeout_s=timeout_s, tell=tell, **kwargs)


def child_memory() -> dict[str, int]:
    """Memory of the calling process: ``rss_bytes`` now and ``peak_rss_bytes`` since its start or :func:`reset_peak`."""
    facts = _status(os.getpid())
    return {"rss_bytes": facts.get("VmRSS", 0), "peak_rss_bytes": facts.get("VmHWM", 0)}


def reset_peak() -> bool:
    """Let ``peak_rss_bytes`` count from now on; returns whether the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def cause_of_death(status: int) -> str:
    """What the return code of a process says, in words (``killed by SIGSEGV (segmentation fault)``)."""
    if status >= 0:
        return f"ended with exit code {status}"
    if -status == signal.SIGKILL:
        return "killed (out of memory?)"
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"killed by signal {-status}"
    words = _SIGNAL_WORDS.get(number)
    return f"killed by {number.name}" + (f" ({words})" if words else "")


def _status(pid: int) -> dict[str, int]:
    """The ``Vm...`` lines of ``/proc/PID/status`` in bytes; empty when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(Vm\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def _resident(pid: int, with_children: bool) -> int:
    total = _status(pid).get("VmRSS", 0)
    return total + sum(_resident(child, True) for child in _children(pid)) if with_children else total


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


class _Spawner(threading.Thread):
    """Starts processes from one thread that lasts as long as this process.

    The kernel's "kill the child when its parent dies" watches the *thread* that started the child; a worker started
    from a short-lived thread would be killed when that thread ends.
    """

    def __init__(self) -> None:
        super().__init__(name="dlas-spawner", daemon=True)
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            self._orders.get()()

    def spawn(self, command: list[str], options: dict[str, Any]) -> subprocess.Popen[Any]:
        answer: queue.SimpleQueue[subprocess.Popen[Any] | BaseException] = queue.SimpleQueue()

        def order() -> None:
            try:
                answer.put(subprocess.Popen(command, **options))
            except BaseException as error:
                answer.put(error)

        self._orders.put(order)
        result = answer.get()
        if isinstance(result, BaseException):
            raise result
        return result


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()


def _spawn(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    if threading.current_thread() is threading.main_thread():
        return subprocess.Popen(command, **options)
    global _spawner
    with _spawner_lock:
        if _spawner is None or not _spawner.is_alive():
            _spawner = _Spawner()
        spawner = _spawner
    return spawner.spawn(command, options)
