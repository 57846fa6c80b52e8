"""A module written down by ``torch.fx``, run with two sizes of the batch, and put into ONNX call by call.

``torch.fx`` (Reed et al., "torch.fx: Practical program capture and transformation for deep learning in Python", MLSys
2022) calls the module with stand-ins for tensors. A module that decides anything by what is in a tensor or by its size
cannot be written down that way, which shows at once; every weight is a stand-in as well, so no number of it gets into
the graph by another way than as a tensor of its own name.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d

from dlas.graph.model import OPSET
from dlas.graph.torch_trace import elementwise, layers, shaping
from dlas.graph.torch_trace.table import BUILDERS, SIZED, Call, NotTracedError, Traced, Writer, need

__all__ = ["NotTracedError", "one_thread", "trace"]

_IR_VERSION = 10  # the first with everything of the operator set in use; what PyTorch writes as well
_TABLES = (elementwise, layers, shaping)  # imported for their entries
_NORMS = (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
)  # they look at the number of dimensions, so they stay one call
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Numbers and sizes; of those that depend on the batch only products are known to hold for every batch.
_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.getitem)
_QUERIES = ("size", "dim")
_ATTRIBUTES = ("shape", "ndim", "dtype", "device")
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, torch.relu_)


def trace(module: nn.Module, examples: tuple[torch.Tensor, ...], fixed_batch: bool) -> ir.Model:
    """The module as an ONNX graph that needs no tidying; nodes and weights bear the names of the module.

    Args:
        module: The network in eval mode.
        examples: Inputs; unless the batch is fixed, all have it as the first axis.
        fixed_batch: Keep the batch of the examples instead of a dynamic one.

    Returns:
        A graph with copies of the weights, inputs ``input`` or ``input_0`` .. and outputs ``logits``, ``output`` or
        ``output_0`` ...

    Raises:
        NotTracedError: The network does something that is not known here.
    """
    try:
        with torch.no_grad(), one_thread():
            feeds = _feeds(examples, fixed_batch)
            return _Walk(module, feeds).graph(_recorded(module, len(examples)))
    except NotTracedError:
        raise
    except Exception as error:  # the user's code and torch with stand-ins for tensors: anything may come
        raise NotTracedError(f"{type(error).__name__}: {error}") from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Few images are computed faster without a team of threads that waits for a busy core at every layer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _feeds(examples: tuple[torch.Tensor, ...], fixed_batch: bool) -> list[tuple[torch.Tensor, ...]]:
    """Examples of their own, and once more with a batch that is larger by one."""
    feeds = [tuple(e.clone() for e in examples)]
    if not fixed_batch:
        need(all(e.dim() for e in examples), "an input without batch")
        need(len({e.shape[0] for e in examples}) == 1, "inputs of different batches")
        feeds.append(tuple(torch.cat([e, e[:1]]) for e in examples))
    return feeds


class _Tracer(fx.Tracer):
    """A tracer that looks into every module, has stand-ins for buffers too, and minds its own thread only."""

    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.thread = threading.get_ident()
        self.names = _names(module)
        self.proxies: dict[str, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Batch normalisation alone."""
        del module_qualified_name
        return type(m) in _NORMS and not any(getattr(m, hooks) for hooks in _HOOKS)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Stand-ins for the inputs only; what forward() has defaults for keeps them."""
        del is_module, concrete_args
        proxies = [self.create_proxy("placeholder", f"input_{i}", (), {}) for i in range(self.inputs)]
        return root_fn, [self.root, *proxies]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """As in fx, except in other threads, whose modules meet the patches of fx as well."""
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A stand-in for a weight; fx searches all of them each time."""
        del attr, parameter_proxy_cache
        name = self.names.get(id(attr_val))
        if name is None or threading.get_ident() != self.thread:
            return attr_val
        if name not in self.proxies:
            self.proxies[name] = self.create_proxy("get_attr", name, (), {})
        return self.proxies[name]


def _names(module: nn.Module) -> dict[int, str]:
    """Names of parameters and buffers by the identity of the tensor; the first where several share one."""
    names: dict[int, str] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        names.setdefault(id(tensor), name)
    return names


def _recorded(module: nn.Module, inputs: int) -> tuple[fx.Graph, dict[str, Any]]:
    """The calls of the module, and the constants that fx found beside its weights."""
    need(not any(m.training for m in module.modules()), "a module in training")
    need(not any(getattr(module, hooks) for hooks in _HOOKS), "hooks of the network")
    need(all("forward" not in vars(m) for m in module.modules()), "a forward() of one object")
    constants: dict[str, Any] = {}
    with _unchanged(module):
        graph = _Tracer(module, inputs).trace(module)
        for node in graph.nodes:
            if node.op == "get_attr":
                constants[node.target] = operator.attrgetter(node.target)(module)
    return graph, constants


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Puts back what fx, or a forward() that stores what it computes, leaves in the attributes of modules."""
    before = [(vars(m), dict(vars(m))) for m in module.modules()]
    try:
        yield
    finally:
        for now, then in before:
            if len(now) != len(then) or any(now[key] is not value for key, value in then.items()):
                now.clear()
                now.update(then)


class _Walk:
    """Goes through the calls: runs each and writes it."""

    def __init__(self, module: nn.Module, feeds: list[tuple[torch.Tensor, ...]]) -> None:
        self.module = module
        self.feeds = feeds
        self.batches = tuple(feed[0].shape[0] if feed and feed[0].dim() else 1 for feed in feeds)
        self.writer = Writer(self.batches, set())
        self.known: dict[fx.Node, Traced] = {}
        self.constants: dict[str, Any] = {}

    def graph(self, recorded: tuple[fx.Graph, dict[str, Any]]) -> ir.Model:
        calls, self.constants = recorded
        count = len(self.feeds[0])
        names = ["input"] if count == 1 else [f"input_{i}" for i in range(count)]
        given = [
            Traced(runs, self.writer.typed(name, runs))
            for name, runs in zip(names, zip(*self.feeds, strict=True), strict=True)
        ]
        results = next(node for node in calls.nodes if node.op == "output")
        outputs = results.args[0] if isinstance(results.args[0], tuple | list) else (results.args[0],)
        need(len(outputs) > 0 and all(isinstance(o, fx.Node) for o in outputs), "no tensors for outputs")
        self.writer.taken.update(names)
        self.writer.taken.update(
            ["logits", "output"] if len(outputs) == 1 else [f"output_{i}" for i in range(len(outputs))]
        )
        waiting = iter(given)
        last = {used: node for node in calls.nodes for used in node.all_input_nodes}
        for node in calls.nodes:
            if node is results:
                break
            self.known[node] = next(waiting) if node.op == "placeholder" else self._done(node, last)
            for used in node.all_input_nodes:
                if last[used] is node:
                    del self.known[used]
            if node not in last:
                del self.known[node]
        return self._model([v.value for v in given], [self.known[o] for o in outputs])

    def _model(self, inputs: list[Any], outputs: list[Traced]) -> ir.Model:
        values = []
        for index, traced in enumerate(outputs):
            need(traced.value is not None, "an output that is no tensor")
            value: Any = traced.value
            if value.producer() is None or value in values:
                value = Call(self.writer, "", traced.runs).emit("Identity", traced)
            single = "logits" if traced.rank == 2 else "output"
            value.name = single if len(outputs) == 1 else f"output_{index}"
            values.append(value)
        initializers = [v for v in self.writer.initializers.values() if v.uses()]
        graph = ir.Graph(
            inputs,
            values,
            nodes=self.writer.nodes,
            initializers=initializers,
            opset_imports={"": OPSET},
            name="main_graph",
        )
        return ir.Model(graph, ir_version=_IR_VERSION, producer_name="dlas")

    def _done(self, node: fx.Node, last: dict[fx.Node, fx.Node]) -> Traced:
        """What a node gives, and what stands for it in the graph."""
        if node.op == "get_attr":
            return self._constant(str(node.target))
        args: Any = map_aggregate(node.args, self._of)
        kwargs: Any = map_aggregate(node.kwargs, self._of)
        tensors = [self.known[n] for n in node.all_input_nodes]
        if node.op == "call_module":
            return self._norm(node, args)
        query = self._query(node, tensors)
        need(query or node.target in BUILDERS, f"{node.target} is not in the tables")
        if not query:
            self._keep_weights(node, args)
        versions = [run._version for t in tensors if t.value is not None for run in t.runs]
        runs = tuple(self._run(node, args, kwargs, index) for index in range(len(self.feeds)))
        if versions != [run._version for t in tensors if t.value is not None for run in t.runs]:
            self._check_aliases(node, args, last)
        if query:
            return Traced(runs)
        if node.target is operator.getitem and args[0].parts:
            picked = args[0].parts[args[1]]
            return picked if isinstance(picked, Traced) else Traced(runs, None, picked)
        need(all(isinstance(r, torch.Tensor) for r in _flat(runs)), "a result that is no tensor")
        call = Call(self.writer, _place(node), runs)
        simple = _sized if node.target in SIZED else _plain
        options: Any = map_aggregate(kwargs, simple)
        made = BUILDERS[node.target](call, *_listed(map_aggregate(args, simple)), **options)
        if isinstance(made, list):
            parts = zip(zip(*runs, strict=True), made, strict=True)
            return Traced(runs, None, tuple(Traced(part, value) for part, value in parts))
        return Traced(runs, made)

    def _of(self, given: Any) -> Any:
        return self.known[given] if isinstance(given, fx.Node) else given

    def _run(self, node: fx.Node, args: Any, kwargs: Any, index: int) -> Any:
        def of(given: Any) -> Any:
            return given.runs[index] if isinstance(given, Traced) else given

        values, options = _listed(map_aggregate(args, of)), map_aggregate(kwargs, of)
        if node.op == "call_method":
            return getattr(values[0], str(node.target))(*values[1:], **options)
        return node.target(*values, **options)  # type: ignore[operator]

    def _query(self, node: fx.Node, used: list[Traced]) -> bool:
        """Whether this asks for a size or reckons with sizes, rather than with tensors."""
        if node.op == "call_method" and node.target in _QUERIES:
            return True
        if node.target is getattr:
            need(node.args[1] in _ATTRIBUTES, f"the attribute {node.args[1]}")
            return True
        if node.target not in _ARITHMETIC or any(t.value is not None or t.parts for t in used):
            return False
        free = node.target in (operator.mul, operator.getitem)
        need(free or not any(t.varies for t in used), "sums with the batch")
        return True

    def _keep_weights(self, node: fx.Node, args: Any) -> None:
        """A weight must not be the one that an operation in place changes."""
        first = args[0] if args else None
        if isinstance(first, Traced) and first.value is not None and first.value.const_value is not None:
            named = isinstance(node.target, str) and node.target.endswith("_")
            flags = (*node.args[1:], *node.kwargs.values())
            need(not named and node.target not in _IN_PLACE and True not in flags, "a weight that is changed")

    def _check_aliases(self, node: fx.Node, args: Any, last: dict[fx.Node, fx.Node]) -> None:
        """After an operation in place, nothing that shares memory with its operand may be asked for."""
        need(bool(args) and isinstance(args[0], Traced), "an operation in place")
        memory = args[0].runs[0].untyped_storage().data_ptr()
        for other, traced in self.known.items():
            dead = last[other] is node if other in last else True
            shared = (
                r.untyped_storage().data_ptr() for r in _flat(traced.runs) if isinstance(r, torch.Tensor)
            )
            need(dead or memory not in shared, "an operation in place on what is used again")

    def _constant(self, name: str) -> Traced:
        tensor = self.constants[name]
        need(type(tensor) in (torch.Tensor, nn.Parameter), f"{name} is no plain tensor")
        tensor = tensor.detach()
        array = np.array(tensor.cpu().numpy())
        return Traced((tensor,) * len(self.feeds), self.writer.stored(name, array))

    def _norm(self, node: fx.Node, args: Any) -> Traced:
        """A batch normalisation that fx has left as a module."""
        name = str(node.target)
        norm = self.module.get_submodule(name)
        need(len(args) == 1 and not node.kwargs, "a batch normalisation with options")
        runs = tuple(norm(run) for run in args[0].runs)
        names = ("running_mean", "running_var", "weight", "bias")
        tensors = [self._of_norm(f"{name}.{n}", getattr(norm, n)) for n in names]
        call = Call(self.writer, name, runs)
        value = BUILDERS[F.batch_norm](call, args[0], *tensors, False, norm.momentum, norm.eps)
        return Traced(runs, value)

    def _of_norm(self, name: str, tensor: Any) -> Traced | None:
        if tensor is None:
            return None
        self.constants[name] = tensor
        return self._constant(name)


def _flat(runs: tuple[Any, ...]) -> Iterator[Any]:
    for run in runs:
        yield from run if isinstance(run, tuple | list) else (run,)


def _listed(given: Any) -> list[Any]:
    """The positional arguments of a call."""
    return list(given)


def _plain(given: Any) -> Any:
    """Numbers in place of what only was a number on the way."""
    if not isinstance(given, Traced) or given.value is not None:
        return given
    if given.parts:
        return given.parts
    need(not given.varies, "a number that depends on the batch")
    return given.runs[0]


def _sized(given: Any) -> Any:
    return given.runs[0] if isinstance(given, Traced) and given.value is None else given


def _place(node: fx.Node) -> str:
    """The innermost module in which a call happens."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()), ("",))[0])  # the keys count calls of one module
