"""A stand-in for the native module whose kernels run in another program, ``native_driver.cpp``.

``DLAS_NATIVE`` names this file and ``DLAS_REMOTE`` the command: then every test of the kernels tests those that were
built into that program. ``DLAS_REMOTE_REPORT`` is where the number of nodes is written that each of them computed.
"""

from __future__ import annotations

import atexit
import json
import numbers
import os
import shlex
import struct
import subprocess
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlas.kernels.layout import Storage

_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}  # of NumPy, as DLPack numbers them
_driver = subprocess.Popen(
    shlex.split(os.environ["DLAS_REMOTE"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
)
_nodes: Counter[tuple[str, str, int]] = Counter()  # by operator, name and number of threads
_runs = 0


def _number(value: int) -> bytes:
    return struct.pack("<q", value)


def _numbers(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{1 + len(values)}q", len(values), *values)


def _text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return _number(len(content)) + content


def _tensor(shape: Sequence[int], strides: Sequence[int], dtype: Any) -> bytes:
    kind = np.dtype(dtype)
    return struct.pack("<2q", _KINDS[kind.kind], 8 * kind.itemsize) + _numbers(shape) + _numbers(strides)


def _strides(array: np.ndarray) -> list[int]:
    return [s // array.itemsize for s in array.strides]


def _block(content: bytes, skew: int) -> bytes:
    return struct.pack("<2q", len(content), skew) + content


def _attribute(value: Any) -> bytes:
    if isinstance(value, numbers.Integral):
        return struct.pack("<2q", 0, int(value))
    if isinstance(value, numbers.Real):
        return struct.pack("<qd", 1, float(value))
    if isinstance(value, str):
        return _number(2) + _text(value)
    return _number(3) + _numbers([int(v) for v in value])


def _send(content: bytes) -> None:
    try:
        _driver.stdin.write(content)
        _driver.stdin.flush()
    except BrokenPipeError:
        raise AssertionError(f"the driver ended with status {_driver.wait()}") from None


def _read(size: int) -> bytes:
    found = _driver.stdout.read(size)
    if len(found) != size:
        raise AssertionError(f"the driver ended with status {_driver.wait()}")
    return found


def _read_number() -> int:
    return struct.unpack("<q", _read(8))[0]


def _read_text() -> bytes:
    return _read(_read_number())


def _read_status() -> None:
    if _read_number():
        raise RuntimeError(_read_text().decode())


# Views into a larger block of memory (halos, spare vectors), by the identity of the view.
_wholes: dict[int, tuple[weakref.ref, np.ndarray]] = {}
_plain_view = Storage.view


def _view(self: Storage, buffer: np.ndarray) -> np.ndarray:
    made = _plain_view(self, buffer)
    key = id(made)
    _wholes[key] = (weakref.ref(made, lambda _: _wholes.pop(key, None)), buffer)
    return made


Storage.view = _view


def _whole(array: np.ndarray) -> np.ndarray:
    """All the memory that a kernel may reach through ``array``, flat."""
    if id(array) in _wholes:
        return _wholes[id(array)][1]
    assert array.flags.c_contiguous
    return array.reshape(-1)


def _memory(whole: np.ndarray) -> tuple[int, int]:
    return whole.ctypes.data, whole.nbytes


def _node(
    context: Context, isa: str, op: str, name: str, attributes: dict, inputs: list, outputs: list
) -> bytes:
    parts = [_number(context.threads), _text(isa), _text(op), _text(name), _number(len(attributes))]
    for key, value in attributes.items():
        parts += [_text(key), _attribute(value)]
    parts.append(_number(len(inputs)))
    for given in inputs:
        if given is None:
            parts.append(_number(0))
        elif isinstance(given, np.ndarray):
            # Constants come from files and slices: they are aligned to their elements and no better.
            parts += [_number(2), _block(given.tobytes(), given.itemsize)]
            parts.append(_tensor(given.shape, _strides(np.ascontiguousarray(given)), given.dtype))
        else:
            parts += [_number(1), _tensor(*given)]
    parts.append(_number(len(outputs)))
    return b"".join([*parts, *(_tensor(*o) for o in outputs)])


class Context:
    """Threads of the driver, which it keeps."""

    def __init__(self, threads: int) -> None:
        self.threads = threads


class Kernel:
    """A kernel that the driver prepared."""

    def __init__(
        self, context: Context, isa: str, op: str, name: str, attributes: dict, inputs: list, outputs: list
    ):
        _send(b"K" + _node(context, isa, op, name, attributes, inputs, outputs))
        _read_status()
        self._id, self.workspace = _read_number(), _read_number()
        _nodes[op, name, context.threads] += 1

    def __del__(self) -> None:
        if hasattr(self, "_id") and _driver.poll() is None:
            _send(b"D" + _number(self._id))

    def run(self, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray]) -> None:
        """Compute once; memory that two tensors share is shared there as well."""
        global _runs
        _runs += 1
        blocks: dict[tuple[int, int], tuple[int, np.ndarray]] = {}
        tensors = []
        for array in (*inputs, *outputs):
            if array is None:
                tensors.append(_number(-1))
                continue
            whole = _whole(array)
            index, _ = blocks.setdefault(_memory(whole), (len(blocks), whole))
            offset = array.ctypes.data - whole.ctypes.data
            place = struct.pack("<2q", index, offset)
            tensors.append(place + _tensor(array.shape, _strides(array), array.dtype))
        content = [_block(whole.tobytes(), 0) for _, whole in blocks.values()]
        head = b"R" + _number(self._id) + _number(len(content))
        _send(b"".join([head, *content, struct.pack("<2q", len(inputs), len(outputs)), *tensors]))
        _read_status()
        written = {_memory(_whole(array)) for array in outputs}
        for memory, (_, whole) in blocks.items():
            if memory in written:
                whole[...] = np.frombuffer(_read_text(), whole.dtype)


class Program:
    """A program of one step, which is all that one node needs."""

    def __init__(self, context: Context) -> None:
        self._values: list[np.ndarray] = []

    def constant(self, array: np.ndarray) -> int:
        """Number of a value."""
        self._values.append(array)
        return len(self._values) - 1

    def step(self, kernel: Kernel, inputs: Sequence[int], outputs: Sequence[int], scratch: int) -> None:
        """The step."""
        given = [None if i < 0 else self._values[i] for i in inputs]
        self._call = lambda: kernel.run(given, [self._values[o] for o in outputs])

    def allocate(self, bytes_: int) -> None:
        """The driver does."""

    def run(self) -> None:
        """Compute it."""
        self._call()


def refuses(isa: str, op: str, name: str, attributes: dict, inputs: list, outputs: list) -> str:
    """Why a kernel cannot compute a node, or an empty string."""
    _send(b"U" + _node(Context(1), isa, op, name, attributes, inputs, outputs))
    _read_status()
    return _read_text().decode()


def _table() -> tuple[list[str], list[tuple[str, str, str]]]:
    _send(b"L")
    levels = [_read_text().decode() for _ in range(_read_number())]
    texts = [_read_text().decode() for _ in range(3 * _read_number())]
    return levels, list(zip(texts[::3], texts[1::3], texts[2::3], strict=True))


_levels, _kernels = _table()


def isa_levels() -> list[str]:
    """Instruction sets of the driver."""
    return _levels


def kernels() -> list[tuple[str, str, str]]:
    """Instruction set, operator and name of its kernels."""
    return _kernels


@atexit.register
def _finish() -> None:
    _driver.stdin.close()
    status = _driver.wait(60)
    if "DLAS_REMOTE_REPORT" in os.environ:
        nodes = {f"{op}={name}": max(_nodes[op, name, t] for t in (1, 2)) for _, op, name in _kernels}
        Path(os.environ["DLAS_REMOTE_REPORT"]).write_text(
            json.dumps({"status": status, "levels": _levels, "nodes": nodes, "runs": _runs})
        )
