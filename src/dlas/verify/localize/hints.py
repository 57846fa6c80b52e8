"""What a fault looks like, judging by faults that converters are known for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlas.verify.localize.edits import with_defaults

if TYPE_CHECKING:
    import onnx_ir as ir

    from dlas.verify.localize.case import Case

_PADDED = {"Conv", "MaxPool", "AveragePool", "LpPool"}
_KNOWN = {
    ("input", "range of the input"): "the network was calibrated with samples prepared otherwise",
    ("input", "red and blue swapped"): "one side reads images as BGR",
    ("input", "samples prepared otherwise"): "mean, standard deviation or range of the pixels differ",
    ("parameter", "bias dropped"): "a bias was lost, as happens when operators are fused",
    ("attribute", "epsilon differs"): "frameworks have different default epsilons (1e-3, 1e-5)",
    ("attribute", "count_include_pad differs"): "average pooling counts its padding in one framework only",
    ("attribute", "ceil_mode differs"): "the size of a pooled map is rounded up in one framework only",
    ("attribute", "coordinate_transformation_mode differs"): "resizing samples at other coordinates",
    ("graph", "extra Softmax"): "the converted network gives probabilities, the source gives logits",
}
_UNEVEN = "SAME pads one side more where the padding is odd, as it is here; symmetric padding does not"
_FOLDED = "perhaps a batch norm was folded in with other statistics or another epsilon"


def upstream_hint(fault: str, kind: str, node: str, case: Case) -> str:
    """One line for whoever reports the fault; empty where nothing is known of its kind.

    Args:
        fault: Class of the fault.
        kind: What exactly.
        node: Operator of the target at fault, by name.
        case: The region around it.
    """
    if fault == "layout":
        sizes = [d for d in case.wanted.shape[1:] if d != 1]
        entering = [[d for d in v.shape[1:] if d != 1] for v in case.given.values()]
        for dims in [sizes, *entering]:
            if len(dims) > 2 and len(set(dims)) < len(dims):
                return f"axes of equal size {dims}: the converter cannot tell them apart by size and guessed wrong"
        return "channels-first and channels-last were mixed up when the operator was converted"
    operator = next((n for n in case.nodes if n.name == node), None)
    if fault == "attribute" and kind in ("auto_pad differs", "pads differs"):
        return _UNEVEN if operator is not None and _odd(case, operator) else ""
    if (fault, kind) == ("parameter", "values differ"):
        beside = operator is not None and operator.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        return _FOLDED if beside else ""
    return _KNOWN.get((fault, kind), "")


def _odd(case: Case, node: ir.Node) -> bool:
    """Whether SAME adds an odd number of rows or columns to what the operator reads, so that its two kinds differ."""
    given = case.state.values.get(str(node.inputs[0].name)) if node.inputs and node.inputs[0] else None
    weights = case.array(node, 1)
    settings = with_defaults(node, case.opset)
    kernel = settings.get("kernel_shape") or (weights.shape[2:] if weights is not None else ())
    if node.op_type not in _PADDED or given is None or not kernel:
        return False
    sizes = given.shape[-len(kernel) :]
    strides = settings.get("strides") or [1] * len(kernel)
    dilations = settings.get("dilations") or [1] * len(kernel)
    return any(
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) % 2
        for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=False)
    )
