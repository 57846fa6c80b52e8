"""From a network and its choices to a native program: reorders, halos, memory, prepared kernels."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlas.kernels.extension import need_native
from dlas.kernels.kernel import Context, Form, Kernel, Node, Operand, PythonLayer, kernels
from dlas.kernels.layout import NO_HALO, Halo, Layout, Storage, storage
from dlas.runtime.engine.delegate import Part, as_model
from dlas.runtime.engine.memory import MemoryPlan, Request, plan_memory
from dlas.runtime.engine.network import Call, Network
from dlas.runtime.engine.select import Choice

Key = tuple[str, Layout]


@dataclass
class Step:
    """One entry of the program.

    Attributes:
        name: Node it computes, or what it does.
        op: Operator.
        impl: Kernel or delegate.
        reads: Values and their layouts, in the order of the node's inputs; None for constants and left-out inputs.
        writes: Values and their layouts.
        node: What the kernel is given; None for a delegate.
        kernel: The kernel, None for a delegate.
        form: The kernel's form.
        calls: Calls of a delegate.
    """

    name: str
    op: str
    impl: str
    reads: tuple[Key | None, ...]
    writes: tuple[Key, ...]
    node: Node | None = None
    kernel: Kernel | None = None
    form: Form | None = None
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, eq=False)
class Bound:
    """Contiguous arrays that a program reads and writes, in the network's order."""

    inputs: list[np.ndarray]
    outputs: list[np.ndarray]


@dataclass
class _Buffer:
    place: Storage
    halo: Halo
    halo_byte: int
    root: Key
    steps: list[int] = field(default_factory=list)


def schedule(network: Network, choices: Sequence[Choice]) -> tuple[list[Step], dict[str, str]]:
    """Steps in order, with the reorders that the layouts ask for, and which value shares whose memory."""
    steps: list[Step] = []
    alias: dict[str, str] = {}
    have: dict[str, list[Layout]] = {name: [Layout.PLAIN] for name in network.inputs}
    operands = network.operands

    def bring(name: str, layout: Layout) -> None:
        if layout in have[name]:
            return
        steps.append(_reorder(operands[name], (name, have[name][0]), (name, layout)))
        have[name].append(layout)

    place = 0
    while place < len(network.calls):
        call, choice = network.calls[place], choices[place]
        if call.is_alias:
            bring(call.reads[0], Layout.PLAIN)
            alias[call.outputs[0]] = call.reads[0]
            have[call.outputs[0]] = [Layout.PLAIN]
            place += 1
            continue
        if choice.kernel is None:
            end = place
            while end < len(choices) and choices[end].name == choice.name and choices[end].kernel is None:
                end += 1
            part = network.calls[place:end]
            made = {n for c in part for n in c.outputs}
            read = list(dict.fromkeys(n for c in part for n in c.reads if n not in made))
            for name in read:
                bring(name, Layout.PLAIN)
            wanted = _wanted(network, part)
            steps.append(
                Step(
                    " + ".join(c.name for c in part[:3])
                    + (f" + {len(part) - 3} more" if len(part) > 3 else ""),
                    part[0].node.op if len(part) == 1 else "part",
                    choice.name,
                    tuple((n, Layout.PLAIN) for n in read),
                    tuple((n, Layout.PLAIN) for n in wanted),
                    calls=tuple(part),
                )
            )
            have.update((n, [Layout.PLAIN]) for n in wanted)
            place = end
            continue
        reads: list[Key | None] = []
        for name, operand, layout in zip(call.inputs, call.node.inputs, choice.form.inputs, strict=True):
            if operand is None or operand.constant is not None:
                reads.append(None)
                continue
            bring(name, layout)
            reads.append((name, layout))
        writes = tuple(zip(call.outputs, choice.form.outputs, strict=True))
        steps.append(
            Step(
                call.name,
                call.node.op,
                choice.name,
                tuple(reads),
                writes,
                call.node,
                choice.kernel,
                choice.form,
            )
        )
        for name, layout in writes:
            have[name] = [layout]
        place += 1
    for name in network.outputs:
        bring(name, Layout.PLAIN)
    return steps, alias


def _wanted(network: Network, part: Sequence[Call]) -> list[str]:
    inside = {id(call) for call in part}
    outside = {n for c in network.calls if id(c) not in inside for n in c.reads} | set(network.outputs)
    return [n for c in part for n in c.outputs if n in outside]


def _reorder(operand: Operand, source: Key, target: Key) -> Step:
    name = f"{source[0]} to {target[1]}" if source[0] == target[0] else f"copy {source[0]}"
    node = Node("Reorder", name, {}, (operand,), (operand,))
    form = Form((source[1],), (target[1],))
    return Step(name, "Reorder", "reorder", (source,), (target,), node, kernels.get("reorder")(), form)


class Program:
    """A network ready to run on one machine with one number of threads.

    Args:
        network: The network.
        choices: One per call.
        context: Machine; its pool is shared by all steps.

    Attributes:
        steps: What runs, in order.
        memory: Where the values are.
        bound: What it reads and writes, None before :meth:`bind`.
    """

    def __init__(self, network: Network, choices: Sequence[Choice], context: Context) -> None:
        self.network = network
        self._context = context
        self.steps, self._alias = schedule(network, choices)
        self._add_output_copies()
        self._buffers: dict[Key, _Buffer] = {}
        self._find_buffers()
        self._share_in_place()
        self._prepared = [self._prepare(step) for step in self.steps]
        self.memory = self._plan()
        self._native: Any = need_native().Program(context.pool)
        self._keep: list[Any] = []
        self.bound: Bound | None = None
        self.labels: list[int] = []  # the step that each native step belongs to
        self._assemble()

    # --- values ----------------------------------------------------------------------------------

    def _root(self, name: str) -> str:
        while name in self._alias:
            name = self._alias[name]
        return name

    def _add_output_copies(self) -> None:
        """An output that is an input, or shares memory with another output, is copied into its own."""
        taken: set[str] = set(self.network.inputs)
        operands = self.network.operands
        self._output_of: dict[str, int] = {}
        for index, name in enumerate(self.network.outputs):
            root = self._root(name)
            if root in taken:
                root = f"{name}/output {index}"
                self.steps.append(_reorder(operands[name], (name, Layout.PLAIN), (root, Layout.PLAIN)))
            taken.add(root)
            self._output_of[root] = index

    def _find_buffers(self) -> None:
        operands = self.network.operands
        halos: dict[Key, Halo] = {}
        fills: dict[Key, int] = {}
        for step in self.steps:
            if step.form is not None and step.form.halo and step.reads[0] is not None:
                key = step.reads[0]
                halos[key] = halos.get(key, NO_HALO) | step.form.halo
                fills[key] = step.form.halo_byte
        for number, step in enumerate(self.steps):
            for key in (*step.reads, *step.writes):
                if key is None:
                    continue
                name, _ = key
                operand = operands.get(name) or step.node.outputs[0]  # type: ignore[union-attr]
                buffer = self._buffer(key, operand, halos.get(key, NO_HALO), fills.get(key, 0))
                buffer.steps.append(number)
                if buffer.root != key:
                    root = self._buffer(buffer.root, operands[buffer.root[0]], NO_HALO, 0)
                    root.steps.append(number)

    def _buffer(self, key: Key, operand: Operand, halo: Halo, halo_byte: int) -> _Buffer:
        name, layout = key
        if key not in self._buffers:
            place = storage(operand.shape, operand.dtype, layout, halo=halo, block=self._context.block)
            root = (self._root(name), layout) if layout is Layout.PLAIN else key
            self._buffers[key] = _Buffer(place, halo, halo_byte, root)
        return self._buffers[key]

    def _is_outside(self, key: Key) -> bool:
        name, layout = key
        return layout is Layout.PLAIN and (name in self.network.inputs or name in self._output_of)

    def _share_in_place(self) -> None:
        """Where a kernel may and the input dies, the output takes its memory."""
        for number, step in enumerate(self.steps):
            if step.kernel is None or not step.kernel.in_place or len(step.writes) != 1:
                continue
            target = step.writes[0]
            if self._is_outside(target):
                continue
            for index in step.kernel.in_place:
                source = step.reads[index] if index < len(step.reads) else None
                if source is None:
                    continue
                root = self._buffers[source].root
                ours, theirs = self._buffers[target], self._buffers[root]
                if self._is_outside(root) or max(theirs.steps) != number or ours.root != target:
                    continue
                same_frame = ours.halo_byte == theirs.halo_byte
                if (
                    ours.place != self._buffers[source].place
                    or not same_frame
                    or ours.place.size != theirs.place.size
                ):
                    continue
                if sum(key is not None and self._buffers[key].root == root for key in step.reads) != 1:
                    continue
                for other in self._buffers.values():
                    if other.root == target:
                        other.root = root
                theirs.steps += ours.steps
                break

    # --- kernels and memory ----------------------------------------------------------------------

    def _prepare(self, step: Step) -> Any:
        if step.kernel is None:
            model = as_model(step.calls, self.network)
            return Part(step.impl, model, self._context.threads)
        assert step.node is not None
        inputs: list[Storage | None] = []
        for key, operand in zip(step.reads, step.node.inputs, strict=True):
            if key is not None:
                inputs.append(self._buffers[key].place)
            else:
                inputs.append(None if operand is None else storage(operand.shape, operand.dtype))
        outputs = [self._buffers[key].place for key in step.writes]
        return step.kernel.prepare(step.node, inputs, outputs, self._context)

    def _workspace(self, number: int) -> int:
        return int(getattr(self._prepared[number], "workspace", 0))

    def _plan(self) -> MemoryPlan:
        requests = []
        for key, buffer in self._buffers.items():
            if buffer.root == key and not self._is_outside(key):
                requests.append(Request(_text(key), buffer.place.bytes, min(buffer.steps), max(buffer.steps)))
        scratch = ((number, self._workspace(number)) for number in range(len(self.steps)))
        requests += [Request(f"scratch {number}", size, number, number) for number, size in scratch if size]
        return plan_memory(requests)

    # --- the native program ----------------------------------------------------------------------

    def _assemble(self) -> None:
        native = need_native()
        ids: dict[Key, int] = {}
        inputs = list(self.network.inputs)
        for key, buffer in self._buffers.items():
            root = buffer.root
            first = buffer.place.first * np.dtype(buffer.place.dtype).itemsize
            if root[1] is Layout.PLAIN and root[0] in self._output_of:
                place, index, offset = native.Place.output, self._output_of[root[0]], first
            elif root[1] is Layout.PLAIN and root[0] in self.network.inputs:
                place, index, offset = native.Place.input, inputs.index(root[0]), first
            else:
                place, index, offset = native.Place.arena, 0, self.memory.offsets[_text(root)] + first
            ids[key] = self._native.value(place, index, offset, buffer.place.spec)
        for number, step in enumerate(self.steps):
            prepared = self._prepared[number]
            outputs = [ids[key] for key in step.writes]
            if isinstance(prepared, Part):
                self._native.call(self._part_call(prepared, [ids[k] for k in step.reads if k], outputs))
            else:
                given = self._inputs(step, ids)
                scratch = self.memory.offsets.get(f"scratch {number}", 0)
                if isinstance(prepared, PythonLayer):
                    self._native.call(self._layer_call(prepared, given, outputs))
                else:
                    self._native.step(prepared, given, outputs, scratch)
            self.labels.append(number)
            for key in step.writes:
                buffer = self._buffers[key]
                shared = buffer.root != key and buffer.root[1] is not Layout.PLAIN
                if buffer.halo and not shared:
                    halo = buffer.halo
                    self._native.halo(
                        ids[key], halo.top, halo.left, halo.bottom, halo.right, buffer.halo_byte
                    )
                    self.labels.append(number)
        self._native.allocate(self.memory.arena_bytes)

    def _inputs(self, step: Step, ids: dict[Key, int]) -> list[int]:
        given = []
        assert step.node is not None
        for key, operand in zip(step.reads, step.node.inputs, strict=True):
            if key is not None:
                given.append(ids[key])
            elif operand is None:
                given.append(-1)
            else:
                assert operand.constant is not None
                array = np.ascontiguousarray(operand.constant)
                self._keep.append(array)
                given.append(self._native.constant(array))
        return given

    def _viewer(self) -> Callable[[int], np.ndarray]:
        # The native program owns its calls: were they to own it too, neither would ever be freed.
        program = weakref.ref(self._native)

        def view(value: int) -> np.ndarray:
            alive = program()
            assert alive is not None
            return alive.view(value)

        return view

    def _part_call(self, part: Part, inputs: Sequence[int], outputs: Sequence[int]) -> Callable[[], None]:
        view = self._viewer()

        def call() -> None:
            for target, found in zip(outputs, part([view(i) for i in inputs]), strict=True):
                np.copyto(view(target), found)

        return call

    def _layer_call(
        self, layer: PythonLayer, inputs: Sequence[int], outputs: Sequence[int]
    ) -> Callable[[], None]:
        view = self._viewer()
        scratch = np.zeros(layer.workspace, np.uint8)

        def call() -> None:
            layer.run([None if i < 0 else view(i) for i in inputs], [view(o) for o in outputs], scratch)

        return call

    # --- running -----------------------------------------------------------------------------------

    def bind(self, arrays: Bound) -> None:
        """Say where inputs are read and outputs written from now on."""
        for index, array in enumerate(arrays.inputs):
            self._native.bind_input(index, array)
        for index, array in enumerate(arrays.outputs):
            self._native.bind_output(index, array)
        self.bound = arrays  # the native side holds addresses only

    @property
    def run(self) -> Callable[[], None]:
        """One inference on what is bound; allocates nothing."""
        return self._native.run

    def step_times(self) -> list[float]:
        """One inference on what is bound; nanoseconds of each of :attr:`steps`."""
        totals = [0.0] * len(self.steps)
        for number, taken in zip(self.labels, self._native.run_timed(), strict=True):
            totals[number] += taken
        return totals

    def close(self) -> None:
        """Let go of delegates."""
        for prepared in self._prepared:
            if isinstance(prepared, Part):
                prepared.close()


def _text(key: Key) -> str:
    return f"{key[1]} {key[0]}"
