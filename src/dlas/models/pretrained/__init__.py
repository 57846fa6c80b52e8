"""Networks that ship with dlas, each trained by a script of the project; figures stand in the file's own metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dlas.core.errors import UnknownNameError

if TYPE_CHECKING:
    from dlas.graph.model import Model


def pretrained_names() -> list[str]:
    """Names of the networks that ship with dlas."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.onnx"))


def pretrained_path(name: str) -> Path | None:
    """File of the network called ``name``, or None when dlas ships none of that name."""
    return Path(__file__).with_name(f"{name}.onnx") if name in pretrained_names() else None


def load_pretrained(name: str) -> Model:
    """A network that ships with dlas; raises UnknownNameError with the names there are."""
    from dlas.graph.format import load_model

    path = pretrained_path(name)
    if path is None:
        raise UnknownNameError("pretrained network", name, pretrained_names())
    return load_model(path)
