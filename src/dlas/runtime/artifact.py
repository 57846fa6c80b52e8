"""What back ends share: the signature stored beside an artifact, and an Executable that enforces it."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dlas.core.errors import DlasError, ModelError, ShapeError, UnsupportedError
from dlas.core.files import write_atomic
from dlas.graph.model import Model, TensorSpec
from dlas.graph.signature import random_array
from dlas.runtime.backend import Executable

SIGNATURE = "signature.json"
ONNX_FILE = "model.onnx"


@dataclass(frozen=True)
class Port:
    """An input or output of an artifact.

    Attributes:
        name: The Model's name for it.
        shape: Sizes with the batch as built; None is any size.
        dtype: NumPy name of the dtype.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of an artifact, and what its build had to say.

    Attributes:
        batch: Rows per run it was built for.
        inputs: In the Model's order.
        outputs: In the Model's order.
        notes: Anything that differs from what was asked.
    """

    batch: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, model: Model, batch: int, *, free_batch: bool = False, notes: Iterable[str] = ()
    ) -> Signature:
        """Signature of ``model`` with its batch bound; ``free_batch`` leaves a dynamic batch open.

        Raises:
            ShapeError: An input has dynamic dimensions beyond the batch, or another fixed batch than asked for.
        """
        inputs = []
        for spec in model.inputs:
            shape: tuple[int | None, ...] = spec.bound(batch)
            if shape and shape[0] != batch:
                raise ShapeError(
                    f"{spec.name}: the network has a fixed batch of {shape[0]}, {batch} was asked for",
                    f"build it with batch {shape[0]}, or free its batch dimension first",
                )
            if free_batch and spec.shape and isinstance(spec.shape[0], str):
                shape = (None, *shape[1:])
            inputs.append(Port(spec.name, shape, spec.dtype))
        # Sizes of outputs are for the reader's eye only; nothing is refused because of them.
        outputs = tuple(
            Port(s.name, tuple(None if isinstance(d, str) else d for d in s.shape), s.dtype)
            for s in model.outputs
        )
        return cls(batch, tuple(inputs), outputs, tuple(notes))

    def write(self, folder: Path) -> None:
        """Store beside the artifact."""
        write_atomic(folder / SIGNATURE, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> Signature:
        """Read what :meth:`write` stored; raises ModelError when it is missing or damaged."""
        try:
            stored = json.loads((folder / SIGNATURE).read_text())
            ports = {
                side: tuple(Port(p["name"], tuple(p["shape"]), p["dtype"]) for p in stored[side])
                for side in ("inputs", "outputs")
            }
            return cls(int(stored["batch"]), ports["inputs"], ports["outputs"], tuple(stored["notes"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{folder.name} holds no readable {SIGNATURE}: {one_line(error)}", "build the artifact again"
            ) from error

    def check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Raise ShapeError unless ``inputs`` has exactly the declared names, shapes and dtypes."""
        names = [p.name for p in self.inputs]
        if not isinstance(inputs, Mapping):
            raise ShapeError(
                f"inputs are a {type(inputs).__name__}", f"give a dictionary with the arrays of {names}"
            )
        if set(inputs) != set(names):
            raise ShapeError(f"inputs {sorted(inputs)} were given, the network has {names}")
        for port in self.inputs:
            array = np.asarray(inputs[port.name])
            fits = len(array.shape) == len(port.shape) and all(
                want is None or want == got for want, got in zip(port.shape, array.shape, strict=True)
            )
            if not fits or array.dtype.name != port.dtype:
                want = ", ".join("N" if d is None else str(d) for d in port.shape)
                raise ShapeError(
                    f"input {port.name!r} is {array.dtype.name}{list(array.shape)}, "
                    f"this artifact expects {port.dtype}[{want}]"
                )

    def random_inputs(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Inputs that fit, ``batch`` rows; see :func:`dlas.graph.signature.random_array`."""
        rng = np.random.default_rng(seed)
        return {
            p.name: random_array([self.batch if d is None else d for d in p.shape], p.dtype, rng)
            for p in self.inputs
        }


class SignedExecutable(Executable):
    """An Executable that checks its inputs against a signature; members implement :meth:`_infer` and :meth:`_free`.

    Attributes:
        signature: What goes in and comes out.
    """

    def __init__(self, signature: Signature, notes: Sequence[str] = ()) -> None:
        self.signature = signature
        self.notes = (*signature.notes, *notes)
        self._closed = False

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See :meth:`Executable.run`."""
        self._check(inputs)
        return {p.name: a for p, a in zip(self.signature.outputs, self._infer(inputs), strict=True)}

    def close(self) -> None:
        """Give back what the engine holds; calling it again does nothing."""
        if not self._closed:
            self._closed = True
            self._free()

    def _check(self, inputs: Mapping[str, np.ndarray]) -> None:
        if self._closed:
            raise DlasError("this executable was closed", "load the artifact again")
        self.signature.check(inputs)

    @abstractmethod
    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """Outputs in order, as arrays that nothing else refers to; ``inputs`` were checked."""

    @abstractmethod
    def _free(self) -> None:
        """Let go of the engine."""


def write_onnx(model: Model, folder: Path) -> Path:
    """Store ``model`` as ``model.onnx`` in ``folder``."""
    path = folder / ONNX_FILE
    write_atomic(path, model.to_bytes())
    return path


def artifact_file(folder: Path, name: str) -> Path:
    """Path of a file of an artifact; raises ModelError when it is not there."""
    path = folder / name
    if not path.is_file():
        raise ModelError(f"{folder.name} holds no {name}", "build the artifact again")
    return path


def damaged(path: Path, error: Exception) -> ModelError:
    """An engine's error about a file it cannot read, as one line of ours."""
    return ModelError(f"{path.name} is damaged: {one_line(error)}", "build the artifact again")


def unbound_dimensions(model: Model) -> str:
    """Names the inputs with dynamic dimensions beyond the batch, as a reason; empty if there are none."""
    open_ended: list[TensorSpec] = [s for s in model.inputs if any(isinstance(d, str) for d in s.shape[1:])]
    if not open_ended:
        return ""
    return "dynamic dimensions beyond the batch: " + ", ".join(f"{s.name}{list(s.shape)}" for s in open_ended)


def foreign_operators(model: Model, *domains: str) -> str:
    """Names operators outside the ONNX standard and ``domains``, as a reason; empty if there are none."""
    known = {"", "ai.onnx", *domains}
    foreign = sorted(
        {f"{n.domain}::{n.op_type}" for n in model.ir.graph.all_nodes() if n.domain not in known}
    )
    return "operators it does not know: " + ", ".join(foreign) if foreign else ""


def refused(engine: str, error: Exception) -> UnsupportedError:
    """An engine's own error as one line of ours."""
    return UnsupportedError(
        f"{engine} refuses this network: {one_line(error)}", "`dlas compare` shows which back ends take it"
    )


def one_line(error: BaseException, limit: int = 300) -> str:
    """First telling line of a library's message, without its stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
