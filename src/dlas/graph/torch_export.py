"""A ``torch.nn.Module`` into a Model, checked against the module itself.

Networks of well-known calls are written down by :mod:`dlas.graph.torch_trace`, in a fraction of a second; all others,
and any that would answer differently, go by way of the ONNX exporter of PyTorch.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.model import OPSET, Model, Step, step_versions
from dlas.graph.preprocessing import Preprocessing
from dlas.graph.rewriting import fresh_name, shorten

if TYPE_CHECKING:
    import torch
    from torch import nn

TOLERANCE = 1e-3  # of the largest output (or of 1); float32 in another order of summation stays far below
TRACED_TOLERANCE = 1e-4  # of the largest output; beyond it, PyTorch's exporter is asked
_TINY = 1e-6  # answers that small are rounding
_SCOPES = "pkg.torch.onnx.name_scopes"
_LOGGING = threading.Lock()
log = logging.getLogger("dlas")


@dataclass(frozen=True)
class Exported:
    """What was made of a module.

    Attributes:
        graph: The network in ONNX.
        dynamic: Whether its batch is dynamic.
        traced: Whether it is the work of :mod:`dlas.graph.torch_trace`, which leaves nothing to tidy.
        reason: Why it is not, where tracing was tried.
    """

    graph: ir.Model
    dynamic: bool
    traced: bool = False
    reason: str = ""


Exporter = Callable[["nn.Module", "tuple[torch.Tensor, ...]", bool], Exported]
"""Module, example inputs and whether their batch is to stay -> the tidied graph."""


def export(module: nn.Module, examples: tuple[torch.Tensor, ...], fixed_batch: bool) -> Exported:
    """The graph of a module, tidied; an :data:`Exporter`."""
    return finished(export_raw(module, examples, fixed_batch))


def export_slowly(
    module: nn.Module, examples: tuple[torch.Tensor, ...], fixed_batch: bool, reason: str = ""
) -> Exported:
    """As :func:`export`, by PyTorch's exporter in any case, for that ``reason``; an :data:`Exporter`."""
    return finished(replace(_by_pytorch(module, examples, fixed_batch), reason=reason))


def finished(raw: Exported) -> Exported:
    """The same with a graph that is tidy."""
    return raw if raw.traced else replace(raw, graph=tidied(raw.graph))


def from_module(
    module: nn.Module,
    example: Any,
    name: str = "model",
    preprocessing: Preprocessing | None = None,
    *,
    source: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    fixed_batch: bool = False,
    exporter: Exporter = export,
) -> Model:
    """Export a module with a dynamic batch ``N``, simplify the graph and compare both on random input.

    Batch normalisation is folded into the convolution before it: every method of the package works on folded graphs,
    and int8 needs them.

    Args:
        module: The network; it is switched to eval mode.
        example: One input or a tuple of inputs, arrays or tensors, batch first.
        name: Name of the Model.
        preprocessing: What samples must go through, if known.
        source: Entries for :attr:`Model.source`.
        options: More entries for the history line.
        fixed_batch: Keep the batch of the example instead of a dynamic one.
        exporter: Who makes the graph; it is checked all the same.

    Returns:
        A Model whose ``torch_module`` is ``module``.

    Raises:
        UnsupportedError: PyTorch cannot export the network; says why.
        ModelError: The exported network answers differently, or with numbers that are not finite.
    """
    import torch

    with contextlib.suppress(NotImplementedError):  # an exported program has no modes
        module.eval()
    examples = _examples(example, fixed_batch)
    fields: dict[str, Any] = {
        "name": name,
        "preprocessing": preprocessing,
        "source": {"framework": f"torch {torch.__version__}", **(source or {})},
        "torch_module": module,
    }
    exported = exporter(module, examples, fixed_batch)
    try:
        model, error = _checked(module, examples, exported, fields)
    except ModelError as failure:
        if not exported.traced or exporter is not export:
            raise
        log.debug("%s: the traced graph is given up: %s", name, failure)
        exported = export_slowly(module, examples, fixed_batch, _reason(failure))
        model, error = _checked(module, examples, exported, fields)
    notes = (f"largest difference from torch on random input: {error:.2g}",)
    if not exported.dynamic and not fixed_batch:
        notes += ("the batch is fixed: torch.export could not make it dynamic",)
    if exported.reason:
        notes += (f"written by PyTorch's exporter, as the network could not be traced: {exported.reason}",)
    step = Step(
        "import",
        {"format": "torch", "opset": OPSET, **(options or {})},
        step_versions("torch", "onnx", "onnxscript"),
        notes,
    )
    return model.with_step(model.ir, step, torch_module=module)


def _examples(example: Any, fixed_batch: bool) -> tuple[torch.Tensor, ...]:
    """Tensors with a batch of at least two: torch.export takes a batch of one for a constant."""
    import torch

    tensors = []
    for given in example if isinstance(example, tuple | list) else (example,):
        tensor = torch.as_tensor(given).detach().cpu()
        if not fixed_batch and tensor.dim() > 0 and tensor.shape[0] < 2:
            tensor = tensor.repeat(2, *[1] * (tensor.dim() - 1))
        tensors.append(tensor)
    return tuple(tensors)


def export_raw(module: nn.Module, examples: tuple[torch.Tensor, ...], fixed_batch: bool) -> Exported:
    """The graph as it is written, with weights of its own: traced where that can be done, else by PyTorch's exporter.

    Raises:
        UnsupportedError: PyTorch cannot export the network.
        ModelError: The network fails on its own example.
    """
    from dlas.graph.torch_trace.trace import NotTracedError, trace

    try:
        return Exported(trace(module, examples, fixed_batch), not fixed_batch, traced=True)
    except NotTracedError as failure:
        log.debug("exported by PyTorch: %s", first_line(failure))
        return replace(_by_pytorch(module, examples, fixed_batch), reason=_reason(failure))


def _by_pytorch(module: nn.Module, examples: tuple[torch.Tensor, ...], fixed_batch: bool) -> Exported:
    """What PyTorch's exporter gives; raises as :func:`export_raw`."""
    import torch

    with torch.no_grad():
        try:
            answer = module(*examples)
        except Exception as error:
            raise ModelError(
                f"the network fails on an input of shape {[list(e.shape) for e in examples]}: {first_line(error)}",
                "give the shape its forward() expects",
            ) from error
    outputs = answer if isinstance(answer, tuple | list) else (answer,)
    if not all(isinstance(o, torch.Tensor) for o in outputs):
        raise UnsupportedError(
            "the network returns something else than tensors", "return a tensor or a tuple"
        )
    batch = torch.export.Dim("N")
    names: dict[str, Any] = {
        "input_names": ["input"] if len(examples) == 1 else [f"input_{i}" for i in range(len(examples))],
        "output_names": [
            ("logits" if outputs[0].dim() == 2 else "output") if len(outputs) == 1 else f"output_{i}"
            for i in range(len(outputs))
        ],
    }
    attempts: list[tuple[Any, bool]] = [
        (tuple({0: batch} if e.dim() else None for e in examples), True),
        (None, False),
    ]
    failure: Exception | None = None
    for dynamic_shapes, dynamic in attempts[fixed_batch:]:
        try:
            with _quiet():
                program = torch.onnx.export(
                    module,
                    examples,
                    dynamo=True,
                    opset_version=OPSET,
                    dynamic_shapes=dynamic_shapes,
                    verbose=False,
                    optimize=False,  # it would fold the batch norms; what may be folded is decided below
                    **names,
                )
        except Exception as error:  # whatever the exporter trips over, the reader wants its first line
            failure = failure or error
            continue
        assert program is not None
        # By way of bytes: the exporter's graph shares the module's tensors, which training changes in place.
        return Exported(ir.from_proto(ir.to_proto(program.model)), dynamic)
    raise UnsupportedError(f"PyTorch cannot export this network to ONNX: {first_line(failure)}") from failure


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks through three channels at once; none of it helps the user."""
    with _LOGGING, warnings.catch_warnings(), open("/dev/null", "w") as nowhere:
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
        finally:
            logging.disable(before)


def _rename(graph: ir.Model) -> None:
    """Names a reader knows from the module (``layer1.0.conv1``); drops the exporter's notes, which hold local paths."""
    io = {id(v) for v in (*graph.graph.inputs, *graph.graph.outputs)}
    taken: set[str] = {str(v.name) for v in (*graph.graph.inputs, *graph.graph.outputs)}
    for node in graph.graph:
        node.name = fresh_name(_node_name(node), taken)
        for index, value in enumerate(node.outputs):
            if id(value) not in io:
                value.name = node.name if index == 0 else f"{node.name}:{index}"
    for name, value in list(graph.graph.initializers.items()):
        if name.endswith(".weight_bias") and f"{name[:-12]}.bias" not in graph.graph.initializers:
            value.name = f"{name[:-12]}.bias"  # what folding a batch normalisation leaves behind
    everything = [graph, graph.graph, *graph.graph, *graph.graph.inputs, *graph.graph.initializers.values()]
    everything += [value for node in graph.graph for value in node.outputs]
    for thing in everything:
        for key in [k for k in thing.metadata_props if k.startswith("pkg.")]:
            del thing.metadata_props[key]
        thing.doc_string = ""


def _node_name(node: ir.Node) -> str:
    for value in node.inputs:
        name = str(value.name) if value is not None and value.is_initializer() else ""
        if name.endswith(".weight"):
            return name.removesuffix(".weight")
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get(_SCOPES, ""))
    place = scopes[-2] if len(scopes) > 1 else ""
    return f"{place}.{node.op_type.lower()}" if place else node.op_type.lower()


def tidied(raw: ir.Model) -> ir.Model:
    """A smaller copy of an exported graph, with names a reader knows.

    Batch norms are kept: fine-tuning needs them, and criteria on weights mean something else once they are folded.
    """
    graph = raw.clone()
    shorten(graph, last=("successive_relu", "successive_clip"))
    _rename(graph)  # last: nodes that go would take the good names
    return graph


def _checked(
    module: nn.Module, examples: tuple[torch.Tensor, ...], exported: Exported, fields: Mapping[str, Any]
) -> tuple[Model, float]:
    """The graph as a Model, and by how much it differs from the module; a traced one is tried with another batch.

    Raises:
        ModelError: By too much, or the network itself answers with numbers that are not finite.
    """
    import torch

    model = Model(exported.graph, **fields)
    if exported.traced and exported.dynamic:
        examples = tuple(torch.cat([e, e[:1]]) for e in examples)
    limit, floor = (TRACED_TOLERANCE, _TINY) if exported.traced else (TOLERANCE, 1.0)
    return model, _largest_difference(module, model, examples, limit, floor)


def _largest_difference(
    module: nn.Module, model: Model, examples: tuple[torch.Tensor, ...], limit: float, floor: float
) -> float:
    """The largest difference on random input, accepted up to ``limit`` of the largest answer (``floor`` at least)."""
    import onnxruntime
    import torch

    from dlas.graph.torch_trace.trace import one_thread

    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(e.shape, generator=generator, dtype=e.dtype) if e.is_floating_point() else e
        for e in examples
    ]
    with torch.no_grad(), one_thread():
        answer = module(*[i.clone() for i in inputs])  # it may work in place
    expected = [o.numpy() for o in (answer if isinstance(answer, tuple | list) else (answer,))]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.to_bytes(), settings, providers=["CPUExecutionProvider"])
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(model.inputs, inputs, strict=True)}
    largest = 0.0
    found = [np.asarray(got, np.float64) for got in cast("list[np.ndarray]", session.run(None, feeds))]
    for spec, want, got in zip(model.outputs, expected, found, strict=True):
        if not np.isfinite(want).all():
            raise ModelError(f"the network answers NaN or infinity on random input (output {spec.name!r})")
        if got.shape != want.shape:
            raise ModelError(
                f"the exported network answers with the shape {list(got.shape)} instead of {list(want.shape)}"
            )
        error = float(np.max(np.abs(got - want), initial=0.0))
        if not error <= limit * max(floor, float(np.max(np.abs(want), initial=0.0))):
            raise ModelError(
                f"the exported network differs from PyTorch by {error:.2g} on output {spec.name!r} "
                f"(accepted: {limit:g} of its range)",
                "please report the operator that differs: `dlas localize` finds it",
            )
        largest = max(largest, error)
    return largest


def _reason(error: object) -> str:
    """The first line without addresses, which are others in every run and would make every file another one."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", first_line(error))


def first_line(error: object) -> str:
    """The first line of an exception that says something, shortened to fit a message."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()[:300]
    return type(error).__name__
