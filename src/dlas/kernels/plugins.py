"""Layers from outside, compiled: a shared object that speaks the interface of ``native/include/dlas_layer.h``.

Loading one runs its code; it happens only for files that the user names.
"""

from __future__ import annotations

import os
from pathlib import Path

from dlas.core.errors import DlasError, UnsupportedError
from dlas.kernels.extension import need_native
from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layout import Layout, storage

_loaded: dict[str, tuple[str, ...]] = {}


def include_folder() -> Path:
    """Folder of ``dlas_layer.h``, for a compiler's ``-I``."""
    return Path(__file__).parent / "native" / "include"


class PluginKernel(NativeKernel):
    """A layer of a plug-in; it works on plain tensors and is chosen when a rule asks for it or it measures best."""

    rate = 0.01  # nothing is known of its speed: by rule, dlas's own kernels go first

    def refuses(self, node: Node, context: Context) -> str:
        """What the plug-in's ``supports`` says."""
        given = []
        for operand in node.inputs:
            if operand is None:
                given.append(None)
            elif operand.constant is not None:
                given.append(operand.constant)
            else:
                given.append(storage(operand.shape, operand.dtype).spec)
        outputs = [storage(o.shape, o.dtype).spec for o in node.outputs]
        return need_native().refuses(context.isa, node.op, self.name, self.attributes(node), given, outputs)

    def forms(self, node: Node, context: Context) -> tuple[Form, ...]:
        """Plain."""
        return (Form.all(node, Layout.PLAIN),)


def load_plugin(path: str | Path) -> tuple[str, ...]:
    """Load a plug-in and enter its layers as kernels; a second call does nothing.

    Returns:
        Names of its kernels.

    Raises:
        DlasError: The file is missing or no plug-in.
        UnsupportedError: It was built for another version of the interface, or a kernel of its name exists.
    """
    real = os.path.realpath(path)
    if real in _loaded:
        return _loaded[real]
    if not os.path.isfile(real):
        raise DlasError(f"plug-in {path} is not a file", "build it with g++ -shared -fPIC; see add-a-kernel")
    native = need_native()
    before = set(native.kernels())
    try:
        native.load_plugin(real)
    except RuntimeError as error:
        raise UnsupportedError(
            f"{path} is no plug-in for this dlas: {' '.join(str(error).split())}"
        ) from error
    by_name: dict[str, list[str]] = {}
    for _, op, name in sorted(set(native.kernels()) - before):
        if name in kernels.names():
            raise UnsupportedError(f"{path} brings a kernel {name!r}, and dlas has one of that name")
        by_name.setdefault(name, []).append(op)
    for name, ops in by_name.items():
        fields = {
            "name": name,
            "ops": tuple(ops),
            "summary": f"plug-in {Path(real).name}",
            "__module__": real,
        }
        kernels.register(name)(type(f"Plugin_{name}", (PluginKernel,), fields))
    _loaded[real] = tuple(by_name)
    return _loaded[real]
