"""Converted networks with faults that were put there, to see whether they are found and repaired.

Made with the mutations of :mod:`dlas.verify.mutate`, after section "ground truth" of Louloudakis et al. (2023), who
did the same by hand: what was changed, and where, is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.errors import DlasError, ModelError, OptionError
from dlas.graph.model import Model
from dlas.graph.reference import answers
from dlas.testing.rewrites import REWRITES, rewritten
from dlas.verify.localize.alignment import relative
from dlas.verify.mutate.editing import constant
from dlas.verify.mutate.mutation import Mutation, Site, mutations, prepared

SAME = 1e-5  # relative L2 of the answer that a rewrite may cost
LEAST = 1e-4  # relative L2 of the answer below which a fault has no effect
CLASSES = ("input", "layout", "parameter", "attribute", "graph")
_TRIES = 40  # sites tried for one specimen
_APART = 4  # operators between any two faults of one network


@dataclass(frozen=True)
class Truth:
    """One fault that was put into a network.

    Attributes:
        fault: Its class.
        mutation: Name of the mutation.
        site: Where it was applied.
        nodes: Operators of the target that are new, or other than they were.
    """

    fault: str
    mutation: str
    site: Site
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Specimen:
    """A target and what is wrong with it.

    Attributes:
        name: Short name, unique among those of one network and seed.
        graph: The target.
        truths: Its faults, in graph order; none where it is equivalent.
        error: Relative L2 of its first output against the source's; infinite where it is not finite.
    """

    name: str
    graph: ir.Model
    truths: tuple[Truth, ...]
    error: float


class Plant:
    """Puts faults into one network.

    Args:
        model: The network.
        rows: ``(rows, ...)`` by input, on which a fault must have an effect.
        seed: Same seed, same specimens.
        form: Rewrites that the targets have gone through before a fault is put in, as a converter would.

    Attributes:
        source: The network that is right.
        graph: The same, rewritten.

    Raises:
        OptionError: A rewrite finds nothing to change.
    """

    def __init__(
        self, model: Model, rows: Mapping[str, np.ndarray], seed: int = 0, form: Sequence[str] = ()
    ) -> None:
        self.rows, self.seed = dict(rows), seed
        self.source = prepared(model)
        converted = rewritten(self.source, *form)
        if converted is None:
            raise OptionError("form", ", ".join(form), "rewrites that change something in this network")
        self.graph = converted
        self._output = model.outputs[0].name
        self._wanted = answers(Model(self.source), self.rows)[self._output]

    def equivalents(self) -> list[Specimen]:
        """The network in every other form there is for it.

        Raises:
            ModelError: A rewrite has changed an answer.
        """
        found = []
        for name in REWRITES:
            target = rewritten(self.graph, name)
            if target is None:
                continue
            error = self.error(target)
            if not error <= SAME:
                raise ModelError(
                    f"the rewrite {name!r} changes answers of {self.graph.graph.name!r} by {error:.2g}"
                )
            found.append(Specimen(name, target, (), error))
        return found

    def singles(self, count: int) -> list[Specimen]:
        """Networks with one fault each: the classes in turn, mutations of each class in turn, sites by lot."""
        found: list[Specimen] = []
        streams = self._streams()
        waiting: dict[str, Iterator[Specimen]] = {kind: iter(()) for kind in streams}
        while len(found) < count and streams:
            for kind in list(streams):
                if len(found) == count:
                    break
                specimen = next(waiting[kind], None)
                if specimen is None:
                    waiting[kind] = self._turn(streams[kind])
                    specimen = next(waiting[kind], None)
                if specimen is None:
                    del streams[kind]
                else:
                    found.append(specimen)
        return found

    def triples(self, count: int) -> list[Specimen]:
        """Networks with three faults of different mutations, at operators far from each other."""
        rng = np.random.default_rng([self.seed, 3])
        members = [m for kind in self._members().values() for m in kind]
        sites = {m.name: m.sites(self.graph) for m in members}
        members = [m for m in members if sites[m.name]]
        found: list[Specimen] = []
        for _ in range(_TRIES * count):
            if len(found) == count:
                break
            chosen = [members[i] for i in rng.choice(len(members), min(3, len(members)), replace=False)]
            places = [sites[m.name][int(rng.integers(len(sites[m.name])))] for m in chosen]
            specimen = self._three(f"triple-{len(found) + 1:02d}", chosen, places)
            if specimen is not None:
                found.append(specimen)
        return found

    def specimen(self, name: str, mutation: Mutation, site: Site) -> Specimen | None:
        """The network with one fault; None where that changes no answer by more than ``LEAST``."""
        target = self.graph.clone()
        mutation.apply(target, site)
        error = self.error(target)
        if not error >= LEAST:
            return None
        return Specimen(name, target, (_truth(mutation, site, self.graph, target),), error)

    def error(self, target: ir.Model) -> float:
        """Relative L2 of a target's first output; infinite where it has another shape, NaN or infinities."""
        try:
            found = answers(Model(target), self.rows)[self._output]
        except DlasError:
            return math.inf
        return relative(self._wanted, found) if found.shape == self._wanted.shape else math.inf

    def _members(self) -> dict[str, list[Mutation]]:
        found: dict[str, list[Mutation]] = {kind: [] for kind in CLASSES}
        for _, member in mutations.members():
            if member.level == "graph" and member.category != "quantisation" and member.fault in found:
                mutation = member()
                assert isinstance(mutation, Mutation)
                found[member.fault].append(mutation)
        return found

    def _streams(self) -> dict[str, list[Iterator[Specimen]]]:
        return {
            kind: [self._stream(m) for m in members] for kind, members in self._members().items() if members
        }

    @staticmethod
    def _turn(streams: list[Iterator[Specimen]]) -> Iterator[Specimen]:
        """The next specimen of each mutation, until all are used up."""
        for stream in list(streams):
            specimen = next(stream, None)
            if specimen is None:
                streams.remove(stream)
            else:
                yield specimen

    def _stream(self, mutation: Mutation) -> Iterator[Specimen]:
        sites = mutation.sites(self.graph)
        rng = np.random.default_rng([self.seed, *mutation.name.encode()])
        for index in rng.permutation(len(sites))[:_TRIES]:
            specimen = self.specimen(f"{mutation.name}-{index + 1:03d}", mutation, sites[index])
            if specimen is not None:
                yield specimen

    def _three(self, name: str, chosen: list[Mutation], places: list[Site]) -> Specimen | None:
        between = neighbours(self.graph)
        for i, one in enumerate(places):
            reach = distances(between, [one.node])
            if any(reach.get(other.node, math.inf) < _APART for other in places[i + 1 :]):
                return None
        target, truths = self.graph.clone(), []
        for mutation, site in zip(chosen, places, strict=True):
            alone = self.specimen(name, mutation, site)
            if alone is None or not math.isfinite(alone.error):
                return None
            before = target.clone()
            try:
                mutation.apply(target, site)
            except (DlasError, ValueError):
                return None  # the second took away what the third needs
            truths.append(_truth(mutation, site, before, target))  # new operators have other names than alone
        error = self.error(target)
        order = {str(n.name): i for i, n in enumerate(self.graph.graph)}
        truths.sort(key=lambda t: order.get(t.site.node, -1))
        return Specimen(name, target, tuple(truths), error) if math.isfinite(error) else None


def changed(before: ir.Model, after: ir.Model) -> tuple[str, ...]:
    """Names of the operators of ``after`` that ``before`` has not, or has otherwise."""
    old = {str(n.name): _content(n) for n in before.graph}
    return tuple(str(n.name) for n in after.graph if old.get(str(n.name)) != _content(n))


def neighbours(graph: ir.Model) -> dict[str, set[str]]:
    """Operators next to each operator: those that write what it reads, and those that read what it writes."""
    found: dict[str, set[str]] = {str(n.name): set() for n in graph.graph}
    for node in graph.graph:
        for value in node.inputs:
            maker = value.producer() if value is not None else None
            if maker is not None and maker is not node:
                found[str(node.name)].add(str(maker.name))
                found[str(maker.name)].add(str(node.name))
    return found


def distances(between: Mapping[str, set[str]], start: Iterable[str]) -> dict[str, int]:
    """Operators that can be reached from ``start`` (at 0) with the number of steps."""
    steps = {name: 0 for name in start if name in between}
    left = list(steps)
    while left:
        name = left.pop(0)
        for other in between[name]:
            if other not in steps:
                steps[other] = steps[name] + 1
                left.append(other)
    return steps


def distance(graph: ir.Model, found: str, truth: Truth) -> float:
    """Operators of a target between one that was found and the nearest one at fault; infinite where there is no way."""
    return distances(neighbours(graph), truth.nodes).get(found, math.inf)


def _truth(mutation: Mutation, site: Site, before: ir.Model, after: ir.Model) -> Truth:
    nodes = changed(before, after)
    return Truth(_class_of(mutation, after, nodes), mutation.name, site, nodes)


def _class_of(mutation: Mutation, target: ir.Model, nodes: tuple[str, ...]) -> str:
    """What the fault is in the target, whatever the mutation was meant for.

    Whatever stands between an input of the network and the first operators of the source prepares the samples
    otherwise; whatever is computed from constants alone is a constant.
    """
    fresh = [n for n in target.graph if n.name in nodes and str(n.name).startswith("mutant_")]
    inputs = set(target.graph.inputs) - set(target.graph.initializers.values())
    if fresh and all(n.inputs[0] in inputs for n in fresh):
        return "input"
    if fresh and all(constant(v) is not None for n in fresh for v in n.inputs):
        return "parameter"
    return mutation.fault


def _content(node: ir.Node) -> bytes:
    proto = ir.to_proto(node)
    del proto.metadata_props[:]
    proto.doc_string = ""
    return proto.SerializeToString(deterministic=True)
