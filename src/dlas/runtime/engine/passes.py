"""The engine's passes: what is merged before kernels are chosen. Each is named and can be left out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np

from dlas.core.errors import UnknownNameError
from dlas.kernels.kernel import ACTIVATIONS, Node, Operand
from dlas.runtime.engine.network import Call, Network

_TAKE_ACTIVATION = {
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "BatchNormalization",
}
_TAKE_RESIDUAL = {"Conv"}


def run_passes(network: Network, *, without: Collection[str] = ()) -> Network:
    """All passes in order, but for those left out; raises UnknownNameError for a pass that there is none of."""
    for name in without:
        if name not in PASSES:
            raise UnknownNameError("engine pass", name, list(PASSES))
    for name, apply in PASSES.items():
        if name not in without:
            network = apply(network)
    return network


def widen_rows(network: Network) -> Network:
    """One-dimensional convolutions and pools become two-dimensional ones with a height of 1."""
    calls: list[Call] = []
    for call in network.calls:
        node = call.node
        if (
            node.op not in ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
            or len(node.operand(0).shape) != 3
        ):
            calls.append(call)
            continue
        wide_in, wide_out = f"{call.inputs[0]}/wide of {node.name}", f"{call.outputs[0]}/wide"
        x, y = _wide(node.operand(0)), _wide(node.output)
        attributes = {**node.attributes}
        for key in ("kernel_shape", "strides", "dilations"):
            attributes[key] = (1, *node.attributes[key])
        left, right = node.attributes["pads"]
        attributes["pads"] = (0, left, 0, right)
        if "output_padding" in attributes:
            attributes["output_padding"] = (0, *attributes["output_padding"])
        inputs = [x, *node.inputs[1:]]
        if node.op.startswith("Conv"):
            weight = node.constant(1)
            if weight is None:
                calls.append(call)
                continue
            inputs[1] = Operand.of(weight[:, :, None, :])
        calls.append(_alias("Unsqueeze", f"{node.name}/widen", node.operand(0), x, call.inputs[0], wide_in))
        wide = Node(node.op, node.name, attributes, tuple(inputs), (y, *node.outputs[1:]))
        calls.append(Call(wide, (wide_in, *call.inputs[1:]), (wide_out, *call.outputs[1:])))
        calls.append(_alias("Squeeze", f"{node.name}/narrow", y, node.output, wide_out, call.outputs[0]))
    return network.with_calls(calls)


def dequantize_constants(network: Network) -> Network:
    """Weights that are stored in 8 bits and used in float32 become float32 (after ONNX DequantizeLinear)."""
    known: dict[str, Operand] = {}
    calls: list[Call] = []
    for call in network.calls:
        if known:
            operands = tuple(known.get(n, o) for n, o in zip(call.inputs, call.node.inputs, strict=True))
            call = replace(call, node=replace(call.node, inputs=operands))
        value, scale = call.node.constant(0), call.node.constant(1) if len(call.inputs) > 1 else None
        if (
            call.node.op == "DequantizeLinear"
            and value is not None
            and scale is not None
            and call.outputs[0] not in network.outputs
        ):
            zero = call.node.constant(2)
            axis = int(call.node.attributes.get("axis", 1)) % max(value.ndim, 1)
            shape = (
                [-1 if i == axis else 1 for i in range(value.ndim)] if scale.size > 1 else [1] * value.ndim
            )
            centred = value.astype(np.int32) - (0 if zero is None else zero.astype(np.int32).reshape(shape))
            known[call.outputs[0]] = Operand.of((centred * scale.reshape(shape)).astype(np.float32))
        else:
            calls.append(call)
    return network.with_calls(calls)


def transpose_as_reshape(network: Network) -> Network:
    """A Transpose that moves axes of size 1 only leaves the bytes where they are."""

    def plain(call: Call) -> Call:
        node = call.node
        if node.op != "Transpose" or node.constant(0) is not None:
            return call
        shape = node.operand(0).shape
        order = node.attributes.get("perm", tuple(reversed(range(len(shape)))))
        moved = [axis for axis in order if shape[axis] != 1]
        if moved != sorted(moved):
            return call
        return replace(call, node=Node("Reshape", node.name, {}, node.inputs, node.outputs))

    return network.with_calls(plain(call) for call in network.calls)


def shortcut_as_convolution(network: Network) -> Network:
    """A Slice with steps over height and width and a Pad of channels: a 1x1 convolution that copies channels.

    That is the parameter-free shortcut of CIFAR ResNets (option A); as a convolution it needs no other layout than
    the rest of the network. A one times a value plus zeros is exact.
    """

    def merge(first: Call, second: Call, index: int) -> Call | None:
        if index != 0 or second.node.op != "Pad" or not first.node.operand(0).is_feature_map:
            return None
        steps = _steps_of_slice(first.node)
        before = _channel_pad(second.node)
        channels, total = first.node.operand(0).shape[1], second.node.output.shape[1]
        if steps is None or before is None or total * channels > 65536:
            return None
        weight = np.zeros((total, channels, 1, 1), np.float32)
        weight[before + np.arange(channels), np.arange(channels)] = 1.0
        window = {
            "kernel_shape": (1, 1),
            "strides": steps,
            "pads": (0, 0, 0, 0),
            "dilations": (1, 1),
            "group": 1,
        }
        node = Node(
            "Conv", second.name, window, (first.node.inputs[0], Operand.of(weight)), second.node.outputs
        )
        return Call(node, (first.inputs[0], f"{second.name}/copy"), second.outputs)

    return _merge_pairs(_merge_pairs(network, _merge_slices), merge)


def _merge_slices(first: Call, second: Call, index: int) -> Call | None:
    """Two Slices that only step, one after the other, as one."""
    a, b = _steps_of_slice(first.node), _steps_of_slice(second.node)
    if index != 0 or a is None or b is None:
        return None
    axes, ends = np.array([2, 3]), np.array([2**62, 2**62])
    steps = np.array([a[0] * b[0], a[1] * b[1]])
    inputs = (first.node.inputs[0], *(Operand.of(v) for v in (np.zeros(2, np.int64), ends, axes, steps)))
    names = (first.inputs[0], *(f"{second.name}/{i}" for i in range(4)))
    return Call(Node("Slice", second.name, {}, inputs, second.node.outputs), names, second.outputs)


def _steps_of_slice(node: Node) -> tuple[int, int] | None:
    """Steps over height and width of a Slice that starts at 0 and leaves the other axes whole."""
    if node.op != "Slice" or not node.operand(0).is_feature_map:
        return None
    shape = node.operand(0).shape
    starts, ends = node.constant(1), node.constant(2)
    axes = node.constant(3) if len(node.inputs) > 3 else np.arange(4)
    steps = node.constant(4) if len(node.inputs) > 4 else None
    if starts is None or ends is None or axes is None or any(starts.reshape(-1)):
        return None
    steps = np.ones(len(axes), np.int64) if steps is None else steps.reshape(-1)
    found = [1, 1, 1, 1]
    for axis, end, step in zip(axes.reshape(-1), ends.reshape(-1), steps, strict=True):
        if end < shape[axis] or step < 1:
            return None
        found[int(axis)] = int(step)
    return (found[2], found[3]) if found[:2] == [1, 1] else None


def _channel_pad(node: Node) -> int | None:
    """Channels of zeros that a Pad puts before the first, if it pads nothing else."""
    pads, value = node.constant(1) if len(node.inputs) > 1 else None, node.constant(2)
    if node.attributes.get("mode", "constant") != "constant" or pads is None or len(node.output.shape) != 4:
        return None
    if (len(node.inputs) > 2 and node.inputs[2] is not None and (value is None or value.any())) or len(
        node.inputs
    ) > 3:
        return None
    whole = pads.reshape(2, -1)
    if whole.shape[1] != 4 or (whole < 0).any() or whole[:, [0, 2, 3]].any():
        return None
    return int(whole[0, 1])


def fuse_bias(network: Network) -> Network:
    """MatMul of a matrix with constant weights, then Add of a constant vector: one Gemm."""

    def merge(first: Call, second: Call, index: int) -> Call | None:
        if first.node.op != "MatMul" or second.node.op != "Add" or len(first.node.output.shape) != 2:
            return None
        bias = second.node.constant(1 - index)
        if first.node.constant(1) is None or bias is None or bias.shape[-1:] != first.node.output.shape[-1:]:
            return None
        if bias.size != bias.shape[-1]:
            return None
        vector = Operand.of(bias.reshape(-1))
        node = Node("Gemm", first.name, {}, (*first.node.inputs[:2], vector), second.node.outputs)
        return Call(node, (*first.inputs[:2], f"{first.name}/bias"), second.outputs)

    return _merge_pairs(network, merge)


def fuse_swish(network: Network) -> Network:
    """``x * Sigmoid(x)`` is Silu, ``x * HardSigmoid(x)`` with slope 1/6 and offset 1/2 is HardSwish."""
    makers, readers = network.makers, network.readers
    gone: set[int] = set()
    changed: dict[int, Call] = {}
    for place, call in enumerate(network.calls):
        if call.node.op != "Mul" or len(call.reads) != 2:
            continue
        for gate, x in (call.reads, call.reads[::-1]):
            maker = makers.get(gate)
            if (
                maker is None
                or network.calls[maker].reads != (x,)
                or len(readers[gate]) != 1
                or gate in network.outputs
            ):
                continue
            name = _gate(network.calls[maker].node)
            if name:
                node = Node(name, call.name, {}, (network.calls[maker].node.inputs[0],), call.node.outputs)
                changed[place] = Call(node, (x,), call.outputs)
                gone.add(maker)
                break
    return network.with_calls(changed.get(i, c) for i, c in enumerate(network.calls) if i not in gone)


def fuse_activation(network: Network) -> Network:
    """An activation that is the only reader of a convolution, product or sum becomes part of it."""

    def merge(first: Call, second: Call, index: int) -> Call | None:
        given = activation_of(second.node)
        if (
            index != 0
            or given is None
            or first.node.op not in _TAKE_ACTIVATION
            or first.node.attributes.get("act")
        ):
            return None
        if first.node.output.dtype != "float32":
            return None
        node = replace(first.node, attributes={**first.node.attributes, **given}, outputs=second.node.outputs)
        return Call(node, first.inputs, second.outputs)

    return _merge_pairs(network, merge)


def fuse_residual(network: Network) -> Network:
    """The sum of a convolution's only use and another value of the same shape becomes part of the convolution."""

    def merge(first: Call, second: Call, index: int) -> Call | None:
        if second.node.op != "Add" or first.node.op not in _TAKE_RESIDUAL or first.node.attributes.get("act"):
            return None
        other = second.node.inputs[1 - index]
        if other is None or other.constant is not None or other.shape != first.node.output.shape:
            return None
        if len(first.inputs) > 3 or second.inputs[0] == second.inputs[1]:
            return None
        act = {k: v for k, v in second.node.attributes.items() if k.startswith("act")}
        inputs = (*first.node.inputs, *(None,) * (3 - len(first.node.inputs)), other)
        names = (*first.inputs, *("",) * (3 - len(first.inputs)), second.inputs[1 - index])
        node = replace(
            first.node,
            attributes={**first.node.attributes, **act},
            inputs=inputs,
            outputs=second.node.outputs,
        )
        return Call(node, names, second.outputs)

    return _merge_pairs(network, merge)


def drop_unused(network: Network) -> Network:
    """Calls that no output depends on."""
    wanted = set(network.outputs)
    kept: list[Call] = []
    for call in reversed(network.calls):
        if wanted.intersection(call.outputs):
            kept.append(call)
            wanted.update(call.reads)
    return network.with_calls(reversed(kept))


PASSES: dict[str, Callable[[Network], Network]] = {
    "dequantize-constants": dequantize_constants,
    "transpose-as-reshape": transpose_as_reshape,
    "shortcut-as-convolution": shortcut_as_convolution,
    "widen-rows": widen_rows,
    "fuse-bias": fuse_bias,
    "fuse-swish": fuse_swish,
    "fuse-activation": fuse_activation,
    "fuse-residual": fuse_residual,
    "drop-unused": drop_unused,
}


def activation_of(node: Node) -> dict[str, float] | None:
    """A node as the attributes ``act``, ``act_low`` and ``act_high``; None if it is no activation."""
    if (
        node.op not in ACTIVATIONS
        or len([o for o in node.inputs if o is not None and o.constant is None]) != 1
    ):
        return None
    low = high = 0.0
    if node.op == "Clip":
        if any(o is not None and o.constant is None for o in node.inputs[1:]):
            return None
        low, high = (
            bound if given is None else float(given)
            for bound, given in ((-np.inf, node.constant(1)), (np.inf, node.constant(2)))
        )
        low, high = max(low, float(np.finfo(np.float32).min)), min(high, float(np.finfo(np.float32).max))
    elif node.op == "LeakyRelu":
        low = float(node.attributes.get("alpha", 0.01))
    elif node.op == "HardSigmoid":
        low, high = float(node.attributes.get("alpha", 0.2)), float(node.attributes.get("beta", 0.5))
    return {"act": ACTIVATIONS[node.op], "act_low": low, "act_high": high}


def _gate(node: Node) -> str:
    if node.op == "Sigmoid":
        return "Silu"
    slope, offset = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    if node.op == "HardSigmoid" and abs(slope - 1 / 6) < 1e-6 and offset == 0.5:
        return "HardSwish"
    return ""


def _merge_pairs(network: Network, merge: Callable[[Call, Call, int], Call | None]) -> Network:
    """Wherever a value has one reader, ask whether maker and reader are one call; it runs where the reader ran."""
    calls: list[Call | None] = list(network.calls)
    readers = network.readers
    makers = network.makers
    for place, call in enumerate(network.calls):
        second = calls[place]
        if second is None:
            continue
        for index, name in enumerate(second.inputs):
            maker = makers.get(name)
            first = None if maker is None else calls[maker]
            if first is None or maker is None or maker >= place or len(readers.get(name, ())) != 1:
                continue
            if name in network.outputs or len(first.outputs) != 1 or len(call.outputs) != 1:
                continue
            merged = merge(first, second, index)
            if merged is not None:
                calls[maker], calls[place] = None, merged
                makers[merged.outputs[0]] = place
                break
    return network.with_calls(c for c in calls if c is not None)


def _wide(operand: Operand) -> Operand:
    n, c, length = operand.shape
    return Operand((n, c, 1, length), operand.dtype)


def _alias(op: str, name: str, x: Operand, y: Operand, source: str, result: str) -> Call:
    return Call(Node(op, name, {}, (x,), (y,)), (source,), (result,))
