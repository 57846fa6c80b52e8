"""A change of a graph that can be written down, done again and undone.

A patch is the difference of two graphs whose nodes have unique names: the nodes and constants that are gone, and
those that have come. It applies to a graph that holds exactly what it takes away, and to no other.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from dlas.core.errors import ModelError
from dlas.graph.formats._onnx_tensors import all_tensors

_LARGEST = 2**31  # bytes of one constant
_DAMAGES = (KeyError, TypeError, ValueError, OverflowError, AttributeError, ParseError, zlib.error)


@dataclass(frozen=True)
class Side:
    """What one of the two graphs has and the other has not, as protobufs by name."""

    nodes: Mapping[str, onnx.NodeProto] = field(default_factory=dict)
    constants: Mapping[str, onnx.TensorProto] = field(default_factory=dict)
    inputs: tuple[onnx.ValueInfoProto, ...] = ()
    outputs: tuple[onnx.ValueInfoProto, ...] = ()


@dataclass(frozen=True)
class Patch:
    """One change.

    Attributes:
        title: What it does, in one line.
        old: What it takes away.
        new: What it puts in.
        evidence: Why, as plain values: class of the fault, errors before and after.
    """

    title: str
    old: Side
    new: Side
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def between(
        cls, before: ir.Model, after: ir.Model, title: str, evidence: Mapping[str, Any] | None = None
    ) -> Patch:
        """The difference of two graphs; nodes of each must have unique names.

        Raises:
            ModelError: Two nodes of a graph share a name.
        """
        a, b = _parts(before), _parts(after)
        return cls(title, _without(a, b), _without(b, a), dict(evidence or {}))

    @property
    def empty(self) -> bool:
        """Whether it changes nothing."""
        return self.old == Side() and self.new == Side()

    def apply(self, graph: ir.Model) -> ir.Model:
        """The changed graph; raises ModelError when ``graph`` is not what the patch was made for."""
        return _exchanged(graph, self.old, self.new, self.title)

    def undo(self, graph: ir.Model) -> ir.Model:
        """The graph as it was; raises ModelError when ``graph`` does not hold the change."""
        return _exchanged(graph, self.new, self.old, f"undo of {self.title}")

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "title": self.title,
            "evidence": dict(self.evidence),
            "old": _side_to_dict(self.old),
            "new": _side_to_dict(self.new),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Patch:
        """Inverse of :meth:`to_dict`; raises ModelError when it is of another form."""
        try:
            evidence = fields.get("evidence", {})
            if not isinstance(fields["title"], str) or not isinstance(evidence, Mapping):
                raise TypeError("title and evidence")
            old, new = _side_from_dict(fields["old"]), _side_from_dict(fields["new"])
        except _DAMAGES as error:
            raise ModelError(
                f"the patch log is damaged: {error}", "make it again with `dlas repair`"
            ) from error
        return cls(fields["title"], old, new, dict(evidence))


def _parts(graph: ir.Model) -> Side:
    proto = ir.to_proto(graph).graph
    nodes: dict[str, onnx.NodeProto] = {}
    for node in proto.node:
        if not node.name or node.name in nodes:
            raise ModelError(f"two nodes are called {node.name!r}", "patches need nodes with unique names")
        del node.metadata_props[:]
        nodes[node.name] = node
    constants = {t.name: t for t in proto.initializer}
    return Side(nodes, constants, tuple(proto.input), tuple(proto.output))


def _without(a: Side, b: Side) -> Side:
    """What ``a`` has and ``b`` has not, or has otherwise."""
    same = (_interface(a.inputs) == _interface(b.inputs), _interface(a.outputs) == _interface(b.outputs))
    return Side(
        {k: v for k, v in a.nodes.items() if b.nodes.get(k) != v},
        {k: v for k, v in a.constants.items() if k not in b.constants or not _same(v, b.constants[k])},
        () if same[0] else a.inputs,
        () if same[1] else a.outputs,
    )


def _interface(values: tuple[onnx.ValueInfoProto, ...]) -> list[tuple[str, bytes]]:
    return [(v.name, v.type.SerializeToString(deterministic=True)) for v in values]


def _same(a: onnx.TensorProto, b: onnx.TensorProto) -> bool:
    if a.data_type != b.data_type or list(a.dims) != list(b.dims):
        return False
    return onnx.numpy_helper.to_array(a).tobytes() == onnx.numpy_helper.to_array(b).tobytes()


def _exchanged(graph: ir.Model, old: Side, new: Side, title: str) -> ir.Model:
    proto = ir.to_proto(graph)
    parts = _parts(graph)
    for name, node in old.nodes.items():
        if parts.nodes.get(name) != node:
            raise _misfit(title, f"its node {name!r} ({node.op_type}) is missing or another")
    for name, tensor in old.constants.items():
        if name not in parts.constants or not _same(parts.constants[name], tensor):
            raise _misfit(title, f"its constant {name!r} is missing or another")
    for name in new.nodes.keys() - old.nodes.keys() & parts.nodes.keys():
        raise _misfit(title, f"a node {name!r} is there already")
    kept = [n for n in proto.graph.node if n.name not in old.nodes]
    weights = [t for t in proto.graph.initializer if t.name not in old.constants]
    for name in new.constants.keys() & {t.name for t in weights}:
        raise _misfit(title, f"a constant {name!r} is there already")
    del proto.graph.node[:], proto.graph.initializer[:], proto.graph.value_info[:]
    proto.graph.node.extend([*kept, *new.nodes.values()])
    proto.graph.initializer.extend([*weights, *new.constants.values()])
    for ours, theirs in ((proto.graph.input, new.inputs), (proto.graph.output, new.outputs)):
        if theirs:
            del ours[:]
            ours.extend(theirs)
    try:
        changed = ir.from_proto(proto)
        changed.graph.sort()
    except ValueError as error:
        raise _misfit(title, str(error)) from error
    return changed


def _misfit(title: str, reason: str) -> ModelError:
    return ModelError(
        f"the patch {title!r} does not fit this network: {reason}", "use the file it was made for"
    )


def _side_to_dict(side: Side) -> dict[str, Any]:
    return {
        "nodes": [MessageToDict(n) for n in side.nodes.values()],
        "constants": {
            name: _array_to_dict(onnx.numpy_helper.to_array(t)) for name, t in side.constants.items()
        },
        "inputs": [MessageToDict(v) for v in side.inputs],
        "outputs": [MessageToDict(v) for v in side.outputs],
    }


def _side_from_dict(fields: Mapping[str, Any]) -> Side:
    nodes = [ParseDict(n, onnx.NodeProto()) for n in fields["nodes"]]
    for node in nodes:
        _refuse_external(node)
    return Side(
        {n.name: n for n in nodes},
        {
            str(k): onnx.numpy_helper.from_array(_array_from_dict(v), str(k))
            for k, v in fields["constants"].items()
        },
        tuple(ParseDict(v, onnx.ValueInfoProto()) for v in fields["inputs"]),
        tuple(ParseDict(v, onnx.ValueInfoProto()) for v in fields["outputs"]),
    )


def _refuse_external(node: onnx.NodeProto) -> None:
    # A log may come from anybody: it must not bring files of this machine into a network.
    for label, tensor in all_tensors(onnx.ModelProto(graph=onnx.GraphProto(node=[node]))):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError(f"{label} lies in another file")


def _array_to_dict(array: np.ndarray) -> dict[str, Any]:
    packed = zlib.compress(np.ascontiguousarray(array).tobytes(), 6)
    return {"dtype": array.dtype.name, "shape": list(array.shape), "zlib": base64.b64encode(packed).decode()}


def _array_from_dict(fields: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(fields["dtype"])
    shape = tuple(int(d) for d in fields["shape"])
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 0 or size > _LARGEST:
        raise ValueError(f"a constant of {size} bytes")
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(fields["zlib"]), size + 1)
    if len(data) != size:
        raise ValueError(f"a constant of {len(data)} bytes where {size} are said")
    return np.frombuffer(data, dtype).reshape(shape).copy()
