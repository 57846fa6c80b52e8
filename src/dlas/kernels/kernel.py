"""What a kernel is: one way to compute one operator.

A member of the family is one module of ``kernels/layers/<kind>/``. It says which operator it computes, which nodes it
can take and in which layouts, what it would cost, and prepares the node (packs the weights). Most members are a few
lines around a native layer of the same name; a layer in plain Python writes ``compute`` instead.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from dlas.core.options import NoOptions
from dlas.core.registry import Registry
from dlas.kernels.extension import BLOCK, missing_native, need_native
from dlas.kernels.layout import NO_HALO, Halo, Layout, Storage

kernels: Registry[type[Kernel]] = Registry("kernel", "dlas.kernels.layers.*")


_BY_WEIGHT = {"Conv": 1, "ConvInteger": 1, "QConv": 1, "QDepthwise": 1, "QLinearConv": 3}  # its input
_PRODUCTS = frozenset(
    {"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "QDense", "MatMulNBits", "MatMulW4A8"}
)
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


@dataclass(frozen=True)
class Operand:
    """An input or output of a node.

    Attributes:
        shape: ONNX shape.
        dtype: NumPy name.
        constant: Its value where that is known.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    constant: np.ndarray | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, array: np.ndarray) -> Operand:
        """A constant."""
        return cls(tuple(array.shape), array.dtype.name, array)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes, in ONNX order."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def is_feature_map(self) -> bool:
        """Whether it is a float32 (N, C, H, W)."""
        return len(self.shape) == 4 and self.dtype == "float32"


@dataclass(frozen=True)
class Node:
    """An operator with everything about it that is known before it runs.

    Convolutions and pools always carry ``kernel_shape``, ``strides``, ``pads`` (top, left, bottom, right),
    ``dilations`` and, for convolutions, ``group``. An activation fused into a node is ``act`` (a number of
    :data:`ACTIVATIONS`) with ``act_low`` and ``act_high``; a residual fused into Conv or Gemm is its fourth input.

    Attributes:
        op: ONNX operator.
        name: Name in the network, for messages and profiles.
        attributes: ONNX attributes as numbers, texts and lists of whole numbers.
        inputs: None is an optional input that was left out.
        outputs: At least one.
    """

    op: str
    name: str
    attributes: Mapping[str, Any]
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand, ...]

    def operand(self, index: int) -> Operand:
        """An input that must be there."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise IndexError(f"{self.op} {self.name!r} has no input {index}")
        return found

    def constant(self, index: int) -> np.ndarray | None:
        """The value of an input, where it is there and constant; an input beyond the last is left out."""
        found = self.inputs[index] if index < len(self.inputs) else None
        return None if found is None else found.constant

    @property
    def output(self) -> Operand:
        """The first output."""
        return self.outputs[0]

    @property
    def macs(self) -> int:
        """Multiply-accumulates, counted dense; 0 for operators without products."""
        size = self.output.size
        if self.op in _BY_WEIGHT:
            return size * math.prod(self.operand(_BY_WEIGHT[self.op]).shape[1:])
        if self.op in ("ConvTranspose", "QConvTranspose"):
            return self.operand(0).size * math.prod(self.operand(1).shape[1:])
        if self.op in _RECURRENT:
            steps = math.prod(self.operand(0).shape[:2])
            return steps * (self.operand(1).size + self.operand(2).size)
        if self.op in _PRODUCTS:
            shape = self.operand(0).shape
            return size * (shape[0] if self.attributes.get("transA") else shape[-1])
        return 0


ACTIVATIONS = {
    "": 0,
    "Relu": 1,
    "Clip": 2,  # act_low, act_high
    "HardSwish": 3,
    "Sigmoid": 4,
    "Silu": 5,
    "LeakyRelu": 6,  # act_low is the slope
    "HardSigmoid": 7,  # max(0, min(1, act_low x + act_high))
    "Tanh": 8,
}


@dataclass(frozen=True)
class Form:
    """Layouts in which a kernel takes its inputs and leaves its outputs.

    Attributes:
        inputs: One per input; constants and left-out inputs are always plain.
        outputs: One per output.
        halo: Frame that input 0 must stand in.
        halo_byte: Byte that fills it (a zero point, for 8-bit inputs).
    """

    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...]
    halo: Halo = NO_HALO
    halo_byte: int = 0

    @classmethod
    def all(cls, node: Node, layout: Layout, **more: Any) -> Form:
        """The same layout for every feature map of a node; constants plain."""
        return cls(
            tuple(Layout.PLAIN if i is None or i.constant is not None else layout for i in node.inputs),
            (layout,) * len(node.outputs),
            **more,
        )


@dataclass(frozen=True)
class Context:
    """The machine a kernel is prepared for.

    Attributes:
        threads: Threads it may use.
        isa: One of the instruction sets, or ``numpy`` where there is no native module.
        pool: The native thread pool.
    """

    threads: int = 1
    isa: str = "numpy"
    pool: Any = None

    @classmethod
    def here(cls, threads: int = 1, isa: str = "native") -> Context:
        """This machine; raises UnsupportedError without native kernels."""
        from dlas.kernels.extension import choose_isa

        return cls(threads, choose_isa(isa), need_native().Context(threads))

    @property
    def block(self) -> int:
        """Channels of a block."""
        return BLOCK.get(self.isa, 4)


class Kernel(ABC):
    """One way to compute one operator.

    Class attributes:
        ops: ONNX operators it computes.
        summary: One line for ``dlas list``.
        version: Raised when it becomes faster or slower, so that old timings are not believed.
        exact: False where results differ from the reference by more than rounding (Winograd).
        in_place: Inputs whose memory the first output may take when both lie alike.
    """

    name: ClassVar[str]
    ops: ClassVar[tuple[str, ...]]
    summary: ClassVar[str]
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    in_place: ClassVar[tuple[int, ...]] = ()
    Options = NoOptions

    @classmethod
    def missing(cls) -> str:
        """What this machine lacks for it, or an empty string."""
        return ""

    def refuses(self, node: Node, context: Context) -> str:
        """Why it cannot compute this node, or an empty string. ``node.op`` is one of :attr:`ops` already."""
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Layouts it can work in, the preferred first; plain unless overridden."""
        return (Form.all(node, Layout.PLAIN),)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Estimated seconds on one thread; only comparisons matter. The default moves bytes and nothing else."""
        size = sum(
            int(np.prod(o.shape, dtype=np.int64)) for o in (*node.inputs, *node.outputs) if o is not None
        )
        return 1e-6 + 4e-10 * size

    @abstractmethod
    def prepare(
        self, node: Node, inputs: Sequence[Storage | None], outputs: Sequence[Storage], context: Context
    ) -> Any:
        """Pack the weights once: a native ``Kernel``, or a :class:`PythonLayer`."""


class NativeKernel(Kernel):
    """A kernel whose work is done by the native layer of the same operator and name.

    The native layer is given :meth:`attributes` and the constants of the node as they are in ONNX.
    """

    rate: ClassVar[float] = 1.0  # share of the peak that it reaches, for the estimate

    @classmethod
    def missing(cls) -> str:
        """Native kernels need a build with a compiler."""
        return missing_native()

    def attributes(self, node: Node) -> dict[str, Any]:
        """What the native layer reads: the node's attributes."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in node.attributes.items()}

    def constants(self, node: Node) -> list[np.ndarray | None]:
        """One per input: the constant the native layer is given, or None."""
        return [None if i is None else i.constant for i in node.inputs]

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """MACs (elements, where there are none) at :attr:`rate` of 3 GHz and one FMA per cycle."""
        return 1e-6 + (node.macs or node.output.size) / (3e9 * context.block * self.rate)

    def prepare(
        self, node: Node, inputs: Sequence[Storage | None], outputs: Sequence[Storage], context: Context
    ) -> Any:
        """The native kernel; raises UnsupportedError with its own reason."""
        from dlas.core.errors import UnsupportedError

        native = need_native()
        given = []
        for constant, form in zip(self.constants(node), inputs, strict=True):
            if constant is not None:
                given.append(np.ascontiguousarray(constant))
            else:
                given.append(None if form is None else form.spec)
        try:
            return native.Kernel(
                context.pool,
                context.isa,
                node.op,
                self.name,
                self.attributes(node),
                given,
                [o.spec for o in outputs],
            )
        except (RuntimeError, ValueError) as error:
            raise UnsupportedError(f"{node.op} {node.name!r}: {error}") from error


class PythonLayer(ABC):
    """A prepared layer that is computed in Python; what a plug-in in Python returns from ``prepare``."""

    workspace: int = 0  # bytes of scratch

    @abstractmethod
    def run(
        self, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray], scratch: np.ndarray
    ) -> None:
        """Write ``outputs`` (views of the engine's memory). It must not keep any of them."""
