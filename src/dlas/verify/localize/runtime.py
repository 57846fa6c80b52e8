"""Which operators of a network does a back end compute otherwise than the network says?

The file is right, the way it is run is not: a compiler pass, a fused kernel, a precision nobody asked for. Every
tensor of the network is made an output and compared with ONNX Runtime's without optimisation; an operator whose
inputs agree and whose result does not is compiled once more by itself and fed with the right values. Where looking
at every tensor takes the fault away (fusions cannot happen any more), the network is cut instead: the shortest
beginning that goes wrong is found by bisection, and then the shortest end of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from dlas.core.errors import DlasError, UnsupportedError
from dlas.core.files import scratch_folder
from dlas.core.worker import Worker, WorkerFailure
from dlas.verify.differential import is_classifier
from dlas.verify.localize.alignment import relative
from dlas.verify.localize.case import extracted
from dlas.verify.localize.engine import Fault, Found
from dlas.verify.localize.network import Network
from dlas.verify.paths import RunPath

Values = Mapping[str, np.ndarray]
Runner = Callable[[onnx.ModelProto, Values], dict[str, np.ndarray]]
"""Compiles and runs a network with a batch of one on ``(rows, 1, ...)`` inputs; raises WorkerFailure or DlasError."""

_TOLERANCE = 1e-3
_ROUNDED = 0.03  # relative L2 of one operator in 8 bits of mantissa, deep sums included
_WIDESPREAD = (
    0.5  # share of the operators that sum products above which it is the arithmetic and not an operator
)
_SUMMING = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "Einsum"})
_WINDOW = 4  # operators that a fused kernel may span
_MOST_ALONE = 24  # operators that are compiled one by one where they cannot be together
_IR_VERSION = 10


@dataclass
class Backend:
    """Runs networks on a back end, each in the same worker as long as it lives; use as a context manager."""

    path: RunPath
    timeout_s: float = 300.0
    worker: Worker | None = None

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        if self.worker is not None:
            self.worker.close()

    def __call__(self, proto: onnx.ModelProto, values: Values) -> dict[str, np.ndarray]:
        """All outputs for every row."""
        if self.worker is None or not self.worker.alive:
            self.worker = Worker(threads=self.path.threads)
        choice, target, threads = str(self.path.backend), self.path.target, self.path.threads
        with scratch_folder() as place:
            (place / "artifact").mkdir()
            (place / "model.onnx").write_bytes(proto.SerializeToString())
            steps = (
                ("build", [choice, str(place / "model.onnx"), target, str(place / "artifact"), 1]),
                ("open", [choice, str(place / "artifact"), target, threads]),
            )
            for name, given in steps:
                self.worker.call(f"dlas.runtime.session:{name}", *given, timeout_s=self.timeout_s)
            rows = {n: v.reshape(-1, *v.shape[2:]) for n, v in values.items()}
            found = self.worker.call("dlas.runtime.session:all_outputs", rows, timeout_s=self.timeout_s)
        return {n: np.asarray(v)[:, None] for n, v in found.items()}


def find_in_runtime(
    graph: ir.Model,
    inputs: Values,
    run: Runner,
    *,
    path: str,
    tolerance: float = _TOLERANCE,
    tell: Callable[[str], None] = lambda text: None,
) -> Found:
    """Operators that ``run`` computes otherwise than ONNX Runtime without optimisation.

    Args:
        graph: The network, nodes uniquely named.
        inputs: ``(rows, ...)`` by name.
        run: The back end.
        path: Its name, for the report.
        tolerance: Relative L2 up to which a tensor agrees.
        tell: Receives one line per step.

    Raises:
        WorkerFailure: The network itself does not compile or run there.
        UnsupportedError: The back end refuses the network, or no output of it can be compared.
    """
    network = Network(graph)
    fed = {n: np.ascontiguousarray(v[:, None]) for n, v in inputs.items()}
    right: dict[str, np.ndarray] = dict(fed)
    for _, found in network.trace(fed):
        right.update({n: v for n, v in found.items() if _comparable(v)})
    tell(f"run the network on {path}")
    plain = run(_whole(network, network.outputs), fed)
    errors = {n: relative(right[n], plain[n]) for n in network.outputs if n in right and n in plain}
    if not errors:
        raise UnsupportedError(
            f"output {network.outputs[0]!r} holds no finite real numbers with a batch axis",
            "give a network whose outputs can be compared, such as class scores",
        )
    flips = _flips(right, plain, network.outputs[0])
    rows = len(next(iter(fed.values())))
    if all(e <= tolerance for e in errors.values()):
        return Found(
            [], flips, rows, len(errors), len(network.steps), tolerance, max(errors.values(), default=0.0), []
        )
    names = [n for n in network.position if n in right and n not in fed]
    tell(f"look at {len(names)} tensors on {path}")
    notes: list[str] = []
    try:
        seen = run(_whole(network, [*network.outputs, *(n for n in names if n not in network.outputs)]), fed)
    except (WorkerFailure, DlasError) as failure:
        notes.append(f"{path} cannot run the network with every tensor as an output: {failure}")
        seen = {}
    off = {n: relative(right[n], seen[n]) for n in names if n in seen and seen[n].shape == right[n].shape}
    hidden = not off or all(off.get(o, 1.0) <= tolerance for o in errors)
    if hidden:
        why = "" if notes else "the fault goes away where every tensor is looked at, as fused operators do; "
        notes.append(f"{why}the network was cut to find it")
        faults = _bisected(network, right, run, tolerance, tell)
    else:
        faults = _alone(network, right, off, run, tolerance, tell)
    agreeing = sum(e <= tolerance for e in off.values())
    typical = float(np.median(list(off.values()))) if off else 0.0
    return Found(faults, flips, rows, agreeing, len(network.steps), tolerance, typical, notes)


def _alone(
    network: Network,
    right: Values,
    off: Mapping[str, float],
    run: Runner,
    tolerance: float,
    tell: Callable[[str], None],
) -> list[Fault]:
    """Each operator whose result does not agree, fed with the right values and apart from all others."""
    bad = [n for n, e in off.items() if e > tolerance]
    nodes = list({str(_made_by(network, n).name): _made_by(network, n) for n in bad}.values())
    tell(f"replay {len(nodes)} operators, each by itself")
    first = [n for n in bad if all(off.get(f, 0.0) <= tolerance for f in network.fed(_made_by(network, n)))]
    errors, reasons = _replayed_apart(network, nodes, bad, first, right, run)
    wrong = [n for n in bad if errors[n] > tolerance]
    slight = [n for n in wrong if errors[n] <= _ROUNDED]
    # Operators that only move or compare values are exact in any arithmetic.
    summing = [n for n in off if _made_by(network, n).op_type in _SUMMING]
    if len(slight) > 1 and len(set(slight) & set(summing)) > _WIDESPREAD * len(summing):
        worst = max(slight, key=lambda n: errors[n])
        words = (
            f"{len(slight)} of {len(off)} operators are each off by up to {errors[worst]:.2g}: "
            "the arithmetic is coarser than float32"
        )
        maker = [_made_by(network, worst)]
        return [_fault(network, right, maker, worst, errors[worst], "precision", "reduced precision", words)]
    found = []
    for name in wrong:
        node = _made_by(network, name)
        words = reasons.get(name) or f"fed with the right values, it is off by {errors[name]:.2g}"
        detail = f"{node.op_type} {node.name}: {words}"
        kind = "operator computed otherwise"
        found.append(_fault(network, right, [node], name, errors[name], "runtime", kind, detail))
    if not found and bad:
        found = _windows(network, right, bad[0], run, tolerance, tell)
    return found


def _replayed_apart(
    network: Network,
    nodes: Sequence[ir.Node],
    outputs: Sequence[str],
    first: Sequence[str],
    right: Values,
    run: Runner,
) -> tuple[dict[str, float], dict[str, str]]:
    """Errors of ``outputs`` with every operator fed from outside: one network of unconnected operators.

    Where the back end refuses such a network, those whose inputs agree (``first``) are compiled one by one.
    """
    protos, given, weights = [], dict[str, np.ndarray](), dict[str, onnx.TensorProto]()
    for number, node in enumerate(nodes):
        proto = ir.to_proto(node)
        for place, name in enumerate(proto.input):
            if name in network.constants:
                weights[name] = onnx.numpy_helper.from_array(network.constants[name], name)
            elif name in right:
                proto.input[place] = f"fed{number}.{place}"
                given[proto.input[place]] = right[name]
        protos.append(proto)
    infos = [_info(n, v) for n, v in given.items()]
    graph = onnx.helper.make_graph(
        protos, "apart", infos, [_info(o, right[o]) for o in outputs], list(weights.values())
    )
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in network.ir.graph.opset_imports.items()]
    whole = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    try:
        found = run(whole, given)
        return {o: relative(right[o], found[o]) for o in outputs}, {}
    except (WorkerFailure, DlasError, KeyError):
        results = {o: _replayed(network, [_made_by(network, o)], o, right, run) for o in first[:_MOST_ALONE]}
        errors = {o: results[o][0] if o in results else 0.0 for o in outputs}
        return errors, {o: reason for o, (_, reason) in results.items() if reason}


def _bisected(
    network: Network, right: Values, run: Runner, tolerance: float, tell: Callable[[str], None]
) -> list[Fault]:
    """The shortest beginning of the network that goes wrong, then the shortest end of that."""
    names = [str(n.outputs[0].name) for n in network.steps if str(n.outputs[0].name) in right]
    low, high = -1, len(names) - 1
    while high - low > 1:
        middle = (low + high) // 2
        tell(f"cut behind {names[middle]}")
        if _wrong(network, names[middle], right, run, tolerance):
            high = middle
        else:
            low = middle
    return _windows(network, right, names[high], run, tolerance, tell)


def _windows(
    network: Network, right: Values, name: str, run: Runner, tolerance: float, tell: Callable[[str], None]
) -> list[Fault]:
    """The smallest group of operators before ``name`` that goes wrong by itself."""
    chosen = [_made_by(network, name)]
    while True:
        tell(f"replay {len(chosen)} operators before {name}")
        error, reason = _replayed(network, chosen, name, right, run)
        if error > tolerance:
            kinds = " and ".join(n.op_type for n in chosen)
            words = reason or f"compiled together and fed with the right values, they are off by {error:.2g}"
            kind = (
                "operators computed otherwise together" if len(chosen) > 1 else "operator computed otherwise"
            )
            return [
                _fault(network, right, chosen, name, error, "runtime", kind, f"{kinds} up to {name}: {words}")
            ]
        made = {str(o.name) for n in chosen for o in n.outputs}
        before = [f for n in chosen for f in network.fed(n) if f not in made and network.maker(f) is not None]
        if not before or len(chosen) >= _WINDOW:
            break
        nearest = max(before, key=lambda f: network.position[f])
        chosen = [_made_by(network, nearest), *chosen]
    node = _made_by(network, name)
    words = (
        f"{node.op_type} {node.name} is the first to go wrong, "
        f"but not when it is compiled with up to {_WINDOW - 1} operators before it"
    )
    return [_fault(network, right, [node], name, float("nan"), "runtime", "wrong in context only", words)]


def _replayed(
    network: Network, nodes: Sequence[ir.Node], output: str, right: Values, run: Runner
) -> tuple[float, str]:
    made = {str(o.name) for n in nodes for o in n.outputs}
    given = {f: right[f] for n in nodes for f in network.fed(n) if f not in made and f in right}
    small = ir.to_proto(extracted(network, list(nodes), given, [output]))
    small.graph.output[0].CopyFrom(_info(output, right[output]))
    try:
        found = run(small, given)
    except (WorkerFailure, DlasError) as failure:
        return float("inf"), f"by itself it does not run: {failure}"
    return relative(right[output], found[output]), ""


def _wrong(network: Network, name: str, right: Values, run: Runner, tolerance: float) -> bool:
    fed = {n: right[n] for n in network.inputs}
    return relative(right[name], run(_whole(network, [name]), fed)[name]) > tolerance


def _whole(network: Network, outputs: Sequence[str]) -> onnx.ModelProto:
    """The network with these outputs, and nothing that they do not need."""
    from onnx_ir.passes import common

    graph = network.ir.clone()
    values = {str(o.name): o for node in graph.graph for o in node.outputs if o.name}
    values |= {str(v.name): v for v in graph.graph.inputs}
    del graph.graph.outputs[:]
    for name in outputs:
        if values[name].type is None or values[name].shape is None:
            continue
        graph.graph.outputs.append(values[name])
    if not graph.graph.outputs:
        raise UnsupportedError(f"the type of tensor {outputs[0]!r} cannot be inferred")
    common.RemoveUnusedNodesPass()(graph)
    return ir.to_proto(graph)


def _made_by(network: Network, name: str) -> ir.Node:
    node = network.maker(name)
    assert node is not None, name
    return node


def _comparable(values: np.ndarray) -> bool:
    # One row per run: the batch of one leads, so that the rows of a back end's answer can be told apart.
    return (
        values.dtype.kind == "f"
        and values.ndim > 2
        and values.shape[1] == 1
        and bool(np.isfinite(values).all())
    )


def _info(name: str, values: np.ndarray) -> Any:
    kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, list(values.shape[1:]))


def _flips(right: Values, found: Values, output: str) -> int | None:
    if output not in right or output not in found or right[output].shape != found[output].shape:
        return None
    a, b = (v[output].reshape(len(right[output]), -1) for v in (right, found))
    return int((a.argmax(1) != b.argmax(1)).sum()) if is_classifier(a) else None


def _fault(
    network: Network,
    right: Values,
    nodes: Sequence[ir.Node],
    name: str,
    error: float,
    fault: str,
    kind: str,
    detail: str,
) -> Fault:
    made = {str(o.name) for n in nodes for o in n.outputs}
    given = {f: right[f] for n in nodes for f in network.fed(n) if f not in made and f in right}
    small = ir.to_proto(extracted(network, list(nodes), given, [name]))
    small.graph.output[0].CopyFrom(_info(name, right[name]))
    samples = {**{f"input:{n}": v[0] for n, v in given.items()}, "expected": right[name][0]}
    last = nodes[-1]
    return Fault(
        fault, kind, detail, str(last.name), last.op_type, str(last.name), name, error, float("nan"), None, "", 0,
        small.SerializeToString() if len(nodes) <= 3 else b"", samples,
    )  # fmt: skip
