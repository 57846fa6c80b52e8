"""The side of a worker: one network, one set of rows, and optimisers tried on it one call after the other."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dlas.core.options import Choice
from dlas.verify.passes.tool import InvalidResult, PassTool, pass_tools

_held: dict[str, Any] = {}


def begin(module: str, model: bytes, rows: dict[str, np.ndarray], in_runtime: bool) -> dict[str, Any]:
    """Hold a network and its rows.

    Args:
        module: Imported first, so that it can enter a tool.
        model: ONNX file.
        rows: ``(N, ...)`` per input.
        in_runtime: See :class:`PassTool`.

    Returns:
        ``inputs``, ``outputs`` and ``arrays`` as :func:`attempt`; ``again`` is ``arrays`` by other kernels.
    """
    import onnx

    from dlas.verify.passes.tool import by_onnxruntime

    importlib.import_module(module)
    proto = onnx.ModelProto.FromString(model)
    try:
        onnx.checker.check_model(proto)
        standard = True
    except Exception:  # then it says nothing about a pass that the result does not conform either
        standard = False
    _held.clear()
    _held.update(model=model, rows=dict(rows), standard=standard, seen=set(), own=_essence(model))
    found = by_onnxruntime(model, dict(rows))
    # An optimiser cannot be judged by what it does itself; single rows are summed up in another order too.
    other: dict[str, Any] = {"rows_per_run": 1} if in_runtime else {"optimise": True}
    again = by_onnxruntime(model, dict(rows), **other)
    return {
        "inputs": list(found.inputs),
        "outputs": list(found.outputs),
        "arrays": found.arrays,
        "again": again.arrays,
    }


def listing(choice: str) -> dict[str, list[str]]:
    """Names of the passes of a tool, ``all`` of them and those of its ``bundle``."""
    tool = _tool(choice)
    return {"all": tool.passes(_held["model"]), "bundle": tool.bundle(_held["model"])}


def attempt(choice: str, passes: Sequence[str] | None) -> dict[str, Any]:
    """Run a tool and what it made.

    Returns:
        ``hash`` and ``bytes`` of the result, and either ``invalid`` (why) or ``inputs``, ``outputs`` and ``arrays``.
        A result whose hash was seen before has ``seen`` instead, and one that is the network itself but for recorded
        shapes that it lost has ``same``: neither is run again.
    """
    tool = _tool(choice)
    result = tool.run(_held["model"], passes)
    digest = hashlib.sha256(result).hexdigest()
    found: dict[str, Any] = {"hash": digest, "bytes": len(result)}
    if digest in _held["seen"]:
        return {**found, "seen": True}
    try:
        if _held["standard"]:
            _conforms(tool, result)
        if not tool.in_runtime and _is_itself(result):
            _held["seen"].add(digest)
            return {**found, "same": True}
        answers = tool.answers(result, _held["rows"])
    except InvalidResult as error:
        _held["seen"].add(digest)
        return {**found, "invalid": error.message}
    _held["seen"].add(digest)
    return {
        **found,
        "inputs": list(answers.inputs),
        "outputs": list(answers.outputs),
        "arrays": answers.arrays,
    }


def _essence(model: bytes) -> tuple[bytes, set[bytes]]:
    """Hash of a network without the shapes that it records, and these."""
    import onnx

    proto = onnx.ModelProto.FromString(model)
    shapes = {v.SerializeToString(deterministic=True) for v in proto.graph.value_info}
    del proto.graph.value_info[:]
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).digest(), shapes


def _is_itself(result: bytes) -> bool:
    """Whether an optimiser gave the network back, with no shape recorded that was not there."""
    try:
        digest, shapes = _essence(result)
    except Exception:  # no ONNX file: what it is instead, running it tells
        return False
    return digest == _held["own"][0] and shapes <= _held["own"][1]


def _conforms(tool: PassTool, result: bytes) -> None:
    try:
        tool.check(result)
    except Exception as error:
        text = " ".join(str(error).split())
        raise InvalidResult(f"the ONNX checker refuses it: {text[:200]}") from error


def _tool(choice: str) -> PassTool:
    parsed = Choice.parse(choice)
    return pass_tools.get(parsed.name)(**parsed.as_dict())
