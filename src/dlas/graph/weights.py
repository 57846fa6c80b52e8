"""What a file of weights has in it: tensors and metadata, without a graph that says how they belong together.

GGUF files and bare checkpoints are such files. ``dlas info`` lists them; a network is made of them only where an
architecture is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class WeightTensor:
    """One stored tensor.

    Attributes:
        name: Name in the file.
        shape: Sizes, slowest axis first (the order of NumPy and ONNX, whatever the file's own is).
        dtype: The storage type in the format's own word (``float32``, ``Q4_K``).
        nbytes: Bytes it takes in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per element, scales and other side information included."""
        return 8 * self.nbytes / self.size if self.size else 0.0


@dataclass(frozen=True)
class WeightFile:
    """Tensors and metadata of a file without a graph.

    Attributes:
        format: Registered name of the format.
        tensors: In file order.
        metadata: Plain values, fit for JSON; long lists are kept whole.
    """

    format: str
    tensors: tuple[WeightTensor, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def params(self) -> int:
        """Number of elements of all tensors."""
        return sum(t.size for t in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors)
