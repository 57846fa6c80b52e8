"""Padding as a property of a convolution instead of a layer of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dlas.graph.passes import remove_unused


def fold_padding(graph: ir.Model) -> None:
    """Merge each Pad that adds zeros around an image into the convolutions after it.

    Done where every reader is a Conv with explicit pads; other Pads stay.
    """
    for pad in list(graph.graph):
        amounts = _zeros_around(pad) if pad.op_type == "Pad" and pad.domain == "" else None
        source, result = pad.inputs[0] if pad.inputs else None, pad.outputs[0]
        readers = list(result.uses())
        if amounts is None or source is None or result.is_graph_output() or not readers:
            continue
        if not all(use.idx == 0 and _pads_explicitly(use.node) for use in readers):
            continue
        for use in readers:
            own = use.node.attributes.get_ints("pads", [0] * len(amounts))
            use.node.attributes.pop("auto_pad", None)
            sums = [a + b for a, b in zip(own, amounts, strict=True)]
            use.node.attributes["pads"] = ir.AttrInt64s("pads", sums)
            use.node.replace_input_with(0, source)
        graph.graph.remove(pad, safe=True)
    remove_unused(graph)


def _zeros_around(pad: ir.Node) -> list[int] | None:
    """Begins and ends for the image axes, if nothing else is padded and only with zeros."""
    if pad.attributes.get_string("mode", "constant") != "constant" or len(pad.inputs) < 2:
        return None
    source, pads, fill, axes = (*pad.inputs, None, None)[:4]
    if (
        source is None
        or source.shape is None
        or not all(v is None or ir.convenience.get_const_tensor(v) is not None for v in (pads, fill, axes))
    ):
        return None
    rank = len(source.shape)
    if pads is None or rank < 3 or (fill is not None and np.any(_array(fill) != 0)):
        return None
    chosen = range(rank) if axes is None else [int(a) % rank for a in _array(axes)]
    amounts = np.zeros((2, rank), np.int64)
    amounts[:, list(chosen)] = _array(pads).reshape(2, -1)
    if (amounts < 0).any() or amounts[:, :2].any():
        return None
    return amounts[:, 2:].reshape(-1).tolist()


def _pads_explicitly(node: ir.Node) -> bool:
    return (
        node.op_type == "Conv"
        and node.domain == ""
        and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )


def _array(value: ir.Value) -> np.ndarray:
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    return tensor.numpy()
