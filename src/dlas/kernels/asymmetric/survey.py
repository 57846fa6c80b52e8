"""How often 16-bit accumulators overflow in a network: its own weights on 4 bits, its own activations on 8.

Uniform random operands overflow often; trained networks hardly ever do. How rarely can only be counted, layer by
layer, on data the network is made for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.errors import OptionError, UnsupportedError
from dlas.graph.model import Model
from dlas.graph.reference import intermediates
from dlas.kernels.arrays import taps
from dlas.kernels.asymmetric.emulate import ACCUMULATORS, DEPTH, OverflowStats, emulate
from dlas.kernels.reference.conv import output_size

_LARGEST = 7  # magnitude of a symmetric 4-bit weight


@dataclass(frozen=True)
class SurveyOptions:
    """How layers are put on the grids and what is counted.

    Attributes:
        accumulator: ``wrap`` or ``sat``.
        spills: Distances between two additions into 32 bits, to be compared; None: only at the end.
        percentile: Of the activations, which becomes the largest code; more is clipped.
        tolerance: Share of additions that may overflow where a distance is chosen.
        rows: Rows of activations (pixels of feature maps) drawn from each layer.
        seed: Of that draw.
    """

    accumulator: str = "sat"
    spills: tuple[int | None, ...] = (None, 256, 128, 64, 32, 16)
    percentile: float = 99.99
    tolerance: float = 0.0005
    rows: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if self.accumulator not in ACCUMULATORS[:2]:
            raise OptionError("accumulator", self.accumulator, "wrap or sat")
        if not self.spills or any(s is not None and (s < DEPTH or s % DEPTH) for s in self.spills):
            raise OptionError("spills", self.spills, f"multiples of {DEPTH}, or None")
        if not 0 < self.percentile <= 100:
            raise OptionError("percentile", self.percentile, "a number over 0, up to 100")
        if not 0 <= self.tolerance < 1:
            raise OptionError("tolerance", self.tolerance, "a fraction")
        if self.rows < 1:
            raise OptionError("rows", self.rows, "a number >= 1")


@dataclass(frozen=True)
class LayerSurvey:
    """One layer.

    Attributes:
        name: Node name.
        op: ``Conv``, ``Gemm`` or ``MatMul``.
        rows: Rows of activations (pixels of a feature map) per sample: M of its product.
        columns: Output columns: N.
        depth: Products per output: K.
        signed: Whether its activations are int8 rather than uint8.
        stats: What the accumulators went through, by spill distance.
        spill: The longest distance within tolerance (None: no spill but the last); 16, which is always exact, if none.
    """

    name: str
    op: str
    rows: int
    columns: int
    depth: int
    signed: bool
    stats: Mapping[int | None, OverflowStats]
    spill: int | None


def survey(
    model: Model, inputs: Mapping[str, np.ndarray], options: SurveyOptions | None = None
) -> tuple[LayerSurvey, ...]:
    """Run every dense layer of a network in 4-bit by 8-bit arithmetic, on its own data.

    Weights are symmetric per output channel, -7 .. 7; activations per tensor, unsigned where none is negative.
    Grouped convolutions are left out: their depth is small and an instruction over 8 products does not suit them.

    Args:
        model: A network with float activations.
        inputs: Samples, as :func:`dlas.graph.reference.intermediates` takes them.
        options: None for the defaults.

    Returns:
        One entry per layer, in the order of the network.

    Raises:
        UnsupportedError: There is no layer of that kind.
        OptionError: Weights or activations hold NaN or an infinity.
    """
    chosen = options or SurveyOptions()
    nodes = [node for node in model.ir.graph if _is_dense(node)]
    names = [[str(node.inputs[i].name) for node in nodes] for i in (0, 1)]  # type: ignore[union-attr]
    inputs = whole_batches(model, inputs)
    values = _values(model, inputs, *names)
    samples = len(next(iter(inputs.values())))
    rng = np.random.default_rng(chosen.seed)
    found = []
    for node in nodes:
        x, w = (values.get(str(v.name)) for v in node.inputs[:2] if v is not None)
        if x is None or w is None or x.dtype != np.float32 or w.dtype != np.float32:
            continue
        pair = _rows_and_matrix(node, x, w, chosen.rows, rng)
        if pair is None:
            continue
        drawn, matrix, count = pair
        if not np.isfinite(x).all():
            raise OptionError(f"activations of {node.name}", "NaN or infinity", "finite numbers")
        a, signed = _activation_codes(drawn, float(np.percentile(np.abs(x), chosen.percentile)))
        codes = _weight_codes(matrix, str(node.name))
        stats = {s: emulate(a, codes, chosen.accumulator, s)[1] for s in chosen.spills}
        spill = _longest(stats, chosen.tolerance)
        depth, columns = codes.shape
        per_sample = max(1, round(count / samples))
        name = str(node.name)
        found.append(LayerSurvey(name, node.op_type, per_sample, columns, depth, signed, stats, spill))
    if not found:
        raise UnsupportedError(
            f"{model.name} has no dense layer in float32: Conv with one group, Gemm or MatMul by a matrix"
        )
    return tuple(found)


def whole_batches(model: Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs, without what is left over of a fixed batch."""
    step = _batch(model)
    total = len(next(iter(inputs.values())))
    used = total // step * step if step and total > step else total
    return {name: x[:used] for name, x in inputs.items()}


def _batch(model: Model) -> int:
    """Samples the network always takes; 0 for any number."""
    shape = model.inputs[0].shape
    return shape[0] if shape and isinstance(shape[0], int) else 0


def _values(
    model: Model, inputs: Mapping[str, np.ndarray], activations: Sequence[str], weights: Sequence[str]
) -> dict[str, np.ndarray]:
    """Tensors by name, of as many runs as a fixed batch takes."""
    wanted = sorted({*activations, *weights})
    total = len(next(iter(inputs.values())))
    step = _batch(model) or total
    parts = [
        intermediates(model, {n: x[at : at + step] for n, x in inputs.items()}, wanted)
        for at in range(0, total, step)
    ]
    constants = set(weights) | set(model.initializers)
    return {
        name: value
        if len(parts) == 1 or name in constants or not value.ndim
        else np.concatenate([part[name] for part in parts])
        for name, value in parts[0].items()
    }


def _longest(stats: Mapping[int | None, OverflowStats], tolerance: float) -> int | None:
    for spill in sorted(stats, key=lambda s: -(s or 2**31)):
        if stats[spill].overflow_rate <= tolerance:
            return spill
    return 16


def _is_dense(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx") or len(node.inputs) < 2 or None in node.inputs[:2]:
        return False
    if node.op_type == "Conv":
        unpadded = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        return unpadded and node.attributes.get_int("group", 1) == 1
    return node.op_type in ("Gemm", "MatMul")


def _rows_and_matrix(
    node: ir.Node, x: np.ndarray, w: np.ndarray, rows: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Activations ``(rows, K)``, weights ``(K, N)`` and how many rows the layer has in all.

    None where it is no product by one matrix.
    """
    if node.op_type == "Conv":
        if w.ndim != 4:
            return None
        drawn, count = _pixels(node, x, w.shape, rows, rng)
        return drawn, w.reshape(len(w), -1).T, count
    if w.ndim != 2:
        return None
    if node.op_type == "Gemm":
        x = x.T if node.attributes.get_int("transA", 0) else x
        w = w.T if node.attributes.get_int("transB", 0) else w
    flat = x.reshape(-1, x.shape[-1])
    return flat[_drawn(len(flat), rows, rng)], w, len(flat)


def _pixels(
    node: ir.Node, x: np.ndarray, w: tuple[int, ...], rows: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    strides, pads, dilations = (
        [int(v) for v in node.attributes.get_ints(name, default)]
        for name, default in (("strides", (1, 1)), ("pads", (0, 0, 0, 0)), ("dilations", (1, 1)))
    )
    size = output_size(x.shape, w, strides, pads, dilations, 1)
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    count = len(x) * size[0] * size[1]
    picked = _drawn(count, rows, rng)
    n, place = np.divmod(picked, size[0] * size[1])
    down, across = np.divmod(place, size[1])
    found = np.empty((len(picked), *w[1:]), np.float32)
    windows = taps(padded, (w[2], w[3]), (strides[0], strides[1]), (dilations[0], dilations[1]), size)
    for i, j, seen in windows:
        found[:, :, i, j] = seen[n, :, down, across]
    return found.reshape(len(picked), -1), count


def _drawn(count: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(count) if count <= rows else np.sort(rng.choice(count, rows, replace=False))


def _activation_codes(x: np.ndarray, largest: float) -> tuple[np.ndarray, bool]:
    signed = bool((x < 0).any())
    top = 127 if signed else 255
    codes = np.rint(x * (top / largest if largest > 0 else 0.0))
    return np.clip(codes, -128 if signed else 0, top).astype(np.int8 if signed else np.uint8), signed


def _weight_codes(w: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(w).all():
        raise OptionError(f"weights of {name}", "NaN or infinity", "finite numbers")
    scale = np.abs(w).max(axis=0, keepdims=True) / _LARGEST
    return np.rint(np.divide(w, scale, out=np.zeros_like(w), where=scale > 0)).astype(np.int8)
