"""From a traced TensorFlow function to the one form of network the rest of dlas works on."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from dlas.core.errors import ModelError, UnsupportedError
from dlas.core.lazy import optional_import
from dlas.graph.formats._onnx_normal import normal_form
from dlas.graph.formats._onnx_tensors import check_tensors
from dlas.graph.formats.keras.cleaning import clean, express
from dlas.graph.formats.keras.loading import Opened, reason, tensorflow
from dlas.graph.formats.keras.tracing import plain, unroll
from dlas.graph.model import OPSET, Model

TOLERANCE = 1e-3  # of the largest output (or of 1); float32 in another order of summation stays far below
_LOOPS = frozenset({"Loop", "If", "Scan"})


def to_graph(opened: Opened, file: str, *, allow_nan: bool) -> tuple[ir.Model, tuple[str, ...]]:
    """Translate an opened network and compare both on random input.

    Args:
        opened: The network.
        file: What to call it in errors.
        allow_nan: Accept weights that are NaN or infinite, and leave out the comparison.

    Returns:
        The graph in opset 18, and notes on the translation.

    Raises:
        UnsupportedError: Operators that cannot be expressed; all are named.
        ModelError: The translation is not a valid network, or answers differently.
    """
    notes: tuple[str, ...] = ()
    proto = _translated(opened, file)
    if any(node.op_type in _LOOPS for node in proto.graph.node) and unroll(opened):
        # Where the number of steps is open this fails, and the loop is refused below.
        with contextlib.suppress(UnsupportedError):
            proto = _translated(opened, file)
            notes = ("recurrent layers are written out step by step",)
    check_tensors(proto, file, allow_nan=allow_nan)
    graph = normal_form(proto, file)
    clean(graph, opened)
    if not allow_nan:
        error = _largest_difference(graph, opened, file)
        if error is not None:
            notes += (f"largest difference from {opened.loader} on random input: {error:.2g}",)
    return graph, notes


def _translated(opened: Opened, file: str) -> onnx.ModelProto:
    tf = tensorflow()
    loader = optional_import("tf2onnx.tf_loader", extra="keras", needed_for="translating a Keras network")
    optimizer = optional_import("tf2onnx.optimizer", extra="keras", needed_for="translating a Keras network")
    tfonnx = optional_import("tf2onnx.tfonnx", extra="keras", needed_for="translating a Keras network")
    try:
        with _quiet():
            with plain(tf, opened.model):
                traced = tf.function(opened.function, autograph=False, input_signature=list(opened.inputs))
                traced = traced.get_concrete_function()
            given = [t.name for t in traced.inputs[: len(opened.inputs)]]
            wanted = [t.name for t in traced.outputs]
            frozen = loader.from_function(traced, given, wanted)
            _fix_captures(tf, frozen, traced)
            with tf.Graph().as_default() as graph:
                tf.import_graph_def(frozen, name="")
                found = tfonnx.process_tf_graph(
                    graph, continue_on_error=True, opset=OPSET, input_names=given, output_names=wanted
                )
            found = optimizer.optimize_graph(found, optimizers=_optimizers(optimizer))
            proto = found.make_model(Path(file).stem)
    except Exception as error:  # a translator of this size fails in many ways
        raise UnsupportedError(f"{file} cannot be translated to ONNX: {reason(error)}") from error
    express(proto)
    _name_ends(proto, opened)
    return proto


def _fix_captures(tf: Any, frozen: Any, traced: Any) -> None:
    """Tensors that the function refers to without being given them become constants; variables are already."""
    outside = traced.inputs[len(traced.inputs) - len(traced.captured_inputs) :]
    held = {
        inner.name.split(":")[0]: outer
        for inner, outer in zip(outside, traced.captured_inputs, strict=True)
        if inner.dtype != tf.resource
    }
    for node in frozen.node:
        if node.op == "Placeholder" and node.name in held:
            value = held[node.name].numpy()
            node.op = "Const"
            for key in [k for k in node.attr if k != "dtype"]:
                del node.attr[key]
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def _optimizers(optimizer: Any) -> Mapping[str, Any]:
    """All of tf2onnx's own, less the fusion of batch norms into convolutions: fine-tuning needs them apart."""
    module = optimizer.back_to_back_optimizer

    class BackToBack(module.BackToBackOptimizer):
        """The same without that one rule."""

        def _optimize(self, graph: Any) -> Any:
            rules = module._func_map
            held = rules.pop(("Conv", "BatchNormalization"), None)
            try:
                return super()._optimize(graph)
            finally:
                if held is not None:
                    rules["Conv", "BatchNormalization"] = held

    return {**optimizer._get_optimizers(), "remove_back_to_back": BackToBack}


def _name_ends(proto: onnx.ModelProto, opened: Opened) -> None:
    """Names and shapes of inputs and outputs as the Keras network declares them, the batch free as ``N``."""
    graph = proto.graph
    if len(graph.input) != len(opened.inputs):
        unused = [
            s.name for s in opened.inputs if not any(v.name.split(":")[0] == s.name for v in graph.input)
        ]
        raise UnsupportedError(
            f"the inputs {', '.join(unused)} are not used", "save the network without them"
        )
    renamed = {v.name: s.name for v, s in zip(graph.input, opened.inputs, strict=True)}
    for value, name in zip(graph.output, opened.outputs, strict=True):
        if value.name in renamed:
            raise UnsupportedError(
                f"the output {name!r} is an input as it stands", "save the network without it"
            )
        renamed[value.name] = name
    inner = {o for node in graph.node for o in node.output} | {t.name for t in graph.initializer}
    for name in set(renamed.values()) & (inner - set(renamed)):
        renamed[name] = f"{name}.inner"
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = renamed.get(name, name)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    del graph.value_info[:]
    for value, spec in zip(graph.input, opened.inputs, strict=True):
        value.name = renamed[value.name]
        dims = spec.shape.as_list() if spec.shape.rank is not None else []
        for axis, size in enumerate(dims):
            dim = value.type.tensor_type.shape.dim[axis]
            dim.Clear()
            if size is None:
                dim.dim_param = "N" if axis == 0 else f"{spec.name}_{axis}"
            else:
                dim.dim_value = size
    for value in graph.output:
        value.name = renamed[value.name]
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.Clear()
                dim.dim_param = "N" if axis == 0 else f"{value.name}_{axis}"


def _largest_difference(graph: ir.Model, opened: Opened, file: str) -> float | None:
    """Largest difference between both on random input; None where an input has open sizes beside the batch."""
    from dlas.graph.reference import Reference

    tf = tensorflow()
    model = Model(graph)
    if any(isinstance(d, str) for spec in model.inputs for d in spec.shape[1:]):
        return None
    rng = np.random.default_rng(0)
    given = []
    for spec in model.inputs:
        shape = spec.bound(2)
        whole = "int" in spec.dtype or _is_index(graph, spec.name)
        array = rng.integers(0, 2, shape) if whole else rng.standard_normal(shape)
        given.append(array.astype(spec.dtype))
    wanted = opened.function(*[tf.constant(a) for a in given])
    with Reference(model) as reference:
        answers = reference.run({s.name: a for s, a in zip(model.inputs, given, strict=True)})
    largest = 0.0
    for spec, tensor in zip(model.outputs, wanted, strict=True):
        want, got = np.asarray(tensor, np.float64), np.asarray(answers[spec.name], np.float64)
        if not np.isfinite(want).all():
            raise ModelError(
                f"{file}: the network answers NaN or infinity on random input (output {spec.name!r})"
            )
        error = float(np.max(np.abs(got - want), initial=0.0)) if got.shape == want.shape else np.inf
        if not error <= TOLERANCE * max(1.0, float(np.max(np.abs(want), initial=0.0))):
            raise ModelError(
                f"{file}: its translation differs from {opened.loader} by {error:.2g} on output {spec.name!r} "
                f"(accepted: {TOLERANCE:g} of its range)",
                "please report the layer that differs",
            )
        largest = max(largest, error)
    return largest


def _is_index(graph: ir.Model, name: str) -> bool:
    """Whether a float input is turned into whole numbers at once, as an embedding does."""
    value = next(v for v in graph.graph.inputs if v.name == name)
    return bool(value.uses()) and all(use.node.op_type == "Cast" for use in value.uses())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The translator talks through logging and warnings; what matters is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
