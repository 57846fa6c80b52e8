"""What a fault looks like, judging by faults that converters are known for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlas.verify.localize.case import Case


def upstream_hint(fault: str, kind: str, case: Case) -> str:
    """One line for whoever reports the fault; empty where nothing is known of its kind."""
    if fault == "layout":
        sizes = [d for d in case.wanted.shape[1:] if d != 1]
        entering = [[d for d in v.shape[1:] if d != 1] for v in case.given.values()]
        for dims in [sizes, *entering]:
            if len(dims) > 2 and len(set(dims)) < len(dims):
                return f"axes of equal size {dims}: the converter cannot tell them apart by size and guessed wrong"
        return "channels-first and channels-last were mixed up when the operator was converted"
    table = {
        ("input", "range of the input"): "the network was calibrated with samples prepared otherwise",
        ("input", "red and blue swapped"): "one side reads images as BGR",
        ("input", "samples prepared otherwise"): "mean, standard deviation or range of the pixels differ",
        ("parameter", "bias dropped"): "a bias was lost, as happens when operators are fused",
        (
            "parameter",
            "values differ",
        ): "folding a batch norm with other statistics or another epsilon does this",
        ("attribute", "epsilon differs"): "frameworks have different default epsilons (1e-3, 1e-5)",
        (
            "attribute",
            "auto_pad differs",
        ): "SAME pads one side more at even strides; symmetric padding does not",
        ("attribute", "pads differs"): "SAME pads one side more at even strides; symmetric padding does not",
        (
            "attribute",
            "count_include_pad differs",
        ): "average pooling counts its padding in one framework only",
        ("attribute", "ceil_mode differs"): "the size of a pooled map is rounded up in one framework only",
        ("attribute", "coordinate_transformation_mode differs"): "resizing samples at other coordinates",
        ("graph", "extra Softmax"): "the converted network gives probabilities, the source gives logits",
    }
    return table.get((fault, kind), "")
