"""One node by one kernel, outside any network: for tests, and to time a kernel alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.kernels.kernel import Context, Form, Kernel, Node, PythonLayer
from dlas.kernels.layout import NO_HALO, Layout, from_blocked, storage, to_layout


class Bench:
    """A node prepared for one kernel, with its inputs laid out.

    Args:
        kernel: A member, or its class.
        node: The node; constants carry their values.
        arrays: One per input, in ONNX order; None for constants and left-out inputs.
        context: Machine.
        form: One of the kernel's forms, the preferred one unless given.

    Raises:
        UnsupportedError: The kernel refuses the node; the message has its reason.
    """

    def __init__(
        self,
        kernel: Kernel,
        node: Node,
        arrays: Sequence[np.ndarray | None],
        context: Context,
        form: Form | None = None,
    ) -> None:
        reason = kernel.refuses(node, context)
        if reason:
            raise UnsupportedError(f"{kernel.name} cannot compute {node.op} {node.name!r}: {reason}")
        self.node = node
        self._context = context
        self.form = form or kernel.forms(node, context)[0]
        self._inputs: list[np.ndarray | None] = []
        forms = []
        for index, (operand, layout) in enumerate(zip(node.inputs, self.form.inputs, strict=True)):
            if operand is None:
                forms.append(None)
                self._inputs.append(None)
                continue
            halo = self.form.halo if index == 0 else NO_HALO
            place = storage(operand.shape, operand.dtype, layout, halo=halo, block=context.block)
            forms.append(place)
            value = operand.constant if operand.constant is not None else arrays[index]
            if value is None:
                raise UnsupportedError(f"{node.op} {node.name!r} was given no input {index}")
            self._inputs.append(
                self._laid_out(np.ascontiguousarray(value, operand.dtype), index, layout, place)
            )
        self._places = [
            storage(o.shape, o.dtype, layout, block=context.block)
            for o, layout in zip(node.outputs, self.form.outputs, strict=True)
        ]
        self._outputs = [place.empty() for place in self._places]
        self._prepared = kernel.prepare(node, forms, self._places, context)
        self.workspace = int(self._prepared.workspace)

    def _laid_out(self, value: np.ndarray, index: int, layout: Layout, place) -> np.ndarray:
        if layout is Layout.PLAIN:
            return value
        view = to_layout(value, place)
        if index == 0 and self.form.halo_byte:
            buffer = np.full(place.size, self.form.halo_byte, np.uint8).view(value.dtype)
            framed = place.view(buffer)
            framed[...] = view
            return framed
        return view

    def caller(self) -> Callable[[], object]:
        """A call that computes the node once."""
        if isinstance(self._prepared, PythonLayer):
            scratch = np.zeros(self.workspace, np.uint8)
            return lambda: self._prepared.run(self._inputs, self._outputs, scratch)
        # A program of one step: what a node costs inside a network, without a conversion of arrays at every call.
        from dlas.kernels.extension import need_native

        native = need_native()
        program = native.Program(self._context.pool)
        given = [-1 if a is None else program.constant(a) for a in self._inputs]
        wanted = [program.constant(a) for a in self._outputs]
        program.step(self._prepared, given, wanted, 0)
        program.allocate(self.workspace)
        return program.run

    def run(self) -> list[np.ndarray]:
        """Compute once; outputs in ONNX order."""
        self.caller()()
        found = []
        for operand, layout, view in zip(self.node.outputs, self.form.outputs, self._outputs, strict=True):
            if layout is Layout.BLOCKED:
                found.append(from_blocked(view, operand.shape[1]))
            elif layout is Layout.NHWC:
                found.append(np.ascontiguousarray(view.transpose(0, 3, 1, 2)))
            else:
                found.append(view.copy())
        return found
