"""What a compression method is.

``plan`` says what will change and what it should bring, without doing it; ``apply`` does it and returns a new Model
with one more line of history. Methods never print, never change their input, and take random numbers only from the
seed in their options. A method that needs a cost or a judgement from a higher layer receives it as a function.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import onnx

from dlas.compress.checkpoint import checkpoints_in
from dlas.compress.costs import Costs
from dlas.core.cache import Cache, kept_folder, key_of
from dlas.core.figure import Figure
from dlas.core.options import Choice, Configurable, options_dict
from dlas.core.provenance import made_with
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
        takes_costs: Whether both take ``costs=`` (``dlas.compress.costs.Costs``): what networks cost on a device.
    """

    needs_data: ClassVar[bool] = False
    takes_costs: ClassVar[bool] = False

    def depends_on(self) -> list[str]:
        """Hashes of the files that the options name: with the options, what the result depends on.

        Raises:
            DataError: One is missing.
        """
        return []

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
    model: Model,
    choice: str | Choice,
    data: Dataset | None = None,
    progress: Progress | None = None,
    costs: Callable[[], Costs] | None = None,
) -> Model:
    """Apply one method, given as ``name:key=value`` or a Choice; ``costs`` is asked if the method takes them."""
    if isinstance(choice, str):
        choice = Choice.parse(choice)
    member = methods.get(choice.name)(**choice.as_dict())
    return member.apply(model, data, progress, **costs_for(member, costs))


def costs_for(member: Method, costs: Callable[[], Costs] | None) -> dict[str, Any]:
    """The argument ``costs`` of ``plan`` and ``apply`` of a method; none for one that takes none."""
    return {"costs": costs()} if costs is not None and member.takes_costs else {}


def compress_once(
    cache: Cache,
    member: Method,
    model: Model,
    data: Dataset | None = None,
    progress: Progress | None = None,
    costs: Callable[[], Costs] | None = None,
) -> Model:
    """As ``member.apply``, but done once: a second process waits for the first, and a killed one is gone on from.

    The key is everything the result depends on: the network with its history, the rows, the options and the files they
    name, the code, and what ``costs`` were found out on, if the method takes them.

    Raises:
        StorageError: The cache cannot be written.
    """
    rows = None if data is None else [data.name, data.task, data.hash]
    content = model.to_bytes()
    given = costs_for(member, costs)
    more = [*member.depends_on(), *(c.where for c in given.values())]
    key = key_of("compress", content, member.name, options_dict(member.options), rows, made_with(), *more)

    def make(folder: Path) -> None:
        with checkpoints_in(kept_folder(folder)):
            made = member.apply(model, data, progress, **given)
        (folder / "model.onnx").write_bytes(made.to_bytes())

    made = cache.folder(key, make) / "model.onnx"
    if progress is not None:
        progress(1.0, "done")
    return Model.from_proto(onnx.ModelProto.FromString(made.read_bytes()))
