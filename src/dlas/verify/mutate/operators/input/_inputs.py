"""Which inputs carry images, and the sites on them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import sizes
from dlas.verify.mutate.mutation import Site


def fed(graph: ir.Model) -> Iterator[tuple[ir.Value, str]]:
    """Inputs that are read, and the name of the first node that reads each."""
    for value in graph.graph.inputs:
        if value.name in graph.graph.initializers:
            continue
        for node in graph.graph:
            if any(v is value for v in node.inputs):
                yield value, str(node.name)
                break


def site(reader: str, value: ir.Value, more: str = "") -> Site:
    """The site of a fault on an input."""
    return Site(reader, f"input {value.name}" + (f" {more}" if more else ""))


def value_of(graph: ir.Graph, place: Site) -> ir.Value:
    """The input that a site names."""
    name = place.detail.split()[1]
    return next(v for v in graph.inputs if v.name == name)


def channel_axis(value: ir.Value) -> int | None:
    """The axis of three colours of an image batch; None if there is none."""
    dims = sizes(value)
    if dims is None or len(dims) != 4:
        return None
    return next((axis for axis in (1, 3) if dims[axis] == 3), None)


def image_axes(value: ir.Value) -> tuple[int, int] | None:
    """Height and width of an image batch if they are equal."""
    dims = sizes(value)
    if dims is None or len(dims) != 4:
        return None
    channels = channel_axis(value)
    first, second = (1, 2) if channels == 3 else (2, 3)
    same = dims[first] is not None and dims[first] == dims[second] and dims[first] != 1
    return (first, second) if same else None
