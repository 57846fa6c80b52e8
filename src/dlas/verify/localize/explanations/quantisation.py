"""Scale or zero point of a quantised tensor does not fit what goes through it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from dlas.verify.localize.case import Case, Explanation, Proposal, explanations
from dlas.verify.localize.edits import set_input


@explanations.register("quantisation")
class Quantisation(Explanation):
    """Tries the range that the source's values really have, and slips of scale and zero point."""

    name = "quantisation"
    summary = "scale or zero point of a quantised tensor is wrong"
    cost = 22

    def propose(self, case: Case) -> Iterator[Proposal]:
        """Every pair of QuantizeLinear and DequantizeLinear, then weights."""
        for node in case.nodes:
            if node.op_type == "QuantizeLinear":
                yield from _activation(case, node)
            elif node.op_type == "DequantizeLinear" and _lonely(case, node):
                yield from _slips(case, node, [node])


def _lonely(case: Case, node: ir.Node) -> bool:
    """Whether its codes come from elsewhere than a QuantizeLinear of the region."""
    producer = case.target.maker(str(node.inputs[0].name)) if node.inputs[0] is not None else None
    return producer is None or producer.op_type != "QuantizeLinear" or producer not in case.nodes


def _activation(case: Case, node: ir.Node) -> Iterator[Proposal]:
    readers = [n for n in case.target.readers(str(node.outputs[0].name)) if n.op_type == "DequantizeLinear"]
    zero = case.array(node, 2)
    dtype = zero.dtype if zero is not None else np.dtype("uint8")
    values = case.given.get(str(node.inputs[0].name)) if node.inputs[0] is not None else None
    for source in (values, case.wanted):
        if source is None or source.dtype.kind != "f" or dtype.kind not in "iu":
            continue
        info = np.iinfo(dtype)
        low, high = min(0.0, float(source.min())), max(0.0, float(source.max()))
        scale = (high - low) / (info.max - info.min) or 1.0
        yield _proposal(
            case, node, [node, *readers], scale, round(info.min - low / scale), "range does not fit"
        )
    yield from _slips(case, node, [node, *readers])


def _slips(case: Case, node: ir.Node, nodes: list[ir.Node]) -> Iterator[Proposal]:
    scale, zero = case.array(node, 1), case.array(node, 2)
    if scale is None or scale.size != 1:
        return
    here = int(zero.reshape(-1)[0]) if zero is not None else 0
    for factor in (2.0, 0.5):
        yield _proposal(
            case, node, nodes, float(scale.reshape(-1)[0]) * factor, here, f"scale off by {1 / factor:g}"
        )
    for shift in (1, -1, 128, -128):
        yield _proposal(
            case, node, nodes, float(scale.reshape(-1)[0]), here + shift, f"zero point off by {-shift}"
        )


def _proposal(
    case: Case, node: ir.Node, nodes: list[ir.Node], scale: float, zero_point: int, kind: str
) -> Proposal:
    present = case.array(node, 2)
    dtype = present.dtype if present is not None else np.dtype("uint8")
    old = case.array(node, 1)
    zero = np.clip(zero_point, np.iinfo(dtype).min, np.iinfo(dtype).max)

    def change(graph: ir.Model) -> None:
        for member in nodes:
            set_input(graph, str(member.name), 1, np.array(scale, np.float32))
            set_input(graph, str(member.name), 2, np.array(zero, dtype))

    # What the network is given, in other axes or another encoding.
    at_input = case.region.source in case.source.inputs
    if at_input and kind == "range does not fit":
        kind = "range of the input"
    was = f"{float(old.reshape(-1)[0]):.4g}" if old is not None else "computed"
    return Proposal(
        "input" if at_input else "parameter",
        kind,
        f"{node.op_type} {node.name}: scale {was} and zero point "
        f"{int(present.reshape(-1)[0]) if present is not None else 0}; {scale:.4g} and {int(zero)} agree",
        str(node.name),
        "",
        change,
    )
