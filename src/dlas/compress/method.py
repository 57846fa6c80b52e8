"""What a compression method is.

``plan`` says what will change and what it should bring, without doing it; ``apply`` does it and returns a new Model
with one more line of history. Methods never print, never change their input, and take random numbers only from the
seed in their options. A method that needs a cost or a judgement from a higher layer receives it as a function.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from dlas.core.figure import Figure
from dlas.core.options import Choice, Configurable
from dlas.core.registry import Registry
from dlas.data.dataset import Dataset
from dlas.graph.model import Model

methods: Registry[type[Method]] = Registry("method", "dlas.compress.*")

Progress = Callable[[float, str], None]
"""Called with the fraction done (0..1) and what is being done."""


@dataclass(frozen=True)
class Change:
    """One line of a plan: which layer, what happens to it."""

    layer: str
    what: str
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Plan:
    """What a method will do: printable, fit for JSON."""

    method: str
    changes: tuple[Change, ...]
    expected: Mapping[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Method(Configurable):
    """A compression method.

    Class attributes:
        needs_data: Whether ``plan`` and ``apply`` need calibration or training rows.
    """

    needs_data: ClassVar[bool] = False

    @abstractmethod
    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """What :meth:`apply` would change.

        Raises:
            UnsupportedError: The method cannot work on this network; says which layer and why.
            DataError: Rows are needed and missing, or do not fit the network.
        """

    @abstractmethod
    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The compressed network; ``data`` holds training rows, never the rows it will be judged on."""


def compress_model(
    model: Model, choice: str | Choice, data: Dataset | None = None, progress: Progress | None = None
) -> Model:
    """Apply one method, given as ``name:key=value`` or a Choice."""
    if isinstance(choice, str):
        choice = Choice.parse(choice)
    return methods.get(choice.name)(**choice.as_dict()).apply(model, data, progress)
