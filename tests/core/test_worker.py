"""Whatever happens to a worker becomes an outcome with a reason, and nothing is left running."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from dlas.core.errors import DataError, StorageError, UnsupportedError
from dlas.core.figure import Outcome
from dlas.core.telling import now_and_then, tell_caller
from dlas.core.worker import Worker, WorkerFailure, run_in_worker

HERE = "test_worker"
_state = {"calls": 0}


# Functions that run in the child.
def echo(*args, **kwargs):
    return {"args": args, "kwargs": kwargs}


def count():
    _state["calls"] += 1
    return _state["calls"]


def fail(kind: str):
    raise {"value": ValueError, "data": DataError, "unsupported": UnsupportedError}[kind]("seven is odd")


def work_aloud(lines: list[str]):
    for line in lines:
        tell_caller(line)
    return len(lines)


def talk_for_ever():
    while True:
        tell_caller("still at it")


def leave_a_file():
    path = Path(tempfile.mkdtemp()) / "left"
    path.write_text("left")
    return str(path)


def run_out(kind: str):
    if kind == "ours":
        raise StorageError("cannot write x: it is full", "make space")
    if kind in ("words", "only words"):
        if kind == "words":
            real = os.statvfs("/")
            os.statvfs = lambda _: types.SimpleNamespace(
                f_blocks=real.f_blocks, f_frsize=4096, f_bavail=3, f_files=0, f_favail=0
            )
        raise RuntimeError(
            "cc1: fatal error: error writing to /tmp/a.s: No space left on device\ncompilation terminated."
        )
    if kind == "name":
        raise RuntimeError("input 'No space left on device' has another shape")
    if kind == "led to":
        try:
            raise OSError(errno.EDQUOT, "said so")
        except OSError as error:
            raise ValueError("no model") from error
    raise OSError({"full": errno.ENOSPC, "read-only": errno.EROFS, "absent": errno.ENOENT}[kind], "said so")


def break_streams():
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    os.dup2(full, 2)
    sys.stdout.write("x" * 100_000)
    raise ValueError("after that")


def chatter():
    sys.stdout.write("dlas" * 100)
    os.write(1, b"\x00\xff{}" * 1000)
    os.write(2, b"warning: from C\n")
    return 7


def die(number: int):
    sys.stderr.write("last words\n")
    sys.stderr.flush()
    os.kill(os.getpid(), number)
    time.sleep(10)


def leave(code: int):
    os._exit(code)


def sleep(seconds: float):
    time.sleep(seconds)


def eat(total_bytes: int):
    hoard = []
    for _ in range(0, total_bytes, 2**24):
        hoard.append(np.ones(2**24, np.uint8))
        time.sleep(0.002)
    time.sleep(10)


def eat_in_grandchild(total_bytes: int):
    code = f"import time; x = bytearray(b'1') * {total_bytes}; time.sleep(20)"
    subprocess.run([sys.executable, "-c", code], check=True)


def start_grandchild():
    return subprocess.Popen(["sleep", "60"]).pid


def threads_seen():
    return {
        "affinity": len(os.sched_getaffinity(0)),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "tvm": os.environ.get("TVM_NUM_THREADS"),
    }


def wrong_value():
    return object()


def peak_of(megabytes: int):
    from dlas.core.worker import child_memory, reset_peak

    np.ones(300 * 2**20, np.uint8)
    reset_peak()
    before = child_memory()
    np.ones(megabytes * 2**20, np.uint8)
    return before, child_memory()


def running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def soon(condition, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


@pytest.fixture(scope="module")
def worker():
    with Worker() as shared:
        yield shared


def test_values_of_every_kind_pass_both_ways(worker):
    import ml_dtypes

    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1],
        np.zeros((0, 4), np.int8),
        np.array(3.5),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array(["a", "bc"]),
        np.array([1.5, 2.0], ml_dtypes.bfloat16),
        np.arange(3, dtype=">i4"),
    ]
    plain = {"none": None, "t": (1, [2.5, "x", True]), "b": b"\x00\xff", "inf": float("inf"), "$": {"$": 1}}
    answer = worker.call(f"{HERE}:echo", plain, *arrays, Path("/a/b"), np.float32(0.5), key=arrays[0])
    assert answer["args"][0] == plain
    assert isinstance(answer["args"][0]["t"], tuple)
    for sent, got in zip(arrays, answer["args"][1:], strict=False):
        assert got.dtype == sent.dtype
        np.testing.assert_array_equal(got, sent)
    assert answer["args"][-2:] == ("/a/b", 0.5)
    np.testing.assert_array_equal(answer["kwargs"]["key"], arrays[0])


def test_large_array_passes(worker):
    array = np.random.default_rng(0).integers(0, 255, 20_000_000, np.uint8)
    np.testing.assert_array_equal(worker.call(f"{HERE}:echo", array)["args"][0], array)


@pytest.mark.parametrize("value", [object(), np.array([object()]), {1: 2}, {1, 2}])
def test_value_that_is_not_data_is_refused_before_sending(worker, value):
    with pytest.raises(TypeError, match="worker message"):
        worker.call(f"{HERE}:echo", value)
    assert worker.alive


def test_state_lives_in_the_child():
    with Worker() as worker:
        assert [worker.call(f"{HERE}:count") for _ in range(3)] == [1, 2, 3]


def test_lines_of_progress_come_before_the_answer(worker):
    heard: list[str] = []
    lines = ["one", "two \x1b[2J\nthree", "x" * 1000]
    assert worker.call(f"{HERE}:work_aloud", lines, tell=heard.append) == 3
    assert heard[:2] == ["one", "two [2J three"]
    assert len(heard[2]) < 250
    assert worker.call(f"{HERE}:work_aloud", lines) == 3  # nobody listens
    assert run_in_worker(f"{HERE}:work_aloud", ["alone"], tell=heard.append) == 1
    assert heard[3] == "alone"
    assert work_aloud(["outside a worker"]) == 1


def test_who_talks_without_end_is_out_of_time():
    heard: list[str] = []
    with Worker() as worker, pytest.raises(WorkerFailure) as caught:
        worker.call(f"{HERE}:talk_for_ever", timeout_s=0.5, tell=heard.append)
    assert caught.value.outcome is Outcome.TIMEOUT
    assert "still at it" in heard


def test_an_interrupt_while_a_line_is_passed_on_ends_the_worker():
    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with Worker() as worker:
        with pytest.raises(KeyboardInterrupt):
            worker.call(f"{HERE}:work_aloud", ["one"], tell=stop)
        assert not worker.alive


def test_of_many_lines_one_now_and_then_is_passed_on(monkeypatch):
    heard: list[str] = []
    clock = [0.0]
    monkeypatch.setattr("dlas.core.telling.monotonic", lambda: clock[0])
    tell = now_and_then(heard.append, 2.0)
    for second in range(6):
        clock[0] = second
        tell(str(second))
    assert heard == ["2", "4"]


def test_prints_of_libraries_do_not_disturb(worker):
    assert worker.call(f"{HERE}:chatter") == 7
    assert "warning: from C" in worker.stderr_tail()


@pytest.mark.parametrize(
    ("kind", "outcome", "reason", "exit_code"),
    [
        ("value", Outcome.CRASH, "ValueError: seven is odd", 1),
        ("data", Outcome.CRASH, "seven is odd", 2),
        ("unsupported", Outcome.UNSUPPORTED, "seven is odd", 2),
    ],
)
def test_exception_becomes_an_outcome_and_the_worker_lives_on(worker, kind, outcome, reason, exit_code):
    with pytest.raises(WorkerFailure) as caught:
        worker.call(f"{HERE}:fail", kind)
    assert (caught.value.outcome, caught.value.reason) == (outcome, reason)
    assert caught.value.exit_code == exit_code
    assert "in fail" in caught.value.stderr_tail
    assert worker.call(f"{HERE}:echo", 1)["args"] == (1,)


@pytest.mark.parametrize("function", ["no.such.module:f", "test_worker:nothing", "test_worker:wrong_value"])
def test_what_cannot_be_called_or_returned_is_a_crash(worker, function):
    with pytest.raises(WorkerFailure) as caught:
        worker.call(function)
    assert caught.value.outcome is Outcome.CRASH
    assert worker.alive


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, "killed by SIGSEGV (segmentation fault)"),
        (signal.SIGABRT, "killed by SIGABRT (aborted itself)"),
        (signal.SIGKILL, "killed (out of memory?)"),
    ],
)
def test_death_by_signal(number, reason):
    with Worker() as worker:
        with pytest.raises(WorkerFailure) as caught:
            worker.call(f"{HERE}:die", int(number))
        assert (caught.value.outcome, caught.value.reason) == (Outcome.CRASH, reason)
        assert "last words" in caught.value.stderr_tail
        with pytest.raises(WorkerFailure, match="has ended: killed"):
            worker.call(f"{HERE}:echo")


def test_death_between_calls():
    with Worker() as worker:
        worker.call(f"{HERE}:echo")
        os.kill(worker.pid, signal.SIGTERM)
        assert soon(lambda: not worker.alive)
        with pytest.raises(WorkerFailure, match="killed by SIGTERM"):
            worker.call(f"{HERE}:echo", np.zeros(10_000_000))


def test_silent_exit():
    with pytest.raises(WorkerFailure, match="ended with exit code 3"):
        run_in_worker(f"{HERE}:leave", 3)


def test_hang_is_a_timeout():
    start = time.monotonic()
    with pytest.raises(WorkerFailure, match=r"no answer within 0\.5 s") as caught:
        run_in_worker(f"{HERE}:sleep", 60, timeout_s=0.5)
    assert caught.value.outcome is Outcome.TIMEOUT
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("function", ["eat", "eat_in_grandchild"])
def test_too_much_memory(function):
    with pytest.raises(WorkerFailure) as caught:
        run_in_worker(f"{HERE}:{function}", 2**30, memory_bytes=2**28, timeout_s=30)
    assert caught.value.outcome is Outcome.CRASH
    assert caught.value.reason == "used more than 0.25 GiB of memory"


def test_enough_memory_is_left_alone():
    assert run_in_worker(f"{HERE}:echo", 5, memory_bytes=2**30)["args"] == (5,)


def test_threads_are_pinned_before_anything_runs():
    assert run_in_worker(f"{HERE}:threads_seen", threads=1) == {"affinity": 1, "omp": "1", "tvm": "1"}
    with pytest.raises(ValueError, match="threads = 0"):
        Worker(threads=0)


def test_environment_is_added():
    with Worker(env={"OMP_NUM_THREADS": "5"}, threads=2) as worker:
        assert worker.call(f"{HERE}:threads_seen")["omp"] == "5"


def test_peak_memory_counts_from_the_reset(worker):
    before, after = worker.call(f"{HERE}:peak_of", 64)
    grown = after["peak_rss_bytes"] - before["peak_rss_bytes"]
    assert 60 * 2**20 < grown < 80 * 2**20


def test_close_takes_grandchildren_along():
    worker = Worker()
    grandchild = worker.call(f"{HERE}:start_grandchild")
    assert running(grandchild)
    child = worker.pid
    worker.close()
    worker.close()
    assert soon(lambda: not running(grandchild))
    assert not running(child)


def test_worker_outlives_the_thread_that_made_it():
    made = []
    thread = threading.Thread(target=lambda: made.append(Worker()))
    thread.start()
    thread.join()
    with made[0] as worker:
        time.sleep(0.3)
        assert worker.call(f"{HERE}:echo", 1)["args"] == (1,)


def test_two_workers_side_by_side():
    with Worker() as a, Worker() as b:
        assert a.call(f"{HERE}:count") == 1
        assert b.call(f"{HERE}:count") == 1
        a.close()
        assert b.call(f"{HERE}:count") == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_child_outlives_its_parent(number):
    script = textwrap.dedent("""
        from dlas.core.worker import Worker
        worker = Worker()
        worker.call("time:sleep", 0)
        print(worker.pid, flush=True)
        worker.call("time:sleep", 60)
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    child = int(parent.stdout.readline())
    assert running(child)
    time.sleep(0.2)
    parent.send_signal(number)
    parent.wait(10)
    parent.stdout.close()
    assert soon(lambda: not running(child))


def test_tail_is_short_and_clean(worker):
    with pytest.raises(WorkerFailure):
        worker.call("test_worker:fail", "value")
    worker.call(
        "os:write", 2, b"".join(b"\x1b[31mline %d\x1b[0m\r\n" % i for i in range(100)) + b"10%\r100%\n"
    )
    lines = worker.stderr_tail().split("\n")
    assert len(lines) == 20
    assert lines[-2:] == ["line 99", "100%"]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("end", ["close", "kill"])
def test_temporary_files_of_a_worker_go_with_it(tmp_path, monkeypatch, end):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Worker() as worker:
        left = Path(worker.call("test_worker:leave_a_file"))
        assert tmp_path in left.parents
        assert left.exists()
        if end == "kill":
            os.kill(worker.pid, signal.SIGKILL)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "storage"),
    [
        ("ours", True),
        ("full", True),
        ("read-only", True),
        ("led to", True),
        ("absent", False),
        ("name", False),
        ("only words", False),
    ],
)
def test_a_full_disk_is_no_result_of_a_step(worker, kind, storage):
    with pytest.raises(StorageError if storage else WorkerFailure) as caught:
        worker.call("test_worker:run_out", kind)
    assert caught.value.exit_code == (2 if storage else 1)
    if storage:
        assert ("make space" if kind == "ours" else "make room") in str(caught.value)
    assert worker.call("test_worker:echo", 1)["args"] == (1,)


def test_words_about_a_full_disk_are_believed_when_it_is_full():
    with Worker() as own, pytest.raises(StorageError, match="make room"):
        own.call("test_worker:run_out", "words")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_that_cannot_be_written_costs_no_answer():
    with Worker() as worker:
        with pytest.raises((WorkerFailure, StorageError), match=r"after that|No space"):
            worker.call("test_worker:break_streams")
        assert worker.alive
