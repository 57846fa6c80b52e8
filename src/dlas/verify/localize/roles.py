"""What an input of an operator is for, in the words of the field."""

from __future__ import annotations

_LAYER = {1: "weights", 2: "bias"}
_RECURRENT = {
    1: "weights",
    2: "recurrent weights",
    3: "bias",
    5: "initial state",
    6: "initial cell",
    7: "peepholes",
}
_NORM = {1: "scale", 2: "bias"}
_CODES = {1: "scale", 2: "zero point"}
_BOUNDS = {1: "min", 2: "max"}
_AXES = {1: "axes"}

_ROLES = {
    "Conv": _LAYER,
    "ConvTranspose": _LAYER,
    "Gemm": _LAYER,
    "MatMul": {1: "weights"},
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "RNN": _RECURRENT,
    "BatchNormalization": {**_NORM, 3: "mean", 4: "variance"},
    "InstanceNormalization": _NORM,
    "LayerNormalization": _NORM,
    "GroupNormalization": _NORM,
    "PRelu": {1: "slope"},
    "QuantizeLinear": _CODES,
    "DequantizeLinear": _CODES,
    "Clip": _BOUNDS,
    "Pad": {1: "pads", 2: "value", 3: "axes"},
    "Resize": {1: "regions", 2: "scales", 3: "sizes"},
    "Upsample": {1: "scales"},
    "Reshape": {1: "shape"},
    "Expand": {1: "shape"},
    "Slice": {1: "starts", 2: "ends", 3: "axes", 4: "steps"},
    "Squeeze": _AXES,
    "Unsqueeze": _AXES,
    "Split": {1: "sizes"},
    "Tile": {1: "repeats"},
    "Gather": {1: "indices"},
}


def role(op_type: str, index: int, *, constant: bool = True) -> str:
    """What input ``index`` of an operator is called; ``input 1`` and the like where it has no name.

    Args:
        op_type: Type of the operator.
        index: Place of the input, from 0.
        constant: Whether it is a constant; what is computed is no parameter of a MatMul.
    """
    if op_type.startswith("Reduce") and index == 1:
        return "axes"
    if op_type == "MatMul" and not constant:
        return f"input {index}"
    return _ROLES.get(op_type, {}).get(index, f"input {index}")
