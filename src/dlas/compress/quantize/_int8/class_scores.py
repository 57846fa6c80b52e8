"""Where a classifier decides between its classes, and how an offset per class gets in there.

The scores a Softmax reads, or the outputs of a network without one, are the logits. Offsets go into the bias of the
layer that computes them; where that layer has none that could take them, an Add is put in. In QDQ form the grids
behind are widened by as much as the scores move, so that nothing saturates that did not before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from dlas.compress.qdq import QdqWriter, weight_grid
from dlas.compress.quantize._int8.scheme import attribute, constant, input_at
from dlas.core.errors import UnsupportedError
from dlas.graph.model import Model
from dlas.graph.passes import infer_shapes, remove_unused
from dlas.graph.signature import encoding_of

_LAYOUT = ("Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Dropout")
_CODINGS = ("QuantizeLinear", "DequantizeLinear")
_CODES = (ir.DataType.INT8, ir.DataType.UINT8)
_REALS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_EACH_FOR_ITSELF = ("Sigmoid", "HardSigmoid")


@dataclass(eq=False)
class ClassScores:
    """The logits of a network, found by :func:`class_scores`.

    Attributes:
        graph: An editable copy of the network.
        logits: The tensor to read, real numbers, one per class and row.
        classes: How many there are.
        layer: The layer whose bias takes offsets; None where an Add is put in.
        softmax: The Softmax or LogSoftmax behind, if there is one.
        route: Nodes between the logits and the Softmax or the output, the last one first.
    """

    graph: ir.Model
    logits: ir.Value
    classes: int
    layer: ir.Node | None = None
    softmax: ir.Node | None = None
    route: list[ir.Node] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The layer that a reader knows: the one whose bias changes, or the one that computes the logits."""
        node = self.layer or self.logits.producer()
        return str((node.name if node is not None else "") or self.logits.name)

    @property
    def words(self) -> str:
        """What adding offsets does, for a plan."""
        if self.layer is not None:
            widened = any(n.op_type == "QuantizeLinear" for n in self.route)
            behind = ", the grid of its output widened by as much" if widened else ""
            return f"{self.layer.op_type}: one offset per class in its bias{behind}"
        kind = "an integer Add" if self._quantizer() is not None else "an Add"
        place = f"before the {self.softmax.op_type}" if self.softmax is not None else "at the end"
        return f"{kind} of one offset per class {place}"

    def add(self, offsets: np.ndarray) -> ir.Model:
        """The graph with ``offsets``, ``(classes,)``, added to the logits; call it once, it changes :attr:`graph`.

        Raises:
            UnsupportedError: An integer bias cannot hold them.
        """
        writer = QdqWriter(self.graph.graph)
        quantizer = self._quantizer()
        if self.layer is not None:
            _into_bias(writer, self.layer, self.logits, offsets)
            self._widen(writer, self.route, offsets)
        elif quantizer is not None:
            self._add_integers(writer, quantizer, offsets)
        else:
            self._add_reals(writer, offsets)
        remove_unused(self.graph)
        return self.graph

    def _quantizer(self) -> ir.Node | None:
        return next((n for n in self.route if n.op_type == "QuantizeLinear"), None)

    def _widen(self, writer: QdqWriter, nodes: list[ir.Node], offsets: np.ndarray) -> None:
        """Let the grids of these nodes, the last one first, hold what they held and the offsets on top."""
        grid: tuple[np.ndarray, np.ndarray] | None = None
        for node in reversed(nodes):
            if node.op_type == "QuantizeLinear":
                grid = _wider(node, offsets)
            if node.op_type in _CODINGS and grid is not None:
                _set_grid(writer, node, grid)

    def _add_integers(self, writer: QdqWriter, quantizer: ir.Node, offsets: np.ndarray) -> None:
        """Behind a QuantizeLinear: dequantise, add, quantise on the wider grid, which integer kernels fuse."""
        graph, codes = self.graph.graph, quantizer.outputs[0]
        again = ir.node("DequantizeLinear", list(quantizer.inputs))
        signed = weight_grid(offsets.astype(np.float32), None, name="class_offsets")
        shift = 128 if codes.dtype is ir.DataType.UINT8 else 0
        stored = signed.quantize(_along(offsets, codes, self.classes), -127).astype(np.int16) + shift
        kind = np.uint8 if shift else np.int8
        constants = [
            writer.constant(stored.astype(kind), "class_offsets_quantized"),
            writer.constant(signed.scale, "class_offsets_scale"),
            writer.constant(np.asarray(shift, kind), "class_offsets_zero_point"),
        ]
        added = ir.node("DequantizeLinear", constants)
        total = ir.node("Add", [again.outputs[0], added.outputs[0]])
        last = ir.node("QuantizeLinear", [total.outputs[0], *quantizer.inputs[1:]])
        real = quantizer.inputs[0]
        for node, what in ((again, "read"), (added, "class_offsets"), (total, "shifted"), (last, "result")):
            node.name = node.outputs[0].name = writer.name(f"{codes.name}_{what}")
            node.outputs[0].type = None if real is None else real.type
            node.outputs[0].shape = codes.shape
        added.outputs[0].shape = ir.Shape(stored.shape)
        result = last.outputs[0]
        result.type = codes.type
        _take_over(codes, result)
        again.replace_input_with(0, codes)
        graph.insert_after(quantizer, [again, added, total, last])
        behind = self.route[: self.route.index(quantizer)]
        self._widen(writer, [*behind, last], offsets)

    def _add_reals(self, writer: QdqWriter, offsets: np.ndarray) -> None:
        graph = self.graph.graph
        before = self.softmax.inputs[0] if self.softmax is not None else graph.outputs[0]
        assert before is not None
        assert before.dtype is not None
        stored = _along(offsets, before, self.classes).astype(before.dtype.numpy())
        add = ir.node("Add", [before, writer.constant(stored, "class_offsets")])
        add.name = add.outputs[0].name = writer.name(f"{before.name}_shifted")
        add.outputs[0].type, add.outputs[0].shape = before.type, before.shape
        if self.softmax is not None:
            self.softmax.replace_input_with(0, add.outputs[0])
            graph.insert_before(self.softmax, add)
        else:
            producer = before.producer()
            assert producer is not None
            _take_over(before, add.outputs[0])
            add.replace_input_with(0, before)
            graph.insert_after(producer, add)


def class_scores(model: Model) -> ClassScores:
    """Find the logits of a classifier.

    Raises:
        UnsupportedError: Its outputs are no scores of classes that exclude each other; says why.
    """
    classes = _classes(model)
    graph = model.editable()
    infer_shapes(graph)
    found = ClassScores(graph, graph.graph.outputs[0], classes)
    value, alone = graph.graph.outputs[0], True
    while alone and (node := value.producer()) is not None:
        before = node.inputs[0] if node.inputs else None
        if before is None or _class_axis(before, classes) is None:
            break
        if found.softmax is None and _is_softmax(node, before, classes):
            found.softmax, found.route = node, []
        elif _passes(node):
            found.route.append(node)
        else:
            break
        value, alone = before, len(before.uses()) == 1 and not before.is_graph_output()
    last = value.producer()
    if last is not None and found.softmax is None and last.op_type in _EACH_FOR_ITSELF:
        raise UnsupportedError(
            f"{model.name} ends in a {last.op_type} ({last.name!r}): its classes do not exclude each other",
            "class-bias is for networks with one right class per row",
        )
    if alone and last is not None and value.dtype in _REALS and _takes_offsets(last, value, classes):
        found.layer, found.logits = last, value
        return found
    quantizer = found._quantizer()
    top = quantizer.inputs[0] if quantizer is not None else graph.graph.outputs[0]
    if quantizer is None and found.softmax is not None:
        top = found.softmax.inputs[0]
    if top is None or top.dtype not in _REALS or top.producer() is None:
        kind = last.op_type if last is not None else "input"
        raise UnsupportedError(
            f"the scores of {model.name} come as {model.outputs[0].dtype} from a {kind}, where no offset can be added",
            "start from the float network or from its QDQ form",
        )
    found.logits = top
    return found


def _classes(model: Model) -> int:
    """The number of classes, from the one output."""
    hint = "class-bias is for networks that give each row one score per class, (N, classes)"
    if len(model.outputs) != 1:
        names = ", ".join(s.name for s in model.outputs)
        raise UnsupportedError(f"{model.name} has {len(model.outputs)} outputs: {names}", hint)
    spec = model.outputs[0]
    wide = [d for d in spec.shape[1:] if d != 1]
    if len(wide) != 1 or not isinstance(wide[0], int) or wide[0] < 2 or np.dtype(spec.dtype).itemsize > 8:
        shape = ", ".join(map(str, spec.shape))
        raise UnsupportedError(
            f"output {spec.name!r} of {model.name} is {spec.dtype}[{shape}], which are no class scores", hint
        )
    return wide[0]


def _class_axis(value: ir.Value, classes: int) -> int | None:
    """The axis of the classes in ``(N, ..1.., classes, ..1..)``; None for any other shape."""
    if value.shape is None or len(value.shape) < 2:
        return None
    wide = [axis for axis, size in enumerate(value.shape) if axis and size != 1]
    return wide[0] if len(wide) == 1 and value.shape[wide[0]] == classes else None


def _is_softmax(node: ir.Node, value: ir.Value, classes: int) -> bool:
    """Whether it is a Softmax or LogSoftmax over the classes."""
    if node.op_type not in ("Softmax", "LogSoftmax") or node.domain or value.shape is None:
        return False
    axis, whole = attribute(node, "axis", -1), _class_axis(value, classes)
    if "axis" not in node.attributes and node.graph and node.graph.opset_imports.get("", 13) < 13:
        axis = 1
    old = node.graph is not None and node.graph.opset_imports.get("", 13) < 13  # flattens from that axis on
    return (axis + len(value.shape)) % len(value.shape) == whole or (old and axis == 1)


def _passes(node: ir.Node) -> bool:
    """Whether the scores go through in their order, at most rounded."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Transpose":
        order = node.attributes.get("perm")
        return order is not None and order.as_ints()[0] == 0
    if node.op_type == "Cast":
        return (
            node.outputs[0].dtype in _REALS and node.inputs[0] is not None and node.inputs[0].dtype in _REALS
        )
    if node.op_type in _CODINGS:
        codes = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
        return codes is not None and codes.dtype in _CODES and encoding_of(node) is not None
    return node.op_type in _LAYOUT


def _takes_offsets(layer: ir.Node, value: ir.Value, classes: int) -> bool:
    """Whether the bias of ``layer``, which yields ``value``, can take one offset per class."""
    if layer.domain not in ("", "ai.onnx"):
        return False
    if layer.op_type == "Add":
        return any(constant(v) is not None for v in layer.inputs)
    if layer.op_type not in ("Conv", "Gemm") or _class_axis(value, classes) != 1:
        return False
    bias = input_at(layer, 2)
    if bias is None:
        given = layer.inputs[0].producer() if layer.inputs[0] is not None else None
        return given is None or given.op_type != "DequantizeLinear"
    beta = attribute(layer, "beta", 1.0)
    return bool(constant(bias) is not None and beta) or (_integer_bias(bias) is not None and beta == 1)


def _integer_bias(bias: ir.Value) -> tuple[np.ndarray, np.ndarray, int] | None:
    """``(codes int32, scale, zero point)`` of a dequantised constant bias."""
    node = bias.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    codes, scale, zero = (constant(input_at(node, i)) for i in range(3))
    if codes is None or scale is None or codes.dtype != np.int32 or (zero is not None and zero.any()):
        return None
    return codes, scale, int(attribute(node, "axis", 1))


def _along(offsets: np.ndarray, value: ir.Value, classes: int) -> np.ndarray:
    """``offsets`` in a shape that broadcasts along the classes of ``value``."""
    axis = _class_axis(value, classes)
    assert axis is not None
    assert value.shape is not None
    return offsets.reshape([-1 if i == axis else 1 for i in range(len(value.shape))])


def _into_bias(writer: QdqWriter, layer: ir.Node, value: ir.Value, offsets: np.ndarray) -> None:
    """Add the offsets to the bias of a Conv or Gemm, or to the constant of an Add."""
    at = (
        2
        if layer.op_type != "Add"
        else next(i for i, v in enumerate(layer.inputs) if constant(v) is not None)
    )
    bias = input_at(layer, at)
    stored = constant(bias)
    added = layer.op_type == "Add"
    shift = _along(offsets, value, len(offsets)) if added else offsets / attribute(layer, "beta", 1.0)
    name = f"{layer.outputs[0].name}_bias" if bias is None else f"{bias.name}_shifted"
    if bias is not None and stored is None:
        _into_integers(writer, layer, bias, shift, name)
        return
    assert value.dtype is not None
    kind = value.dtype.numpy() if stored is None else stored.dtype
    before = np.zeros(1) if stored is None else stored.astype(np.float64)
    if at >= len(layer.inputs):
        layer.resize_inputs(at + 1)
    layer.replace_input_with(at, writer.constant((before + shift).astype(kind), name))


def _into_integers(writer: QdqWriter, layer: ir.Node, bias: ir.Value, shift: np.ndarray, name: str) -> None:
    found, node = _integer_bias(bias), bias.producer()
    assert found is not None
    assert node is not None
    codes, scale, axis = found
    with np.errstate(divide="ignore", invalid="ignore"):  # a scale of 0 is refused like one that is too small
        moved = codes.astype(np.float64) + np.rint(shift / scale.astype(np.float64))
    if not np.abs(moved).max() <= 2**31 - 1:
        raise UnsupportedError(
            f"the int32 bias of {layer.name!r} cannot hold offsets up to {np.abs(shift).max():.3g}",
            "apply class-bias to the float network and quantise that",
        )
    inputs = [writer.constant(moved.astype(np.int32), name), *node.inputs[1:]]
    shifted = ir.node("DequantizeLinear", inputs, {"axis": axis} if scale.ndim else {})
    shifted.name = shifted.outputs[0].name = writer.name(f"{name}_dequantized")
    shifted.outputs[0].type, shifted.outputs[0].shape = bias.type, bias.shape
    writer.graph.insert_before(layer, shifted)
    layer.replace_input_with(2, shifted.outputs[0])


def _wider(node: ir.Node, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of a grid that holds what that of ``node`` holds, moved by any of the offsets."""
    known = encoding_of(node)
    assert known is not None
    dtype = node.outputs[0].dtype
    assert dtype is not None
    (scale, zero), info = known, np.iinfo(dtype.numpy())
    low = min((info.min - zero) * scale + min(float(offsets.min()), 0.0), 0.0)
    high = max((info.max - zero) * scale + max(float(offsets.max()), 0.0), 0.0)
    wide = np.asarray((high - low) / (info.max - info.min), np.float32)
    return wide, np.asarray(np.clip(np.rint(info.min - low / float(wide)), info.min, info.max), dtype.numpy())


def _set_grid(writer: QdqWriter, node: ir.Node, grid: tuple[np.ndarray, np.ndarray]) -> None:
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    stored = constant(node.inputs[1])
    kind = np.float32 if stored is None else stored.dtype
    node.replace_input_with(1, writer.constant(grid[0].astype(kind), "class_scores_scale"))
    node.replace_input_with(2, writer.constant(grid[1], "class_scores_zero_point"))


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """Give ``new`` every reader of ``old``, and its name if it is an output of the network."""
    outside = old.is_graph_output()
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if outside:
        old.name, new.name = f"{new.name}_before", old.name
