"""TVM for mutants, inside a worker process: a network's tensor programs, and its answers with some of them replaced.

Compiling a whole network takes seconds, a single operator a tenth of one. So the code of the unchanged network is made
once per path and kept; a mutant's own code is made for those operators only that differ from it, and goes before it in
the search order of the virtual machine. No library is linked or loaded: LLVM's just-in-time compiler runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.graph.format import load_model
from dlas.graph.model import Model
from dlas.graph.passes import bind_batch
from dlas.hardware.target import target_for
from dlas.runtime.artifact import refused
from dlas.runtime.backend import backend_for, deployable
from dlas.runtime.backends.tvm import FAILURES, Tvm, code_target, imported, passes_of


@dataclass
class _Base:
    """The unchanged network on one path.

    Attributes:
        original: Its file.
        model: As deployed, one row at a time.
        level: Optimisation level.
        target: TVM's target.
        module: Relax module after lowering.
        folded: The same with constants folded, where the level does that.
        calls: How often each tensor program is called in ``folded``.
        hashes: Hash of each compiled program.
        functions: The compiled programs themselves.
        code: Their code; None until the first compilation.
    """

    original: str
    model: Model
    level: str
    target: Any
    module: Any
    folded: Any
    calls: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, int] = field(default_factory=dict)
    functions: dict[str, Any] = field(default_factory=dict)
    code: Any = None


_scripts: dict[str, dict[str, str]] = {}
_bases: dict[tuple[str, str, str], _Base] = {}
_last: dict[str, Any] = {}  # programs that the last mutant compiled anew


def programs(original: str) -> list[tuple[str, str]]:
    """Names and TVMScript of the tensor programs a network is lowered to, in the order of their first call.

    Args:
        original: File of the network.

    Raises:
        UnsupportedError: TVM cannot read the network.
    """
    return list(_script_of(original).items())


def _script_of(original: str) -> dict[str, str]:
    if original not in _scripts:
        _, module = _lowered("tvm:opt=O0", "host", original)
        _scripts[original] = {name: module[name].script() for name in _calls(module)}
    return _scripts[original]


def base(backend: str, target: str, original: str) -> _Base:
    """The unchanged network on a path, compiled; kept for the next call."""
    key = (backend, target, original)
    if key not in _bases:
        _bases[key] = _made(backend, target, original)
    return _bases[key]


def answers(
    backend: str,
    target: str,
    original: str,
    network: str,
    programs: Mapping[str, str],
    x: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Every output for every row; arguments as :func:`dlas.verify.mutate.answers.answers`.

    Raises:
        UnsupportedError: TVM cannot compile the network, or a program is not there at this level.
    """
    import tvm
    from tvm import relax

    known = base(backend, target, original)
    try:
        if programs:
            model, module = known.model, _replaced(known, programs)
        elif network == original:
            model, module = known.model, known.folded
        else:
            model, module = _lowered(backend, target, network)
            module = _folded(module, known.level)
        machine = relax.VirtualMachine(_compiled(known, module), tvm.cpu())  # type: ignore[arg-type]
    except FAILURES as error:
        raise refused("TVM", error) from error
    return _run(machine, model, x)


def same_code(backend: str, target: str, original: str) -> bool:
    """Whether the machine code of the last mutant of this path is that of the unchanged network."""
    known = base(backend, target, original)
    before = {name: known.functions.get(name) for name in _last}
    if any(function is None for function in before.values()):
        return False
    return not _last or _assembly(known, before) == _assembly(known, _last)


def _made(backend: str, target: str, original: str) -> _Base:
    model, module = _lowered(backend, target, original)
    level = _engine(backend).options.opt
    try:
        folded = _folded(module, level)
        known = _Base(original, model, level, _target(target), module, folded, _calls(folded))
        _compiled(known, folded)
    except FAILURES as error:
        raise refused("TVM", error) from error
    return known


def _engine(backend: str) -> Tvm:
    engine = backend_for(backend)
    assert isinstance(engine, Tvm)
    return engine


def _target(target: str) -> Any:
    import tvm

    return tvm.target.Target(code_target(target_for(target).isa))


def _lowered(backend: str, target: str, network: str) -> tuple[Model, Any]:
    """A network as deployed, and its Relax module with every operator lowered."""
    import tvm
    from tvm import relax

    engine, device = _engine(backend), target_for(target)
    path = Path(network)
    model = deployable(load_model(path, **({"allow_nan": True} if path.suffix == ".onnx" else {})))
    reason = engine.refusal(model, device)
    if reason:
        raise UnsupportedError(f"{engine.name} cannot run {model.name} on {target}: {reason}")
    leading = [s.shape[0] for s in model.inputs if s.shape]
    batch = leading[0] if leading and isinstance(leading[0], int) else 1
    bound = bind_batch(model, batch)
    first, _ = passes_of(engine.options.opt)
    try:
        passes = [*first, relax.transform.LegalizeOps()]
        return bound, tvm.transform.Sequential(passes)(imported(bound))
    except FAILURES as error:
        raise refused("TVM", error) from error


def _folded(module: Any, level: str) -> Any:
    from tvm import relax

    return module if level == "O0" else relax.transform.FoldConstant()(module)


def _calls(module: Any) -> dict[str, int]:
    """How often each tensor program is called, in the order of the first call."""
    from tvm import ir, relax

    counts: dict[str, int] = {}

    def visit(expression: Any) -> None:
        if isinstance(expression, relax.Call):
            for argument in expression.args:
                if isinstance(argument, ir.GlobalVar):
                    counts[argument.name_hint] = counts.get(argument.name_hint, 0) + 1

    relax.analysis.post_order_visit(module["main"], visit)
    return counts


def _replaced(known: _Base, programs: Mapping[str, str]) -> Any:
    """The lowered network with other programs; constants are folded anew only where that computes with one of them."""
    import tvm

    before, first = _calls(known.module), passes_of(known.level)[0]
    expected = _script_of(known.original) if first else {}
    for name in programs:
        if name not in before:
            raise UnsupportedError(f"the network has no program {name!r} at {known.level}")
        if first and known.module[name].script() != expected.get(name):
            raise UnsupportedError(f"program {name!r} is another one at {known.level}")
    same = all(known.calls.get(name) == before[name] for name in programs)
    start = known.folded if same else known.module
    module = tvm.IRModule(start.functions, attrs=start.attrs)
    for name, script in programs.items():
        module.update_func(module.get_global_var(name), tvm.script.from_source(script))
    return module if same else _folded(module, known.level)


def _compiled(known: _Base, module: Any) -> Any:
    """A runtime module for the virtual machine; programs that the base has compiled already are taken from it."""
    import tvm
    import tvm_ffi
    from tvm import relax
    from tvm.relax.vm_build import _filter_tir, _vmcodegen, _vmlink

    _, last = passes_of(known.level)
    with known.target:
        module = relax.get_pipeline("default")(tvm.transform.Sequential(last)(module))
    constants = dict(module.attrs["const_name_to_constant"]) if _has_constants(module) else {}
    builder = relax.ExecBuilder()
    rest = _vmcodegen(builder, module, "bytecode")
    tensor: Any = _filter_tir(rest)
    found = {gv.name_hint: function for gv, function in tensor.functions.items()} if tensor else {}
    hashes = {name: tvm_ffi.structural_hash(function) for name, function in found.items()}
    fresh = {name: f for name, f in found.items() if known.hashes.get(name) != hashes[name]}
    libraries = [_code(known, fresh)] if fresh else []
    _last.clear()
    _last.update(fresh)
    if known.code is None and libraries:
        known.code, known.hashes, known.functions = libraries[0], hashes, found
    elif known.code is not None:
        libraries.append(known.code)  # searched after the mutant's own
    return _vmlink(builder, known.target, None, ext_libs=libraries, params=constants).mod


def _has_constants(module: Any) -> bool:
    return bool(module.attrs) and "const_name_to_constant" in module.attrs


def _code(known: _Base, functions: Mapping[str, Any]) -> Any:
    import tvm

    return tvm.tirx.build(tvm.IRModule(dict(functions)), target=known.target)


def _assembly(known: _Base, functions: Mapping[str, Any]) -> str:
    return _code(known, functions).inspect_source("asm")


def _run(machine: Any, model: Model, x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import tvm

    batch = int(model.inputs[0].shape[0]) if model.inputs[0].shape else 1
    rows = len(next(iter(x.values())))
    parts: dict[str, list[np.ndarray]] = {spec.name: [] for spec in model.outputs}
    for start in range(0, rows, batch):
        count = min(batch, rows - start)
        fed = [_filled(x[spec.name][start : start + batch], batch) for spec in model.inputs]
        found = machine["main"](*(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in fed))
        listed = [found] if hasattr(found, "numpy") else list(found)
        for spec, value in zip(model.outputs, listed, strict=True):
            parts[spec.name].append(np.array(value.numpy())[:count])
    return {name: np.concatenate(found) for name, found in parts.items()}


def _filled(rows: np.ndarray, batch: int) -> np.ndarray:
    """Rows for a network that takes ``batch`` at a time: the last one is repeated."""
    short = batch - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], short, axis=0)]) if short else rows
