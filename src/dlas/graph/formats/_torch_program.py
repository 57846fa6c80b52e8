"""Exported programs (``.pt2``), read without letting the file run anything.

``torch.export.load`` trusts its input: it unpickles tensors and objects, evaluates shape expressions and guards as
Python, resolves call targets anywhere inside torch, and loads compiled libraries. So the archive is taken apart here,
every part is checked against what a plain program needs, and only a rebuilt archive of such parts goes to torch.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlas.core.errors import DlasError, ModelError
from dlas.graph.formats._torch_checkpoint import check_archive, is_archive
from dlas.graph.torch_export import first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

_TARGET = re.compile(r"^torch\.ops\.(aten|prims|quantized_decomposed)\.[A-Za-z]\w*(\.[A-Za-z]\w*)?$")
_OPERATORS = {
    *("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg"),
    *("ge", "le", "gt", "lt", "eq", "ne"),
}
_SYMBOL = re.compile(r"^[a-z]{1,4}\d+$")
_FUNCTIONS = {
    *("Symbol", "Integer", "Add", "Mul", "Max", "Min"),
    *("FloorDiv", "CeilDiv", "CleanDiv", "Mod", "PythonMod", "ModularIndexing"),
}
_EXPRESSION = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Call,
    ast.Name,
    ast.Constant,
    ast.Load,
    ast.keyword,
)
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub, ast.UAdd)
_LONGEST_EXPRESSION = 500
_PARTS = re.compile(r"^data/(weights/weight_\d+|constants/tensor_\d+)$")


def read_program(path: Path) -> tuple[nn.Module, tuple[torch.Tensor, ...], bool]:
    """The module of an exported program, its example inputs, and whether its batch is dynamic.

    Raises:
        ModelError: Damaged, without example inputs, or with anything that could run code.
    """
    import torch

    parts = _read_parts(path)
    name = _model_name(path, parts)
    program = _checked_program(path, parts, name)
    kept: dict[str, bytes] = {f"models/{name}.json": json.dumps(program).encode()}
    for kind in ("weights", "constants"):
        config = f"data/{kind}/{name}_{kind}_config.json"
        _check_payloads(path, parts, config, kind)
        kept[config] = parts[config]
    kept |= {place: content for place, content in parts.items() if _PARTS.match(place)}
    samples = f"data/sample_inputs/{name}.pt"
    examples = _examples(path, parts.get(samples, b""))
    kept[samples] = parts[samples]
    try:
        loaded = torch.export.load(_rebuilt(kept))
        module = loaded.module()
    except Exception as error:  # a damaged program fails anywhere inside torch
        raise ModelError(
            f"{path.name} is not a program this torch can read: {first_line(error)}", "export it again"
        ) from error
    inputs = [n.meta["val"] for n in loaded.graph.nodes if n.op == "placeholder" and "val" in n.meta]
    dynamic = any(
        isinstance(v, torch.Tensor) and v.dim() > 0 and not isinstance(v.shape[0], int) for v in inputs
    )
    return module, examples, dynamic


def _read_parts(path: Path) -> dict[str, bytes]:
    """Records of the archive without its root folder."""
    if not is_archive(path):
        raise ModelError(f"{path.name} is truncated or not a .pt2 archive", "download or export it again")
    check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return {entry.partition("/")[2]: archive.read(entry) for entry in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ModelError(
            f"{path.name} is truncated or damaged: {first_line(error)}", "download or export it again"
        ) from error


def _model_name(path: Path, parts: dict[str, bytes]) -> str:
    if any(place.startswith("data/aotinductor") for place in parts):
        raise _code(path, "a compiled library")
    names = [m[1] for place in parts if (m := re.match(r"^models/([\w-]+)\.json$", place))]
    if "model" in names:
        return "model"
    raise ModelError(
        f"{path.name} holds no program called 'model' (found: {', '.join(names) or 'none'})",
        "write it with torch.export.save",
    )


def _checked_program(path: Path, parts: dict[str, bytes], name: str) -> dict[str, Any]:
    program = _json(path, parts, f"models/{name}.json")
    if not isinstance(program, dict):
        raise ModelError(f"{path.name}: models/{name}.json is not a program")
    try:
        _check(path, program)
    except RecursionError as error:
        raise ModelError(f"{path.name}: models/{name}.json is nested too deeply") from error
    program["guards_code"] = []  # would be executed; the shapes are checked by what runs the graph
    return program


def _check(path: Path, value: Any) -> None:
    """Walk through the program; drop what is not needed, refuse what could become code."""
    if isinstance(value, list):
        for item in value:
            _check(path, item)
    elif isinstance(value, str):
        if "__enum__" in value:
            raise _code(path, "a reference to a Python class")
    elif isinstance(value, dict):
        if "target" in value and "inputs" in value:
            _check_target(path, value["target"])
            stack = (value.get("metadata") or {}).get("nn_module_stack")
            value["metadata"] = {"nn_module_stack": stack} if isinstance(stack, str) else {}
        for key, item in value.items():
            if key in ("as_expr", "expr_str") and isinstance(item, str):
                _check_expression(path, item)
            elif key == "as_operator" and item is not None:
                _check_target(path, item)
            elif key in ("as_graph", "as_custom_obj") and item is not None:
                raise _code(path, "an object of a class of its own")
            elif key == "guards_code":
                continue
            else:
                _check(path, item)


def _check_target(path: Path, target: Any) -> None:
    plain = str(target)
    known = _TARGET.match(plain) or (plain.startswith("_operator.") and plain[10:] in _OPERATORS)
    if not known:
        raise _code(path, f"a call of {plain[:80]!r}")


def _check_expression(path: Path, text: str) -> None:
    try:
        tree = ast.parse(text if len(text) <= _LONGEST_EXPRESSION else "?", mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _code(path, f"the expression {text[:60]!r}") from error
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        fine = isinstance(node, (*_EXPRESSION, *_ARITHMETIC))
        if isinstance(node, ast.Name):
            fine = node.id in _FUNCTIONS if id(node) in called else bool(_SYMBOL.match(node.id))
        elif isinstance(node, ast.Call):
            fine = isinstance(node.func, ast.Name)
        elif isinstance(
            node, ast.Constant
        ):  # text only as the name of a symbol, which sympy evaluates once more
            fine = type(node.value) in (bool, int, float) or bool(_SYMBOL.match(str(node.value)))
        if not fine:
            raise _code(path, f"the expression {text[:60]!r}")


def _check_payloads(path: Path, parts: dict[str, bytes], config: str, kind: str) -> None:
    """Weights must lie there as raw bytes, not as pickles."""
    content = _json(path, parts, config)
    entries = content.get("config") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise ModelError(f"{path.name}: {config} is not a table of tensors", "export it again")
    for name, entry in entries.items():
        place = entry.get("path_name") if isinstance(entry, dict) else None
        plain = isinstance(place, str) and _PARTS.match(f"data/{kind}/{place}") is not None
        if not plain or entry.get("use_pickle") is not False:
            raise _code(path, f"a pickle for {name!r}")


def _examples(path: Path, content: bytes) -> tuple[torch.Tensor, ...]:
    import torch

    if not content:
        raise ModelError(f"{path.name} holds no example inputs", "export it again with torch.export.save")
    try:
        found = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # torch.export.load would now unpickle it freely
        raise _code(path, "example inputs that are not plain tensors") from error
    arguments = found[0] if isinstance(found, tuple) and len(found) == 2 else None
    named = found[1] if arguments is not None else None
    if not isinstance(arguments, tuple) or named or not all(isinstance(a, torch.Tensor) for a in arguments):
        raise ModelError(
            f"{path.name}: its example inputs are not a tuple of tensors", "export it with positional tensors"
        )
    return arguments


def _rebuilt(kept: dict[str, bytes]) -> io.BytesIO:
    from torch.export.pt2_archive._package import PT2ArchiveWriter

    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for place, content in kept.items():
            writer.write_bytes(place, content)
    buffer.seek(0)
    return buffer


def _json(path: Path, parts: dict[str, bytes], place: str) -> Any:
    if place not in parts:
        raise ModelError(
            f"{path.name} lacks {place}", "write it with torch.export.save of torch 2.8 or newer"
        )
    try:
        return json.loads(parts[place])
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path.name}: {place} is damaged: {first_line(error)}", "export it again"
        ) from error


def _code(path: Path, what: str) -> DlasError:
    return ModelError(
        f"{path.name} holds {what}, which could run Python code and is not read",
        "export the network to ONNX, or save its state_dict()",
    )
