"""TensorFlow opens what was found harmless, and traces it into one function from input tensors to output tensors.

The library that wrote a file is tried first: Keras 3, or tf_keras for what Keras 1 and 2 wrote. Keras 3 reads many of
those files as well, but some names changed their meaning (``hard_sigmoid`` is another function), so that it would
answer otherwise without a word.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlas.core.errors import ModelError, OptionError, UnsupportedError
from dlas.core.lazy import distribution_version, installed, optional_import

_LIBRARIES = {"keras": "keras", "tf_keras": "tf-keras"}  # module and distribution


@dataclass(frozen=True)
class Opened:
    """A network that TensorFlow holds.

    Attributes:
        function: Takes one tensor per input, returns a list with one per output.
        inputs: TensorSpec of each input, named.
        outputs: Name of each output.
        layers: Names of the layers of the network itself, empty for a SavedModel.
        loader: Library and version that opened it.
        notes: What else there is to say about it, such as why another library could not.
        model: The Keras model, None for a SavedModel.
    """

    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]
    loader: str
    notes: tuple[str, ...] = ()
    model: Any = None


def tensorflow() -> Any:
    """TensorFlow, quiet and on the processor only.

    Raises:
        MissingDependencyError: It is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Kernels of oneDNN round differently from one machine to the next.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    tf = optional_import("tensorflow", extra="keras", needed_for="reading a Keras file or a SavedModel")
    tf.get_logger().setLevel("ERROR")
    with contextlib.suppress(RuntimeError):  # it was used already, and then keeps the devices it has
        tf.config.set_visible_devices([], "GPU")
    return tf


def open_keras(path: Path, written_by: str) -> Opened:
    """Open a Keras file that has been checked.

    Args:
        path: The file.
        written_by: Version of Keras it names, or an empty string.

    Raises:
        ModelError: No installed library can read it; says why, for each.
        UnsupportedError: The network does not say what goes into it.
    """
    tf = tensorflow()
    old = written_by.startswith(("1.", "2."))
    reasons: list[str] = [f"written by Keras {written_by[:20]}"] if written_by else []
    for module, distribution in sorted(_LIBRARIES.items(), reverse=old):
        if not installed(module):
            reasons.append(f"{distribution} is not installed")
            continue
        loader = f"{distribution} {distribution_version(distribution)}"
        library = optional_import(module, extra="keras", needed_for="reading a Keras file")
        if module == "keras" and library.backend.backend() != "tensorflow":
            reasons.append(f"{loader} is set to the back end {library.backend.backend()}")
            continue
        try:
            model = library.models.load_model(str(path), compile=False, safe_mode=True)
        except Exception as error:  # whatever a library trips over, the next one may read it
            reasons.append(f"{loader} cannot read it: {reason(error)}")
            continue
        return _opened(tf, library, model, loader, tuple(reasons), path.name)
    raise ModelError(f"{path.name}: {'; '.join(reasons)}", "check that it is a complete Keras model")


def open_saved_model(folder: Path, signatures: Sequence[str], wanted: str) -> Opened:
    """Open a SavedModel that has been checked.

    Args:
        folder: The SavedModel.
        signatures: Names it offers.
        wanted: Name to take; empty for ``serving_default``, or the only one.

    Raises:
        OptionError: It has no signature of that name.
        UnsupportedError: It has none, or several and none is the default.
        ModelError: TensorFlow cannot load it.
    """
    name = _signature(folder.name, signatures, wanted)
    tf = tensorflow()
    try:
        program = tf.saved_model.load(str(folder))
        called = program.signatures[name]
        keywords = called.structured_input_signature[1]
        outputs = tuple(called.structured_outputs)
    except Exception as error:  # any fault inside TensorFlow means that the folder is damaged
        raise ModelError(f"{folder.name} cannot be loaded: {reason(error)}", "export it again") from error
    names = tuple(sorted(keywords))
    specs = tuple(tf.TensorSpec(keywords[n].shape, keywords[n].dtype, name=n) for n in names)

    def run(*tensors: Any, held: Any = program) -> list[Any]:  # the program owns the variables
        answer = called(**dict(zip(names, tensors, strict=True)))
        return [answer[o] for o in outputs]

    loader = f"tensorflow {tf.__version__}"
    return Opened(run, specs, outputs, (), loader, (f"signature {name!r} of the SavedModel",))


def _opened(tf: Any, library: Any, model: Any, loader: str, notes: tuple[str, ...], file: str) -> Opened:
    tensors = getattr(model, "inputs", None)
    if not tensors:
        raise UnsupportedError(
            f"{file} does not say the shape of its inputs", "build the network, then save it"
        )
    names = _distinct([t.name.split(":")[0] for t in tensors])
    specs = tuple(tf.TensorSpec(t.shape, t.dtype, name=n) for t, n in zip(tensors, names, strict=True))
    outputs = _distinct(_output_names(tf, model))
    structure = getattr(model, "_inputs_struct", None)
    if structure is None:
        structure = getattr(model, "_nested_inputs", list(tensors))

    def run(*given: Any) -> list[Any]:
        packed = (
            tf.nest.pack_sequence_as(structure, given)
            if isinstance(structure, list | tuple | dict)
            else given[0]
        )
        return tf.nest.flatten(model(packed, training=False))

    layers = tuple(layer.name for layer in all_layers(model))
    return Opened(run, specs, tuple(outputs), layers, loader, notes, model)


def _output_names(tf: Any, model: Any) -> list[str]:
    """The layers that give the outputs, as Keras itself names them."""
    produced = tf.nest.flatten(model.outputs)
    named = [str(n) for n in getattr(model, "output_names", None) or ()]
    if len(named) == len(produced):
        return named
    made_by = [getattr(getattr(t, "_keras_history", None), "operation", None) for t in produced]
    return [str(getattr(o, "name", f"output_{i}")) for i, o in enumerate(made_by)]


def all_layers(model: Any) -> Iterator[Any]:
    """Every layer of a Keras model, those inside other layers included; nothing for None."""
    if model is not None:
        flatten = getattr(model, "_flatten_layers", None)
        yield from flatten(recursive=True, include_self=False) if flatten else model.layers


def _signature(name: str, signatures: Sequence[str], wanted: str) -> str:
    known = ", ".join(sorted(signatures)) or "none"
    if wanted:
        if wanted not in signatures:
            raise OptionError("keras: signature", wanted, f"one of {known}")
        return wanted
    if "serving_default" in signatures:
        return "serving_default"
    if len(signatures) != 1:
        raise UnsupportedError(
            f"{name} has {len(signatures)} signatures ({known}) and none is serving_default",
            "name one: signature=...",
        )
    return signatures[0]


def _distinct(names: list[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        unique, count = name, 1
        while unique in found:
            count += 1
            unique = f"{name}_{count}"
        found.append(unique)
    return found


def reason(error: BaseException) -> str:
    """Why a library of layers failed, in one line: the innermost of the messages that it wraps in each other."""
    text = str(error).rpartition("Exception encountered:")[2]
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), type(error).__name__)
