"""What a mutation is: one small, typical fault that can be put into a network at several places.

Follows MutateNN (Louloudakis et al. 2023, "MutateNN: Mutation testing of image recognition models deployed on hardware
accelerators"), whose operators are all here, and adds the faults that converters really make. A mutation of level
``graph`` changes the ONNX graph; one of level ``program`` changes the tensor programs a compiler lowered it to.
"""

from __future__ import annotations

import ast
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from dlas.core.errors import OptionError, UnknownNameError
from dlas.core.options import Choice, Configurable, option, options_dict
from dlas.core.registry import Registry
from dlas.graph.model import Model, Step, step_versions
from dlas.graph.passes import infer_shapes, remove_unused
from dlas.verify.mutate.editing import forget_shapes, name_nodes, output_shapes
from dlas.verify.mutate.script import Program

mutations: Registry[type[AnyMutation]] = Registry("mutation", "dlas.verify.mutate.operators.*")

FAULTS = ("input", "layout", "parameter", "attribute", "graph", "precision")
LEVELS = ("graph", "program")


@dataclass(frozen=True)
class Site:
    """One place where a mutation can be applied.

    Attributes:
        node: Name of the node (graph level) or of the tensor program.
        detail: Which input, axis, attribute or statement of it; empty where there is only one choice.
    """

    node: str
    detail: str = ""

    @property
    def number(self) -> int:
        """The last number in ``detail``; -1 without one."""
        found = re.findall(r"\d+", self.detail)
        return int(found[-1]) if found else -1

    def __str__(self) -> str:
        return f"{self.node} ({self.detail})" if self.detail else self.node


@dataclass(frozen=True)
class Occurrences:
    """Options of every mutation: at how many of its sites one mutant is changed."""

    start: int = option(0, "first occurrence changed in one mutant, from 1; 0: one mutant per site", low=0)
    end: int = option(-1, "last occurrence changed; -1: up to the last one", low=-1)


class AnyMutation(Configurable, ABC):
    """Base of all mutations.

    Class attributes:
        level: ``graph`` or ``program``.
        category: Kind of change (layout, arithmetic, operator, attribute, parameter, quantisation, input, type, value,
            condition, loop).
        fault: Class of the fault it makes, as ``dlas localize`` names it.
    """

    Options: ClassVar[type] = Occurrences
    level: ClassVar[str] = "graph"
    category: ClassVar[str] = ""
    fault: ClassVar[str] = "graph"
    options: Any

    def groups(self, sites: Sequence[Site]) -> list[tuple[Site, ...]]:
        """The sites of each mutant: one each, or one mutant with the occurrences from ``start`` to ``end``.

        Raises:
            OptionError: ``end`` lies before ``start``.
        """
        start, end = self.options.start, self.options.end
        if start == 0:
            return [(site,) for site in sites]
        if end != -1 and end < start:
            raise OptionError(f"{self.name}: end", end, f"-1, or a number >= start = {start}")
        chosen = tuple(sites[start - 1 : None if end == -1 else end])
        return [chosen] if chosen else []


class Mutation(AnyMutation):
    """A fault in the graph.

    Class attributes:
        reshapes: Tensors may get another size; sites where the network would no longer be valid are left out.
    """

    reshapes: ClassVar[bool] = False

    @abstractmethod
    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        """Places in graph order; those that turn out invalid are dropped by :meth:`sites` where ``reshapes``."""

    @abstractmethod
    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        """Change one node and what belongs to it, in place."""

    def sites(self, graph: ir.Model) -> list[Site]:
        """All places, in graph order; deterministic.

        Args:
            graph: A graph with names and shapes, as :func:`prepared` gives it; not changed.
        """
        found = list(dict.fromkeys(self._candidates(graph)))
        if not self.reshapes:
            return found
        shapes = output_shapes(graph) if found else None
        return [site for site in found if self._stays_valid(graph, site, shapes)]

    def apply(self, graph: ir.Model, site: Site) -> None:
        """Put the fault into a copied graph, in place; the result is valid ONNX with inferred shapes.

        Raises:
            UnknownNameError: The graph has no such node.
        """
        self._change(graph.graph, find_node(graph, site.node), site)
        remove_unused(graph)
        if self.reshapes:
            forget_shapes(graph)
        infer_shapes(graph)

    def _stays_valid(self, graph: ir.Model, site: Site, shapes: list[list[int]] | None) -> bool:
        trial = graph.clone()
        self._change(trial.graph, find_node(trial, site.node), site)
        found = output_shapes(trial)
        return found is not None and shapes in (None, found)


class ProgramMutation(AnyMutation):
    """A fault in the tensor programs that TVM lowers a network to, at the level of its script."""

    level = "program"
    fault = "graph"

    @abstractmethod
    def _places(self, program: Program) -> Iterator[tuple[ast.AST, str]]:
        """Nodes that can be changed, in the order they are written, and what is to be done with each."""

    @abstractmethod
    def _rewrite(self, program: Program, node: ast.AST, change: str) -> None:
        """Change one node, in place."""

    def sites(self, programs: Mapping[str, str]) -> list[Site]:
        """All places, in the order of the programs and of their statements; deterministic.

        Args:
            programs: TVMScript by name, in the order of their first call.
        """
        found = []
        for name, script in programs.items():
            for index, (node, change) in enumerate(self._places(Program.parse(script))):
                found.append(Site(name, f"{change} {_shortened(node)} #{index}".lstrip()))
        return found

    def apply(self, script: str, site: Site) -> str:
        """TVMScript of the program with the fault in it.

        Raises:
            UnknownNameError: The program has no such place.
        """
        program = Program.parse(script)
        places = list(self._places(program))
        if not 0 <= site.number < len(places):
            raise UnknownNameError("place", site.detail, [s.detail for s in self.sites({site.node: script})])
        self._rewrite(program, *places[site.number])
        return program.text()


def _shortened(node: ast.AST) -> str:
    """One line of script that shows where it is."""
    text = ast.unparse(node)
    return text if len(text) <= 60 else text[:59] + "…"


def named(graph: ir.Model) -> ir.Model:
    """Give every node of ``graph`` a name of its own, in place; names that are unique already stay.

    Returns:
        The same graph.
    """
    name_nodes(graph)
    return graph


def prepared(model: Model) -> ir.Model:
    """A copy of the graph with named nodes and inferred shapes: what sites are looked for in."""
    graph = named(model.editable())
    infer_shapes(graph)
    return graph


def find_node(graph: ir.Model, name: str) -> ir.Node:
    """The node called ``name``; raises UnknownNameError."""
    for node in graph.graph:
        if node.name == name:
            return node
    raise UnknownNameError(
        "node", name, [str(n.name) for n in graph.graph], "name the nodes with named() first"
    )


def mutation_for(choice: str | Choice) -> AnyMutation:
    """A mutation given as ``name:key=value``; raises UnknownNameError or OptionError."""
    if isinstance(choice, str):
        choice = Choice.parse(choice)
    return mutations.get(choice.name)(**choice.as_dict())


def mutated(model: Model, mutation: Mutation, sites: Site | Iterable[Site], seed: int = 0) -> Model:
    """The network with a fault in it, and one more line of history that says which and where."""
    places = (sites,) if isinstance(sites, Site) else tuple(sites)
    graph = prepared(model)
    for site in places:
        mutation.apply(graph, site)
    recipe = {
        "mutation": mutation.name,
        "options": options_dict(mutation.options),
        "sites": [[s.node, s.detail] for s in places],
        "seed": seed,
    }
    return model.with_step(graph, Step("mutate", recipe, step_versions("onnx-ir")))
