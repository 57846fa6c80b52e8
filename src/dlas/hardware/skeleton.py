"""The start of a new accelerator: a module and a test, small enough to read at once."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from dlas.core.errors import DlasError, OptionError
from dlas.core.files import write_atomic

_MODULE = '''"""{title}: say what it computes, and whose idea it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlas.core.options import option
from dlas.hardware.accelerator import accelerators
from dlas.hardware.accelerators._gemm.accelerator import GemmAccelerator
from dlas.hardware.accelerators._gemm.geometry import Geometry

if TYPE_CHECKING:
    from dlas.hardware.rtl.arrays import SumArray


@dataclass(frozen=True)
class {title}Options:
    """Options of {name}."""

    rounding: str = option("double", "of sums: as TFLite's reference kernels, or once", choices=("double", "single"))


@accelerators.register("{name}")
class {title}(GemmAccelerator):
    """One unit of 4 x 4 sums; the array is where to begin."""

    name = "{name}"
    summary = "one line for `dlas hw list`"
    Options = {title}Options
    options: {title}Options

    @property
    def geometry(self) -> Geometry:
        """Sizes: driver, cycle model and hardware all follow them."""
        return Geometry(units=1, rows=4, columns=4, depth=4, array_latency=3, weight_words=256, input_words=256)

    def array(self) -> SumArray:
        """What multiplies."""
        from amaranth.hdl import Value

        from dlas.hardware.rtl.arrays import VectorArray

        class Array(VectorArray):
            """An array with a product of its own."""

            def product(self, code: Value, pixel: Value) -> Value:
                """The signed product of a weight and a pixel, combinational."""
                return code.as_signed() * pixel

        return Array(1, 4, 4, 4)
'''

_TEST = '''"""{title}: its model is its hardware."""

from __future__ import annotations

from {module} import {title}

from dlas.hardware.verification import verify


def test_model_and_rtl_agree() -> None:
    found = verify({title}(), trials=20)
    assert found.passed, found.failures
'''


def write_skeleton(name: str, folder: Path) -> list[Path]:
    """Write ``NAME.py`` and ``test_NAME.py``.

    The module becomes a member in ``dlas/hardware/accelerators/``, or through the entry point group
    ``dlas.accelerator`` of a package of its own.

    Raises:
        OptionError: The name is not in kebab case, or taken.
        DlasError: The folder does not exist, or a file is there.
    """
    from dlas.hardware.accelerator import accelerators

    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise OptionError("name", name, "lower-case words joined by hyphens, such as my-array")
    if name in accelerators.names():
        raise OptionError("name", name, "a name that no accelerator has")
    if not folder.is_dir():
        raise DlasError(f"{folder} is not a folder", "make it first")
    title = "".join(word.capitalize() for word in name.split("-"))
    places = [(folder / f"{module}.py", _MODULE), (folder / f"test_{module}.py", _TEST)]
    for path, _ in places:
        if path.exists():
            raise DlasError(f"{path} exists", "choose another name or folder")
    for path, text in places:
        write_atomic(path, text.format(name=name, title=title, module=module).encode())
    return [path for path, _ in places]
