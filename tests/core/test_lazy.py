"""Libraries that are loaded by their first use."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from dlas.core.lazy import import_late


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that says in its module when it was loaded."""
    name = "late_by_design"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("from late_by_design import part\nvalue = 1\n")
    (tmp_path / name / "part.py").write_text("value = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    for known in (name, f"{name}.part"):
        monkeypatch.delitem(sys.modules, known, raising=False)
    return name


def forget(name: str) -> None:
    for known in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[known]


def test_the_first_attribute_loads_it(package: str) -> None:
    import_late(package)
    late = importlib.import_module(package)
    assert f"{package}.part" not in sys.modules
    assert importlib.util.find_spec(package) is not None
    assert late.value == 1
    assert sys.modules[package] is not late
    assert (sys.modules[package].value, late.part.value) == (1, 2)
    with pytest.raises(AttributeError, match="nothing"):
        _ = late.nothing
    forget(package)


def test_a_submodule_can_be_imported_first(package: str) -> None:
    import_late(package)
    assert importlib.import_module(f"{package}.part").value == 2
    forget(package)


def test_a_module_of_a_package_can_be_late_alone(package: str) -> None:
    import_late(package, "part", "no_such_part")
    loaded = importlib.import_module(package)
    late = sys.modules[f"{package}.part"]
    assert "_real" not in late.__dict__
    assert loaded.value == 1
    assert loaded.part.value == 2
    assert sys.modules[f"{package}.part"] is not late
    forget(package)


def test_what_is_loaded_or_missing_is_left_alone(package: str) -> None:
    loaded = importlib.import_module(package)
    import_late(package)
    assert sys.modules[package] is loaded
    import_late("no_such_library_anywhere")
    assert "no_such_library_anywhere" not in sys.modules
    forget(package)


def test_networks_are_read_without_sympy_and_symbols_still_add_up() -> None:
    program = (
        "import sys; import dlas.graph.model, onnx_ir as ir; assert 'sympy.core' not in sys.modules; "
        "assert str(ir.SymbolicDim('N') + 3) == 'N + 3', ir.SymbolicDim('N') + 3; assert 'sympy.core' in sys.modules; "
        "import sympy; from sympy.core.symbol import Symbol; assert isinstance(Symbol('x'), sympy.Expr)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
