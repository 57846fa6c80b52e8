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
        note: Why no network was made of it, where one was asked for.
    """

    format: str
    tensors: tuple[WeightTensor, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def params(self) -> int:
        """Number of elements of all tensors."""
        return sum(t.size for t in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def architecture(self) -> str:
        """Family the file says it belongs to (``general.architecture`` of GGUF); empty where it does not say."""
        found = self.metadata.get("general.architecture", "")
        return found if isinstance(found, str) else ""

    def by_type(self) -> list[WeightTotal]:
        """Totals per storage type, most bytes first."""
        kinds: dict[str, list[WeightTensor]] = {}
        for tensor in self.tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor)
        totals = [
            WeightTotal(kind, len(of), sum(t.size for t in of), sum(t.nbytes for t in of))
            for kind, of in kinds.items()
        ]
        return sorted(totals, key=lambda total: -total.nbytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary; a tensor is a list ``[name, shape, dtype, nbytes]``."""
        return {
            "format": self.format,
            "tensors": [[t.name, list(t.shape), t.dtype, t.nbytes] for t in self.tensors],
            "metadata": dict(self.metadata),
            "note": self.note,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> WeightFile:
        """Inverse of :meth:`to_dict`."""
        tensors = (WeightTensor(name, tuple(shape), *rest) for name, shape, *rest in fields["tensors"])
        return cls(fields["format"], tuple(tensors), fields["metadata"], fields["note"])


@dataclass(frozen=True)
class WeightTotal:
    """All tensors of one storage type: how many, elements, bytes."""

    dtype: str
    tensors: int
    size: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per element."""
        return 8 * self.nbytes / self.size if self.size else 0.0


def plain_text(text: str) -> str:
    """``text`` with lone surrogates, which pickles and JSON can carry but no terminal, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()
