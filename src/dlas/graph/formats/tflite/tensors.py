"""What both directions say about a tensor: its dtype, its quantisation, its constant value."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dlas.core.errors import ModelError
from dlas.graph.formats.tflite.layout import Perm

DTYPES: dict[str, str] = {  # TensorType of the schema -> NumPy dtype
    "FLOAT32": "float32",
    "FLOAT16": "float16",
    "FLOAT64": "float64",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "UINT16": "uint16",
    "INT32": "int32",
    "UINT32": "uint32",
    "INT64": "int64",
    "UINT64": "uint64",
    "BOOL": "bool",
    "COMPLEX64": "complex64",
}
TYPES = {dtype: name for name, dtype in DTYPES.items()}
QUANTISED = ("int8", "uint8")
GRIDS = (*QUANTISED, "int16")  # what is read as stored integers that stand for other numbers


@dataclass(frozen=True, eq=False)
class Quant:
    """Affine quantisation ``real = scale * (stored - zero_point)``.

    Attributes:
        scale: ``(1,)`` or, per channel, ``(channels,)`` float32.
        zero_point: Same shape, int64.
        axis: Channel axis; None for one scale.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None = None

    @classmethod
    def of(cls, scale: float, zero_point: int) -> Quant:
        """One scale for the whole tensor."""
        return cls(np.array([scale], np.float32), np.array([zero_point], np.int64))

    def same(self, other: Quant | None) -> bool:
        """Whether stored integers mean the same numbers."""
        return (
            other is not None
            and self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def permuted(self, perm: Perm) -> Quant:
        """The same quantisation of a tensor stored in another order of axes."""
        if self.axis is None:
            return self
        return Quant(self.scale, self.zero_point, perm.index(self.axis))

    def real(self, stored: np.ndarray) -> np.ndarray:
        """The numbers (float64) that stored integers stand for."""
        shape = [1] * stored.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        scale, zero = self.scale.astype(np.float64).reshape(shape), self.zero_point.reshape(shape)
        if self.axis is None:
            scale, zero = scale.reshape(()), zero.reshape(())
        return (stored.astype(np.float64) - zero) * scale

    def store(self, real: np.ndarray, dtype: str) -> np.ndarray:
        """Nearest stored integers (one scale), ties to even, saturated to ``dtype``."""
        limits = np.iinfo(dtype)
        levels = np.rint(np.asarray(real, np.float64) / float(self.scale[0])) + int(self.zero_point[0])
        return np.clip(levels, limits.min, limits.max).astype(dtype)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a tflite file.

    Attributes:
        index: Position in the subgraph.
        name: Name, unique in the graph.
        shape: Sizes.
        dtype: NumPy name of the stored dtype.
        quant: How stored integers are meant; None when they are plain numbers.
        data: The constant, in ``shape`` and ``dtype``; None when computed.
        dynamic_batch: Whether the file says that the first axis may have any size.
        variable: Whether it is state that an interpreter keeps between calls.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    quant: Quant | None = None
    data: np.ndarray | None = field(default=None, repr=False)
    dynamic_batch: bool = False
    variable: bool = False

    def constant(self) -> np.ndarray:
        """The constant value; raises ModelError when the tensor is computed at run time."""
        if self.data is None:
            raise ModelError(f"tensor {self.name!r} must be a constant, but is computed by the network")
        return self.data


@dataclass(frozen=True, eq=False)
class Operation:
    """An operator of a tflite file.

    Attributes:
        kind: Name of the builtin (``CONV_2D``).
        inputs: Indices of its input tensors; -1 for one left out.
        outputs: Indices of its output tensors.
        options: The options object of the schema, or None.
        custom: The options of a custom operator, as stored.
        intermediates: Indices of tensors that only carry the quantisation of what an operator keeps inside.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: object = None
    custom: bytes = b""
    intermediates: tuple[int, ...] = ()
