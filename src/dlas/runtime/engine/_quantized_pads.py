"""Padding of bytes that stands alone, moved into the convolution behind it."""

from __future__ import annotations

from dataclasses import replace

from dlas.kernels.kernel import Node, Operand
from dlas.runtime.engine.network import Call, Network


def fold_pads(network: Network) -> Network:
    """A Pad before a convolution becomes its padding: both are filled with the zero point."""
    makers = network.makers
    calls: list[Call] = []
    for call in network.calls:
        source = makers.get(call.inputs[0]) if call.node.op in ("QConv", "QDepthwise") else None
        if source is None:
            calls.append(call)
            continue
        maker = network.calls[source]
        image = maker if maker.node.op == "QImage" else None
        place = makers.get(maker.inputs[0]) if image is not None else source
        pad = None if place is None else network.calls[place]
        pads = None if pad is None else _window_pads(pad.node, last=image is not None)
        if pads is None or pad is None:
            calls.append(call)
            continue
        name, operand = pad.inputs[0], pad.node.operand(0)
        if image is not None:
            n, h, w, c = operand.shape
            whole = Operand((n, c, h, w), operand.dtype)
            name = f"{pad.inputs[0]}/image for {call.name}"
            copy = Node("QImage", f"{image.name}/unpadded", image.node.attributes, (operand,), (whole,))
            calls.append(Call(copy, (pad.inputs[0],), (name,)))
            operand = whole
        both = tuple(a + b for a, b in zip(call.node.attributes["pads"], pads, strict=True))
        node = replace(
            call.node,
            attributes={**call.node.attributes, "pads": both},
            inputs=(operand, *call.node.inputs[1:]),
        )
        calls.append(Call(node, (name, *call.inputs[1:]), call.outputs))
    return network.with_calls(calls)


def _window_pads(node: Node, *, last: bool) -> tuple[int, ...] | None:
    """Top, left, bottom, right of a Pad of bytes that pads nothing but height and width."""
    if node.op != "Pad" or "x_zero_point" not in node.attributes or len(node.output.shape) != 4:
        return None
    amounts = node.constant(1)
    if amounts is None or amounts.size != 8 or (amounts < 0).any():
        return None
    before, after = amounts.reshape(2, 4).tolist()
    h, w, n, c = (1, 2, 0, 3) if last else (2, 3, 0, 1)
    if before[n] or after[n] or before[c] or after[c]:
        return None
    return before[h], before[w], after[h], after[w]
