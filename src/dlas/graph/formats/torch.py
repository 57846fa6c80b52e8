"""PyTorch files: checkpoints (``.th``, ``.pt``, ``.pth``) and exported programs (``.pt2``).

A checkpoint holds weights only, so an architecture must be known: it is named by the user, or recognised among the
registered ones by the names and shapes of the tensors. No file is ever allowed to bring code of its own.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlas.core.errors import ModelError, OptionError
from dlas.core.options import option
from dlas.core.registry import Registry
from dlas.graph.format import Format, formats
from dlas.graph.model import Model
from dlas.graph.torch_export import export_slowly, from_module
from dlas.graph.weights import WeightFile, WeightTensor, plain_text

if TYPE_CHECKING:
    import torch

__all__ = ["Torch", "architectures", "from_module", "rebuilt"]

# The members live one layer up; a registry finds them by name, so nothing is imported upwards.
architectures: Registry[type[Any]] = Registry("architecture", "dlas.models.architectures")

LARGEST_INPUT = 2**26  # elements of an example input


@formats.register("torch")
class Torch(Format):
    """Reader of PyTorch checkpoints and exported programs."""

    name = "torch"
    summary = "PyTorch checkpoint (.th, .pt, .pth) or exported program (.pt2); never runs code from the file"
    suffixes = (".th", ".pt", ".pth", ".pt2")
    runtime = "torch"
    load_seconds = (
        60.0  # PyTorch's exporter takes 6 s for a deep network the first time, on a machine with nothing else
    )

    @dataclass(frozen=True)
    class Options:
        """Options of the reader."""

        architecture: str = option(
            "",
            "what the weights belong to: a registered architecture (cifar-resnet:depth=20) or your own function "
            "(package.module:function); recognised by itself where empty",
            use="reading",
        )
        shape: str = option(
            "", "shape of one sample for a function of your own, such as 3x32x32", use="reading"
        )

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        """A zip archive or a pickle."""
        return head[:2] == b"PK" or head[:1] == b"\x80"

    @classmethod
    def unread(cls, path: Path) -> frozenset[str]:
        """An exported program says itself what it is."""
        return frozenset({"architecture", "shape"} if path.suffix.lower() == ".pt2" else ())

    def load(self, path: Path) -> Model:
        """Read a file, build the network, export and check it.

        Raises:
            ModelError: Truncated, holding Python code, not weights, or weights of no known architecture.
            UnsupportedError: PyTorch cannot export the network.
        """
        source = {
            "format": "torch",
            "path": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        if path.suffix.lower() == ".pt2":
            from dlas.graph.formats._torch_program import read_program

            module, examples, dynamic = read_program(path)
            exporter = partial(export_slowly, reason="it is an exported program")
            return from_module(
                module, examples, path.stem, source=source, fixed_batch=not dynamic, exporter=exporter
            )
        from dlas.graph.formats._torch_checkpoint import read_state

        return rebuilt(path.stem, read_state(path), source, self.options)

    @classmethod
    def weights(cls, path: Path) -> WeightFile | None:
        """Tensors of a checkpoint and the plain values stored beside them; None for an exported program."""
        if path.suffix.lower() == ".pt2":
            return None
        from dlas.graph.formats._torch_checkpoint import read_tensors

        tensors, plain = read_tensors(path)
        listed = [
            WeightTensor(
                plain_text(name),
                tuple(t.shape),
                str(t.dtype).removeprefix("torch."),
                t.numel() * t.element_size(),
            )
            for name, t in tensors.items()
        ]
        values = {
            plain_text(k): plain_text(v) if isinstance(v, str) else v
            for k, v in plain.items()
            if not isinstance(v, int) or abs(v) < 2**63  # Python does not spell out numbers of any length
        }
        return WeightFile("torch", tuple(listed), values)


def rebuilt(name: str, state: Mapping[str, torch.Tensor], source: Mapping[str, str], options: Any) -> Model:
    """The network of a known architecture with the weights of ``state``, exported and checked.

    Args:
        name: Name of the file without its ending.
        state: Tensors by name, as :func:`_torch_checkpoint.tidied_state` leaves them.
        source: Entries for :attr:`Model.source`; ``format`` and ``path`` must be among them.
        options: :class:`Torch.Options`: what the user said about the network.

    Raises:
        ModelError: No architecture fits, or the one named does not.
        UnsupportedError: PyTorch cannot export the network.
    """
    from dlas.graph.formats._torch_checkpoint import assemble
    from dlas.graph.formats._torch_skeleton import remembered

    built = assemble(source["path"], state, options.architecture, _sample_shape(options.shape))
    build = partial(
        from_module,
        built.module,
        built.example,
        name,
        built.preprocessing,
        source={**source, "architecture": built.architecture},
        options={"format": source["format"], "architecture": built.architecture},
    )
    try:
        return build(exporter=remembered(built.architecture))
    except ModelError:  # were it the remembered graph that is wrong, the network itself would be right
        return build()


def _sample_shape(text: str) -> tuple[int, ...]:
    parts = [p for p in re.split(r"[x,]", text) if p]
    if not all(p.isdecimal() and int(p) > 0 for p in parts) or math.prod(map(int, parts)) > LARGEST_INPUT:
        raise OptionError("torch: shape", text, "positive sizes such as 3x32x32")
    return tuple(map(int, parts))
