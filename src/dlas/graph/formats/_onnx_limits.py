"""How large an untrusted ONNX graph may be once its functions are expanded, and what of it is never taken over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from dlas.core.errors import ModelError, UnsupportedError

_EXPANSION_BYTES = 256 * 2**20  # what expanding functions may add
_PORTS_PER_NODE = 16  # inputs and outputs, on average over the graph
_DEEPEST_CALL = 64  # functions that call functions
# Instructions to a runtime, which is the user's to configure; ONNX Runtime reads session options from the first.
_NOT_METADATA = ("ort_config", "session.", "ep.", "ep_", "ai.onnxruntime")


@dataclass(frozen=True)
class _Size:
    """What a list of nodes comes to: nodes, inputs and outputs, bytes."""

    nodes: int = 0
    ports: int = 0
    bytes: int = 0

    def __add__(self, other: _Size) -> _Size:
        return _Size(self.nodes + other.nodes, self.ports + other.ports, self.bytes + other.bytes)


def check_size(proto: onnx.ModelProto, name: str, size: int, max_nodes: int) -> None:
    """Refuse a graph that is, or expands to, more than can be handled.

    Args:
        proto: The file's content.
        name: The file's name.
        size: Bytes of the file.
        max_nodes: Most nodes, and most initializers.

    Raises:
        ModelError: Too many nodes, inputs or initializers, or functions that expand without bound.
    """
    found = _Expansion(proto, name).of_nodes(proto.graph.node, 0)
    ports = max_nodes * _PORTS_PER_NODE
    weights = len(proto.graph.initializer)
    listed = len(proto.graph.input) + len(proto.graph.output)
    for what, count, limit in (
        ("nodes", found.nodes, max_nodes),
        ("initializers", weights, max_nodes),
        ("inputs and outputs", listed, max_nodes),
        ("connections", found.ports, ports),
    ):
        if count > limit:
            raise ModelError(
                f"{name} has {_count(count)} {what}; at most {limit} are read", "raise max_nodes to read it"
            )
    if found.bytes > size + _EXPANSION_BYTES:
        raise ModelError(
            f"{name}: its functions expand to {_count(found.bytes)} bytes", "export it without functions"
        )


def drop_foreign(proto: onnx.ModelProto) -> None:
    """Remove training information and entries of the metadata that would configure a runtime."""
    del proto.training_info[:]
    kept = [p for p in proto.metadata_props if not p.key.lower().startswith(_NOT_METADATA)]
    if len(kept) < len(proto.metadata_props):
        entries = [(p.key, p.value) for p in kept]
        del proto.metadata_props[:]
        for key, value in entries:
            proto.metadata_props.add(key=key, value=value)


def refuse_sparse(proto: onnx.ModelProto, name: str) -> None:
    """Refuse sparse tensors, wherever they are.

    Raises:
        UnsupportedError: There is one; it is named.
    """
    found = [s.values.name for s in proto.graph.sparse_initializer]
    for nodes in (proto.graph.node, *(f.node for f in proto.functions)):
        found += _sparse_in(nodes)
    if found:
        raise UnsupportedError(
            f"{name} has sparse initializers: {', '.join(found[:8])}", "export it with dense weights"
        )


def _sparse_in(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    found: list[str] = []
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                found.append(f"{node.name or node.op_type}.{attribute.name}")
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                found += [s.values.name for s in graph.sparse_initializer]
                found += _sparse_in(graph.node)
    return found


class _Expansion:
    """Adds up what calls of local functions expand to, each function once."""

    def __init__(self, proto: onnx.ModelProto, name: str) -> None:
        self._name = name
        self._functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
        self._known: dict[tuple[str, str, str], _Size] = {}

    def of_nodes(self, nodes: Iterable[onnx.NodeProto], depth: int) -> _Size:
        if depth > _DEEPEST_CALL:
            raise ModelError(
                f"{self._name}: functions call each other more than {_DEEPEST_CALL} deep",
                "export it without functions",
            )
        count = ports = taken = 0
        called = _Size()
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            if key in self._functions:
                called += self._of_function(key, depth)
                continue
            count += 1
            ports += len(node.input) + len(node.output)
            taken += node.ByteSize()
            for attribute in node.attribute:
                for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    called += self.of_nodes(graph.node, depth + 1)
        return called + _Size(count, ports, taken)

    def _of_function(self, key: tuple[str, str, str], depth: int) -> _Size:
        if key not in self._known:
            self._known[key] = self.of_nodes(self._functions[key].node, depth + 1)
        return self._known[key]


def _count(count: int) -> str:
    return str(count) if count < 10**12 else "more than 10^12"
