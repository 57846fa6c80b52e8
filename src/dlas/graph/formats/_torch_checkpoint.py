"""Weights out of a PyTorch checkpoint, and the network they belong to."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlas.core.errors import ModelError, OptionError
from dlas.core.options import Choice
from dlas.graph.preprocessing import Preprocessing
from dlas.graph.torch_export import first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

State = Mapping[str, "torch.Tensor"]
Shapes = Mapping[str, tuple[int, ...]]

_PLACES = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_COUNTER = "num_batches_tracked"  # bookkeeping of newer batch normalisation; older checkpoints lack it
_OWN_FUNCTION = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
_CODE = re.compile(
    r"GLOBAL |Unsupported (class|global)|Trying to (call|set|instantiate)"
)  # what torch says of it
_DRAWS = ("normal_", "uniform_")
# torch stores tensors uncompressed, so an archive that grows far beyond its size is not one of its own.
_BLOAT = 20
_BLOAT_BYTES = 64 * 2**20
_VIEWED_ELEMENTS = 2**20  # of a tensor that is a view of fewer


@dataclass(frozen=True)
class Built:
    """A network with its weights loaded, ready to be exported."""

    module: nn.Module
    example: torch.Tensor
    preprocessing: Preprocessing | None
    architecture: str


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint by name, ready for :func:`assemble`.

    Raises:
        ModelError: Truncated, damaged, holding Python code, or without finite tensors.
    """
    return tidied_state(path.name, read_tensors(path)[0])


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors of a checkpoint by their names in the file, and the plain values beside them.

    Raises:
        ModelError: Truncated, damaged, holding Python code, or without tensors.
    """
    import torch

    whole = content = read_weights(path)
    for place in _PLACES:
        if isinstance(content, Mapping) and isinstance(content.get(place), Mapping):
            content = content[place]
            break
    tensors = (
        {str(k): v for k, v in content.items() if isinstance(k, str | int) and isinstance(v, torch.Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise ModelError(
            f"{path.name} holds no weights: its content is {_describe(content)}",
            "save model.state_dict()",
        )
    for name, tensor in tensors.items():
        _check_storage(path, name, tensor)
    plain = {
        str(k): v for k, v in whole.items() if isinstance(k, str | int) and isinstance(v, str | int | float)
    }
    return tensors, plain


def _check_storage(path: Path, name: str, tensor: torch.Tensor) -> None:
    """A few stored bytes can be declared a tensor of any size by repeating them."""
    import torch

    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.is_nested:
        raise ModelError(
            f"{path.name}: {name[:100]!r} is a {tensor.layout} tensor on {tensor.device.type}"
            + (", quantised" if tensor.is_quantized else ""),
            "save model.state_dict() with plain tensors",
        )
    held = tensor.untyped_storage().nbytes() // max(1, tensor.element_size())
    if tensor.numel() > max(held, _VIEWED_ELEMENTS):
        raise ModelError(
            f"{path.name}: {name[:100]!r} has the shape {list(tensor.shape)} but holds {held} values",
            "save it again, with .contiguous()",
        )


def tidied_state(file: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``tensors`` without the prefixes that wrappers add to their names.

    Raises:
        ModelError: One holds NaN or infinity.
    """
    import torch

    state = dict(tensors)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{file}: weight {name!r} holds NaN or infinity", "train or download it again")
    return state


def read_weights(path: Path) -> Any:
    """Content of a file written by ``torch.save``, tensors and plain containers only."""
    import pickle

    import torch

    if is_archive(path):
        check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # guesses about the file's origin; what matters is raised
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        if _CODE.search(str(error)):
            name = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise ModelError(
                f"{path.name} holds Python code{f' ({name[1]})' if name else ''}, which dlas does not run",
                "save model.state_dict() instead of the model, or export it with torch.export or to ONNX",
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # a damaged file fails anywhere inside the reader
        if "TorchScript" in str(error):
            raise ModelError(
                f"{path.name} is a TorchScript program, not weights",
                "save model.state_dict(), or export it with torch.export or to ONNX",
            ) from error
        raise _damaged(path, error) from error


def is_archive(path: Path) -> bool:
    """Whether ``path`` is a zip archive.

    Raises:
        ModelError: It is one that spans several files.
    """
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise _damaged(path, error) from error


def check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to far more than it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            names = Counter(entry.filename for entry in entries)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError) as error:
        raise _damaged(path, error) from error
    size = path.stat().st_size
    doubled = next((name for name, count in names.items() if count > 1), None)
    if doubled is not None:
        raise ModelError(
            f"{path.name} has two entries called {doubled[:100]!r}", "save it again with torch.save"
        )
    if total > size + min(_BLOAT * size, _BLOAT_BYTES):
        raise ModelError(
            f"{path.name} is {size} bytes but claims to unpack to {total}: refused as a zip bomb",
            "save it again with torch.save",
        )


def assemble(file: str, state: State, architecture: str, shape: tuple[int, ...]) -> Built:
    """The network named by ``architecture`` (or recognised) with the weights of ``state``.

    Raises:
        ModelError: No architecture fits, or the one named does not; says which tensors differ.
        UnknownNameError: No such architecture.
        OptionError: A function of the user's own cannot be found or does not return a module.
    """
    from dlas.graph.formats.torch import architectures

    named = architecture.partition(":")[0] in architectures.names()
    if architecture and not named and _OWN_FUNCTION.match(architecture):
        module = _own_module(architecture)
        size = shape or tuple(getattr(module, "input_shape", ()))
        if not size:
            raise OptionError("torch: shape", "", "the shape of one sample, such as 3x32x32")
        preprocessing = getattr(module, "preprocessing", None)
        preprocessing = preprocessing if isinstance(preprocessing, Preprocessing) else None
        spelled = architecture
    else:
        if architecture:
            choice = Choice.parse(architecture)
            member = architectures.get(choice.name)(**choice.as_dict())
        else:
            member = _recognise(file, state)
        module, size, preprocessing, spelled = (
            member.build(),
            shape or member.input_shape,
            member.preprocessing,
            member.spelled(),
        )
    _fill(file, spelled, module, state)
    import torch

    return Built(module, torch.zeros(2, *size), preprocessing, spelled)


def _recognise(file: str, state: State) -> Any:
    from dlas.graph.formats.torch import architectures

    shapes = _shapes(state)
    close: list[tuple[int, str, list[str]]] = []
    fitting = []
    for _, member in architectures.members():
        read = member.options_from(shapes)
        tried = [member(**{**options, **read}) for options in member.candidates()]
        # What can be read off the checkpoint makes many candidates one, and building each is what takes time.
        for found in {f.spelled(): f for f in tried}.values():
            differences = _differences(_meta_shapes(found.build), shapes)
            if not differences:
                fitting.append(found)
            close.append((len(differences), found.spelled(), differences))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ModelError(
            f"{file}: the weights fit several architectures: " + ", ".join(f.spelled() for f in fitting),
            "name one with architecture=",
        )
    close.sort(key=lambda entry: entry[0])
    told = "; ".join(
        f"{spelled} ({count} tensors differ: {', '.join(which[:3])}{', …' if count > 3 else ''})"
        for count, spelled, which in close[:2]
    )
    raise ModelError(
        f"{file}: its {len(shapes)} tensors fit no known architecture; closest: {told or 'none'}",
        "give architecture=package.module:function and shape=3x32x32 for a network of your own; "
        "`dlas info` lists the tensors",
    )


def _meta_shapes(build: Callable[[], nn.Module]) -> Shapes:
    """Shapes without taking memory for the weights."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Uninitialised(TorchFunctionMode):
        # Drawing numbers that are not stored loads a compiler (a second) and takes longer than all the rest.
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in _DRAWS:
                return args[0] if args else kwargs["tensor"]
            return func(*args, **(kwargs or {}))

    with torch.device("meta"), Uninitialised():
        return _shapes(build().state_dict())


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in state.items() if not name.endswith(_COUNTER)}


def _differences(wanted: Shapes, given: Shapes) -> list[str]:
    missing = [f"{n} is missing" for n in wanted if n not in given]
    shapes = [
        f"{n} is {list(given[n])} instead of {list(wanted[n])}"
        for n in wanted
        if n in given and given[n] != wanted[n]
    ]
    return missing + shapes + [f"{n} is unknown to it" for n in given if n not in wanted]


def _fill(file: str, spelled: str, module: nn.Module, state: State) -> None:
    differences = _differences(_shapes(module.state_dict()), _shapes(state))
    if differences:
        raise ModelError(
            f"{file} does not fit {spelled}: {'; '.join(differences[:4])}"
            + (f" and {len(differences) - 4} more" if len(differences) > 4 else ""),
            "check the architecture and its options",
        )
    try:
        module.load_state_dict(dict(state), strict=False)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ModelError(f"{file}: the weights cannot be loaded: {first_line(error)}") from error


def _own_module(spelled: str) -> nn.Module:
    """Call the function the user named; this is the user's code, never the file's."""
    from torch import nn

    place, _, name = spelled.partition(":")
    with _current_folder_importable():
        try:
            factory = getattr(importlib.import_module(place), name)
            module = factory()
        except Exception as error:
            raise OptionError(
                "torch: architecture",
                spelled,
                "a function package.module:function that returns a torch.nn.Module",
                f"it failed: {type(error).__name__}: {first_line(error)}",
            ) from error
    if not isinstance(module, nn.Module):
        raise OptionError(
            "torch: architecture", spelled, f"a torch.nn.Module, it returned {_describe(module)}"
        )
    return module.eval()


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """At the end of the search path, so that a file in it cannot take the place of an installed module."""
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _damaged(path: Path, error: Exception) -> ModelError:
    why = first_line(error)
    if "weights_only" in why:  # torch's advice to switch its protection off
        why = "it holds no weights that PyTorch would read without running code"
    return ModelError(
        f"{path.name} is truncated or damaged: {why}",
        "download or save it again",
    )


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = [repr(key[:40]) if isinstance(key, str) else type(key).__name__ for key in list(content)[:5]]
        return "a dictionary of " + (", ".join(keys) or "nothing")
    return f"a {type(content).__name__}"
