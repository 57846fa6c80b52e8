"""What an architecture is: a network dlas can build, train, or recognise from the names and shapes of a checkpoint."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dlas.core.options import Choice, Configurable
from dlas.graph.formats.torch import architectures
from dlas.graph.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Architecture", "architecture_for", "architectures"]


class Architecture(Configurable):
    """A family of networks, one member per set of options.

    Members live in ``models/architectures/``; the PyTorch reader finds them there without importing this layer.
    """

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch (``(C, H, W)`` for images); the dtype is float32."""

    @property
    @abstractmethod
    def preprocessing(self) -> Preprocessing:
        """What a sample goes through before the usual published weights see it."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of outputs."""

    @abstractmethod
    def build(self) -> nn.Module:
        """A freshly initialised network in eval mode; honours ``torch.device`` contexts and the global seed."""

    @classmethod
    def candidates(cls) -> list[dict[str, Any]]:
        """Option sets worth comparing with a checkpoint of unknown origin."""
        return [{}]

    @classmethod
    def options_from(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Options that can be read off the checkpoint itself, such as the number of classes; they win over candidates.

        Args:
            shapes: Tensor name to shape, as in the checkpoint.
        """
        return {}


def architecture_for(choice: str | Choice) -> Architecture:
    """An architecture given as ``name:key=value``."""
    if isinstance(choice, str):
        choice = Choice.parse(choice)
    return architectures.get(choice.name)(**choice.as_dict())
