"""What a network consists of: layers, parameters, multiply-accumulates, sizes and zeros.

A multiply-accumulate (MAC) is one product added to a sum. Convolutions, matrix products and recurrent layers are
counted from their shapes; everything else counts as none, as in most published figures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from dlas.core.errors import UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.graph.model import Model
from dlas.graph.passes import bind_batch, infer_shapes

# Where each operator that multiplies by weights has them: positions of the weight and of what is added.
WEIGHTED: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (1, 0),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3,),
}
_ZSTD_LEVEL = 19
_RECURRENT = ("LSTM", "GRU", "RNN")
_DECODERS = frozenset(
    {"DequantizeLinear", "QuantizeLinear", "Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze"}
)
_SETTINGS = frozenset({"Clip", "Resize", "Upsample", "Pad", "Range", "OneHot", "Reshape", "Slice", "Tile"})

# A Model never changes and level 19 takes a second per MiB, so the figures of one object are worked out once.
_summaries: WeakKeyDictionary[Model, dict[str, Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Weight:
    """One stored tensor that a layer uses.

    Attributes:
        name: Name of the initializer.
        shape: Its shape.
        dtype: dtype it is stored in.
        bits: Bits per value of the number grid it is on (those of a DequantizeLinear, if there is one).
        nbytes: Bytes in the file, with the scales and zero points that belong to it.
        zeros: Values that stand for exactly 0.
        decoded: How it becomes what the layer multiplies by: ``""``, ``DequantizeLinear`` or ``Cast``.
        scales: Number of scales of its grid, 0 without one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bits: int
    nbytes: int
    zeros: int
    decoded: str = ""
    scales: int = 0

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layer:
    """One node.

    Attributes:
        name: Node name.
        op: Operator type.
        output_shape: Shape of the first output for a batch of 1; None when unknown.
        params: Weights, biases and other stored parameters.
        weight_bytes: Bytes they take in the file, with scales and zero points.
        macs: Multiply-accumulates for one sample; None when the shapes are unknown.
        sparsity: Fraction of zeros in the matrices or kernels it multiplies by; 0 where it has none.
        weight_bits: Bits of one such weight (or of another parameter where it has none); 0 without parameters.
        weight_shape: Shape of the first of them.
        weight_dtype: dtype that one is stored in.
    """

    name: str
    op: str
    output_shape: tuple[int | str, ...] | None
    params: int
    weight_bytes: int
    macs: int | None
    sparsity: float
    weight_bits: int
    weight_shape: tuple[int, ...] = ()
    weight_dtype: str = ""


def layers(model: Model) -> tuple[Layer, ...]:
    """Every node that does something to a sample, in order.

    Left out: quantise and dequantise nodes, and nodes that only decode weights.
    """
    graph, batch = _shaped(model)
    return tuple(_layer(node, batch) for node in _working_nodes(graph))


def summary(model: Model) -> dict[str, Any]:
    """Totals of a network, fit for JSON.

    Returns:
        ``params``, ``macs`` (None when a shape is unknown), ``nonzero_macs`` (those by weights that are not 0),
        ``model_bytes`` (the ONNX file), ``model_zstd_bytes`` (that file compressed by Zstandard at level 19),
        ``weight_bytes``, ``sparsity`` (zeros among all kernels and matrices), ``ops`` (operator to count, most frequent
        first) and ``kind``: ``float32``, ``float16``, ``float16 weights``; with integer activations ``int8
        per-channel``, ``int8 per-tensor``, ``uint8``, ``int4`` or ``int16x8`` (int16 activations, int8 weights); with
        integer weights and float activations ``dynamic-range int8`` (small layers may have stayed float); ``int8`` for
        integer operators; else ``mixed``.

    A tensor that several layers share counts once.
    """
    if model not in _summaries:
        _summaries[model] = _summarise(model)
    return {**_summaries[model], "ops": dict(_summaries[model]["ops"])}


def _summarise(model: Model) -> dict[str, Any]:
    graph, batch = _shaped(model)
    nodes = list(_working_nodes(graph))
    stored = {w.name: w for node in nodes for w in _parameters(node)}
    kernels = {w.name: w for node in nodes for w in _kernels(node)}
    macs = [_macs(node, batch) for node in nodes]
    size = sum(w.size for w in kernels.values())
    data = model.to_bytes()
    ops = Counter(node.op_type for node in graph.graph)
    return {
        "params": sum(w.size for w in stored.values()),
        "macs": None if None in macs else sum(m for m in macs if m is not None),
        "nonzero_macs": None
        if None in macs
        else round(sum((m or 0) * (1 - _zeros(_kernels(n))) for m, n in zip(macs, nodes, strict=True))),
        "model_bytes": len(data),
        "model_zstd_bytes": _zstd_bytes(data),
        "weight_bytes": sum(w.nbytes for w in stored.values()),
        "sparsity": sum(w.zeros for w in kernels.values()) / size if size else 0.0,
        "ops": dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        "kind": _kind(model, nodes),
    }


def figures(model: Model) -> dict[str, Figure]:
    """The numbers of :func:`summary` with unit and source; both kinds of MACs only where all shapes are known."""
    facts = summary(model)
    found = {
        "params": Figure(facts["params"], "count", Source.MEASURED),
        **_sizes(facts["model_bytes"], facts["model_zstd_bytes"], "ONNX file"),
        "sparsity": Figure(facts["sparsity"], "fraction", Source.MEASURED),
    }
    if facts["macs"] is not None:
        found["macs"] = Figure(facts["macs"], "count", Source.ESTIMATED, note="per sample, from the shapes")
        found["nonzero_macs"] = Figure(
            facts["nonzero_macs"], "count", Source.ESTIMATED, note="per sample, by weights that are not 0"
        )
    return found


def file_figures(paths: Sequence[Path], what: str) -> dict[str, Figure]:
    """``model_bytes`` and ``model_zstd_bytes`` of a network as it lies on the disk, in one file or several.

    Args:
        paths: Its files.
        what: What they are, for the note, such as ``tflite file``.
    """
    contents = [path.read_bytes() for path in paths]
    return _sizes(sum(map(len, contents)), sum(map(_zstd_bytes, contents)), what)


def _sizes(plain: int, compressed: int, what: str) -> dict[str, Figure]:
    return {
        "model_bytes": Figure(plain, "bytes", Source.MEASURED, note=what),
        "model_zstd_bytes": Figure(
            compressed, "bytes", Source.MEASURED, note=f"{what}, Zstandard level {_ZSTD_LEVEL}"
        ),
    }


def _zstd_bytes(data: bytes) -> int:
    import zstandard

    return len(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data))


def weight_of(value: ir.Value | None) -> Weight | None:
    """The stored tensor behind ``value``, looking through dequantisation, casts and transposes; None if computed."""
    decoded, bits, extra, scales, zero_point = "", 0, 0, 0, np.zeros(0)
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in _DECODERS or node.domain not in ("", "com.microsoft"):
            return None
        source = node.inputs[0]
        if node.op_type == "DequantizeLinear" and source is not None:
            decoded = node.op_type
            bits = source.dtype.bitwidth if source.dtype is not None else 8
            side = [_constant(v) for v in node.inputs[1:]]
            extra += sum(a.nbytes for a in side)
            scales = max(scales, side[0].size if side else 0)
            zero_point = side[1] if len(side) > 1 else zero_point
        elif node.op_type == "Cast" and not decoded:
            decoded = node.op_type
        value = source
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    array = tensor.numpy()
    zero = zero_point.reshape(-1)[0] if zero_point.size and not np.ptp(zero_point) else 0
    if bits == 8 and array.dtype == np.int8 and _on_four_bits(array):
        bits = 4
    return Weight(
        str(value.name),
        array.shape,
        array.dtype.name,
        bits or tensor.dtype.bitwidth,
        tensor.nbytes + extra,
        int((array == zero).sum()),
        decoded,
        scales,
    )


def _on_four_bits(array: np.ndarray) -> bool:
    """Whether int8 numbers only use the levels of int4: ONNX before opset 21 has no smaller place for them."""
    return array.size >= 64 and array.min() >= -8 and array.max() <= 7 and bool(array.any())


def _shaped(model: Model) -> tuple[ir.Model, int]:
    """The graph with shapes for one sample where possible, and the batch that those shapes have."""
    try:
        bound = bind_batch(model, 1)
        if bound is not model:
            return bound.ir, 1
    except UnsupportedError:
        pass
    graph = model.editable()
    infer_shapes(graph)
    first = next((v for v in graph.graph.inputs if v.shape), None)
    if first is None or first.shape is None:
        return graph, 1
    # Recurrent operators take time first, then the batch, unless their layout says otherwise.
    timed = any(n.op_type in _RECURRENT and not n.attributes.get_int("layout", 0) for n in first.consumers())
    lead = first.shape[1 if timed else 0]
    return graph, lead if isinstance(lead, int) and lead > 0 else 1


def _working_nodes(graph: ir.Model) -> Iterator[ir.Node]:
    for node in graph.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant"):
            continue
        if node.op_type in _DECODERS and weight_of(node.outputs[0]) is not None:
            continue
        yield node


def _parameters(node: ir.Node) -> list[Weight]:
    """Stored tensors that are parameters of ``node``, the weight first."""
    if node.op_type in _SETTINGS:
        return []
    places = WEIGHTED.get(node.op_type)
    if places is None:
        places = tuple(range(len(node.inputs)))
    found = []
    for place in places:
        weight = weight_of(node.inputs[place]) if place < len(node.inputs) else None
        if weight is None:
            continue
        real = "float" in weight.dtype or weight.decoded == "DequantizeLinear"
        if node.op_type in WEIGHTED or (real and weight.size > 1):
            found.append(weight)
    return found


def _kernels(node: ir.Node) -> list[Weight]:
    """The parameters that ``node`` multiplies by: kernels and matrices, not biases."""
    if node.op_type not in WEIGHTED:
        return []
    recurrent = node.op_type in _RECURRENT
    return [w for w in _parameters(node) if len(w.shape) >= (3 if recurrent else 2)]


def _layer(node: ir.Node, batch: int) -> Layer:
    parameters, kernels = _parameters(node), _kernels(node)
    main = (kernels or parameters or [None])[0]
    shape = node.outputs[0].shape
    return Layer(
        str(node.name),
        node.op_type,
        None if shape is None else tuple(d if isinstance(d, int) else str(d.value or "?") for d in shape),
        sum(w.size for w in parameters),
        sum(w.nbytes for w in parameters),
        _macs(node, batch),
        _zeros(kernels),
        main.bits if main else 0,
        main.shape if main else (),
        main.dtype if main else "",
    )


def _zeros(kernels: Iterable[Weight]) -> float:
    size = sum(w.size for w in kernels)
    return sum(w.zeros for w in kernels) / size if size else 0.0


def _macs(node: ir.Node, batch: int) -> int | None:
    """Multiply-accumulates of one node per sample; 0 for operators without products, None without shapes."""
    if node.op_type not in WEIGHTED:
        return 0
    data = _static(node.inputs[0])
    place = WEIGHTED[node.op_type][0]
    weight, result = _static(node.inputs[place]), _static(node.outputs[0])
    if data is None or weight is None:
        return None
    if node.op_type in _RECURRENT:
        # W is (directions, gates * hidden, input), R (directions, gates * hidden, hidden)
        recurrent = _static(node.inputs[2])
        if recurrent is None:
            return None
        return math.prod(data[:2]) * (math.prod(weight) + math.prod(recurrent)) // batch
    if node.op_type == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:]) // batch
    if result is None:
        return None
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return math.prod(result) * math.prod(weight[1:]) // batch
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0):
        return math.prod(result) * data[0] // batch
    return math.prod(result) * (data[-1] if data else 1) // batch


def _static(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    if value.shape is None:
        weight = weight_of(value)
        return weight.shape if weight is not None and not weight.decoded else None
    dims = [d for d in value.shape if isinstance(d, int)]
    return tuple(dims) if len(dims) == len(value.shape) else None


def _kind(model: Model, nodes: Iterable[ir.Node]) -> str:
    sizes: Counter[str] = Counter()
    for node in nodes:
        for kernel in _kernels(node):
            sizes[_node_kind(node, kernel)] += kernel.size
    if not sizes:
        return model.inputs[0].dtype if model.inputs else "none"
    kinds = set(sizes)
    if kinds == {"int8 per-channel", "int8 per-tensor"}:
        return "int8 per-channel"  # matrices have one scale even where kernels have many
    main = sizes.most_common(1)[0][0]
    if main.startswith("dynamic-range") and kinds == {main, "float32"}:
        return main  # converters leave small tensors as they are
    return main if len(kinds) == 1 else "mixed"


def _node_kind(node: ir.Node, kernel: Weight) -> str:
    if kernel.decoded == "DequantizeLinear":
        # the name of the grid: the stored dtype, or for weights on fewer levels its width
        grid = kernel.dtype if "int" in kernel.dtype and kernel.bits >= 8 else f"int{kernel.bits}"
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        activations = "" if source is None else _activations(source)
        if not activations:
            return f"dynamic-range {grid}"
        if activations == "int16":
            return "int16x8" if grid == "int8" else f"int16x{kernel.bits}"
        return f"{grid} {'per-channel' if kernel.scales > 1 else 'per-tensor'}" if grid == "int8" else grid
    if kernel.decoded == "Cast":
        return f"{kernel.dtype} weights"
    return kernel.dtype


def _activations(node: ir.Node) -> str:
    """The integers behind what ``node`` hands on, perhaps only reshaped; empty when it is float."""
    while node.op_type in ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"):
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        if before is None:
            return ""
        node = before
    if node.op_type == "DequantizeLinear":
        return "int8"
    # ONNX before opset 21 dequantises 16 bits by a Cast and a Mul.
    cast = node.inputs[0].producer() if node.op_type == "Mul" and node.inputs[0] is not None else None
    source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    return "int16" if source is not None and source.dtype == ir.DataType.INT16 else ""


def _constant(value: ir.Value | None) -> np.ndarray:
    return np.zeros(0) if value is None or value.const_value is None else value.const_value.numpy()
