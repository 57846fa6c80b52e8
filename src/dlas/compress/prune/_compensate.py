"""Make each remaining layer answer as before, from rows, without training.

Layer by layer in graph order, the weights are re-fitted by least squares so that, fed by the pruned network, the
layer gives what its channels gave in the original one (He et al. 2017, "Channel pruning for accelerating very deep
neural networks", section 3.1; the target is the original output, so errors of earlier layers are mended too). A ridge
term keeps the weights near what they were where the rows say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from dlas.compress.calibration import Batches

POSITIONS = 8  # pixels per row that are fitted; neighbours say nearly the same
RIDGE = 1e-2  # of the mean variance of the inputs
_MAX_UNKNOWNS = 8192  # of one filter: the normal equations take the square of it


@dataclass(frozen=True)
class _Layer:
    """A layer that can be re-fitted: output name, and where its pixels are read."""

    node: ir.Node
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def output(self) -> str:
        return str(self.node.outputs[0].name)


def compensate(
    pruned: ir.Model,
    original: ir.Model,
    kept: Mapping[str, np.ndarray],
    batches: Batches,
    *,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> list[str]:
    """Re-fit Conv (one group, no dilation) and Gemm layers of ``pruned``, in place.

    Args:
        pruned: The graph without the channels; changed.
        original: The graph it was made from.
        kept: Per layer output of ``original``: ``(channels,) bool``, which are still there.
        batches: Training rows in the network's input form; a fresh pass at every call.
        seed: Seed of the choice of pixels.
        progress: Called with the fraction done.

    Returns:
        Names of the layers that were re-fitted.
    """
    layers = [layer for node in pruned.graph if (layer := _fittable(node)) is not None]
    layers = [layer for layer in layers if layer.output in kept]
    targets = _targets(original, layers, kept, batches, seed)
    for index, layer in enumerate(layers):
        source = str(layer.node.inputs[0].name) if layer.node.inputs[0] is not None else ""
        start = np.vstack([_matrix(layer), _array(layer.node, 2)[None]]).astype(np.float64)
        unknowns = len(start)
        gram, moment = np.zeros((unknowns, unknowns)), np.zeros(start.shape)
        for (pixels, want), (given,) in zip(
            targets[layer.output], _run(pruned, [source], batches), strict=True
        ):
            seen = _patches(given, layer, pixels)
            seen = np.hstack([seen, np.ones((len(seen), 1))]).astype(np.float64)
            gram += seen.T @ seen
            moment += seen.T @ (want - seen @ start)
        ridge = RIDGE * np.trace(gram) / unknowns
        fitted = start + np.linalg.solve(gram + ridge * np.eye(unknowns), moment)
        if np.isfinite(fitted).all():
            _store(layer, fitted)
        if progress is not None:
            progress((index + 1) / len(layers))
    return [layer.output for layer in layers]


def _fittable(node: ir.Node) -> _Layer | None:
    stored = len(node.inputs) > 2 and all(
        v is not None and v.is_initializer() and v.const_value is not None and len(v.uses()) == 1
        for v in node.inputs[1:3]
    )
    if not stored or node.domain not in ("", "ai.onnx"):
        return None
    attributes = {name: found.value for name, found in node.attributes.items()}
    if node.op_type == "Gemm":
        plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
        if not plain or attributes.get("transA", 0) or _array(node, 2).ndim != 1:
            return None
        layer = _Layer(node, (), (), ())
    elif node.op_type == "Conv":
        kernel = _array(node, 1).shape[2:]
        rank = len(kernel)
        automatic = attributes.get("auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET")
        dilated = any(d != 1 for d in attributes.get("dilations", ()))
        if automatic or dilated or attributes.get("group", 1) != 1 or rank != 2:
            return None
        strides = tuple(attributes.get("strides", (1,) * rank))
        layer = _Layer(node, kernel, strides, tuple(attributes.get("pads", (0,) * 2 * rank)))
    else:
        return None
    return layer if len(_matrix(layer)) <= _MAX_UNKNOWNS else None


def _array(node: ir.Node, index: int) -> np.ndarray:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _matrix(layer: _Layer) -> np.ndarray:
    """The weight as ``(inputs, outputs)``."""
    weight = _array(layer.node, 1)
    if layer.kernel:
        return weight.reshape(len(weight), -1).T
    found = layer.node.attributes.get("transB")
    return weight.T if found is not None and found.as_int() else weight


def _store(layer: _Layer, fitted: np.ndarray) -> None:
    weight, bias = layer.node.inputs[1], layer.node.inputs[2]
    assert weight is not None
    assert bias is not None
    old = _array(layer.node, 1)
    found = layer.node.attributes.get("transB")
    transposed = bool(layer.kernel) or (found is not None and bool(found.as_int()))
    new = fitted[:-1].T if transposed else fitted[:-1]
    array = np.ascontiguousarray(new.reshape(old.shape), dtype=old.dtype)
    weight.const_value = ir.tensor(array, name=weight.name)
    bias.const_value = ir.tensor(fitted[-1].astype(_array(layer.node, 2).dtype), name=bias.name)


def _targets(
    original: ir.Model, layers: Sequence[_Layer], kept: Mapping[str, np.ndarray], batches: Batches, seed: int
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Per layer and batch: pixels ``(n, positions, axes)``, and outputs there ``(n * positions, channels)``."""
    generator = np.random.default_rng(seed)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {layer.output: [] for layer in layers}
    for outputs in _run(original, [layer.output for layer in layers], batches):
        for layer, array in zip(layers, outputs, strict=True):
            alive, pixels = array[:, kept[layer.output]], np.zeros((0, 0, 0), np.int64)
            if layer.kernel:
                pixels = generator.integers(0, array.shape[2:], (len(array), POSITIONS, 2))
                row = np.arange(len(array))[:, None]
                alive = alive[row, :, pixels[..., 0], pixels[..., 1]].reshape(-1, alive.shape[1])
            found[layer.output].append((pixels, alive))
    return found


def _patches(given: np.ndarray, layer: _Layer, pixels: np.ndarray) -> np.ndarray:
    """What the filters see at ``pixels``: ``(n * positions, inputs)``."""
    if not layer.kernel:
        return given
    top, left, bottom, right = layer.pads
    padded = np.pad(given, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, layer.kernel, axis=(2, 3))
    rows, columns = pixels[..., 0] * layer.strides[0], pixels[..., 1] * layer.strides[1]
    seen = windows[np.arange(len(given))[:, None], :, rows, columns]
    return seen.reshape(-1, seen.shape[2] * seen.shape[3] * seen.shape[4])


def _run(graph: ir.Model, names: Sequence[str], batches: Batches) -> Iterator[list[np.ndarray]]:
    """Yield the tensors ``names`` batch by batch; nodes that they do not need are not run."""
    import onnxruntime

    source = graph.graph.inputs[0]
    if list(names) == [source.name]:
        yield from ([rows] for rows in batches())
        return
    proto = ir.to_proto(graph)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    first = source.shape[0] if source.shape is not None and len(source.shape) else None
    for rows in batches():
        size = first if isinstance(first, int) else len(rows)
        filler = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % size, axis=0)])
        parts = [
            session.run(list(names), {str(source.name): filler[i : i + size]})
            for i in range(0, len(filler), size)
        ]
        yield [np.concatenate(column)[: len(rows)] for column in zip(*parts, strict=True)]
