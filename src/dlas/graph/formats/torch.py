"""PyTorch files: checkpoints (``.th``, ``.pt``, ``.pth``) and exported programs (``.pt2``).

A checkpoint holds weights only, so an architecture must be known: it is named by the user, or recognised among the
registered ones by the names and shapes of the tensors. No file is ever allowed to bring code of its own.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dlas.core.errors import ModelError, OptionError
from dlas.core.options import option
from dlas.core.registry import Registry
from dlas.graph.format import Format, formats
from dlas.graph.model import Model
from dlas.graph.torch_export import from_module

__all__ = ["Torch", "architectures", "from_module"]

# The members live one layer up; a registry finds them by name, so nothing is imported upwards.
architectures: Registry[type[Any]] = Registry("architecture", "dlas.models.architectures")

LARGEST_INPUT = 2**26  # elements of an example input


@formats.register("torch")
class Torch(Format):
    """Reader of PyTorch checkpoints and exported programs."""

    name = "torch"
    summary = "PyTorch checkpoint (.th, .pt, .pth) or exported program (.pt2); never runs code from the file"
    suffixes = (".th", ".pt", ".pth", ".pt2")

    @dataclass(frozen=True)
    class Options:
        """Options of the reader."""

        architecture: str = option(
            "",
            "what the weights belong to: a registered architecture (cifar-resnet:depth=20) or your own function "
            "(package.module:function); recognised by itself where empty",
        )
        shape: str = option("", "shape of one sample for a function of your own, such as 3x32x32")

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        """A zip archive or a pickle."""
        return head[:2] == b"PK" or head[:1] == b"\x80"

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
            return from_module(module, examples, path.stem, source=source, fixed_batch=not dynamic)
        from dlas.graph.formats._torch_checkpoint import assemble, read_state
        from dlas.graph.formats._torch_skeleton import remembered

        state = read_state(path)
        built = assemble(path.name, state, self.options.architecture, self._shape())
        build = partial(
            from_module,
            built.module,
            built.example,
            path.stem,
            built.preprocessing,
            source={**source, "architecture": built.architecture},
            options={"architecture": built.architecture},
        )
        try:
            return build(exporter=remembered(built.architecture))
        except ModelError:  # were it the remembered graph that is wrong, the network itself would be right
            return build()

    def _shape(self) -> tuple[int, ...]:
        parts = [p for p in re.split(r"[x,]", self.options.shape) if p]
        if not all(p.isdecimal() and int(p) > 0 for p in parts) or math.prod(map(int, parts)) > LARGEST_INPUT:
            raise OptionError("torch: shape", self.options.shape, "positive sizes such as 3x32x32")
        return tuple(map(int, parts))
