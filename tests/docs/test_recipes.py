"""The recipes for new members work: their files are taken from the page, put into a tree or a package, and used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from docs_blocks import ROOT, blocks, file_block

HOW_TO = ROOT / "docs" / "how-to"

# page, file, family, class, folder of the tree, test file
RECIPES = [
    ("add-a-method", "mantissa.py", "method", "Mantissa", "compress/quantize", "test_mantissa.py"),
    ("add-a-backend", "onnx_reference.py", "backend", "OnnxReference", "runtime/backends", "test_onnx_reference.py"),
    ("add-a-format", "onnxz.py", "format", "OnnxZ", "graph/formats", "test_onnxz.py"),
    ("add-a-dataset", "csv_pixels.py", "loader", "CsvPixels", "data/loaders", "test_csv_pixels.py"),
    ("add-a-kernel", "numpy_gemm.py", "kernel", "NumpyGemm", "kernels/layers/dense", "test_numpy_gemm.py"),
    ("add-a-target", "old_pc.py", "target", "OldPc", "hardware/targets", "test_old_pc.py"),
    (
        "add-an-accelerator", "ternary_array.py", "accelerator", "TernaryArray", "hardware/accelerators",
        "test_ternary_array.py",
    ),
]  # fmt: skip

# Puts folders onto the paths that the registry walks (as if the files lay in the tree), lists, runs the tests.
_IN_TREE = """
import importlib, json, pathlib, sys
folders, *tests = sys.argv[1:]
for folder, tree in json.loads(folders).items():
    importlib.import_module("dlas." + folder).__path__.append(tree)
from dlas.cli.main import run_command
assert run_command(["list", "--json"]) == 0
sys.stdout = pathlib.Path("tests.log").open("w")
import pytest
sys.exit(pytest.main(["-v", "-p", "no:cacheprovider", "--rootdir", ".", *tests]))
"""


def name_of(module: str) -> str:
    """As the registry knows the file."""
    return module.removesuffix(".py").replace("_", "-")


def python(code: str, *arguments: str, path: Path | None = None, cwd: Path) -> str:
    """Run Python in a process of its own; its standard output."""
    env = {**os.environ, "PYTHONPATH": str(path or ""), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=env,
        cwd=cwd,
        timeout=300,
    )
    log = cwd / "tests.log"
    assert done.returncode == 0, (log.read_text() if log.exists() else done.stdout)[-3000:] + done.stderr[
        -3000:
    ]
    return done.stdout


def test_files_in_the_tree_are_listed_and_pass_their_tests(tmp_path: Path) -> None:
    """All recipes in one process: what takes the time is to start it."""
    folders = {}
    for page, module, _, _, folder, test in RECIPES:
        tree = tmp_path / folder
        tree.mkdir(parents=True)
        (tree / module).write_text(file_block(HOW_TO / f"{page}.md", module))
        (tmp_path / test).write_text(file_block(HOW_TO / f"{page}.md", test))
        folders[folder.replace("/", ".")] = str(tree)
    listed = json.loads(python(_IN_TREE, json.dumps(folders), *(r[-1] for r in RECIPES), cwd=tmp_path))
    told = (tmp_path / "tests.log").read_text()
    for _, module, family, _, _, test in RECIPES:
        found = [bool(c["summary"]) for c in listed if (c["family"], c["name"]) == (family, name_of(module))]
        assert found == [True], module
        assert re.search(rf"^{re.escape(test)}::\w+.* PASSED", told, flags=re.M), told
    assert "SKIPPED" not in told


@pytest.mark.parametrize(
    ("page", "module", "family", "kind", "folder", "test"), RECIPES, ids=[r[0] for r in RECIPES]
)
def test_a_recipe_touches_at_most_three_files(
    page: str, module: str, family: str, kind: str, folder: str, test: str
) -> None:
    text = (HOW_TO / f"{page}.md").read_text()
    table = text.partition("| --- | --- |")[2].partition("\n\n")[0].strip().splitlines()
    assert 1 <= len(table) <= 3
    assert f"`src/dlas/{folder}/{module}`" in text
    assert any(line.endswith(f"{test}` |") or f"/{test}`" in line for line in table)
    assert any("pytest" in b.text for b in blocks(HOW_TO / f"{page}.md") if b.language == "console")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder that looks like site-packages with a third party's distribution in it."""
    place = tmp_path / "site"
    code = place / "my_dlas_methods"
    code.mkdir(parents=True)
    (code / "__init__.py").write_text("")
    points: dict[str, list[str]] = {}
    for page, module, family, kind, *_ in RECIPES:
        (code / module).write_text(file_block(HOW_TO / f"{page}.md", module))
        stem = module.removesuffix(".py")
        points.setdefault(family, []).append(f"{stem.replace('_', '-')} = my_dlas_methods.{stem}:{kind}")
    points["method"].append("broken = my_dlas_methods.no_such_module:Nothing")
    information = place / "my_dlas_methods-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-dlas-methods\nVersion: 1.0\n")
    text = "".join(f"[dlas.{family}]\n" + "\n".join(lines) + "\n\n" for family, lines in points.items())
    (information / "entry_points.txt").write_text(text)
    return place


CLI = "from dlas.cli.main import main\nmain()"


def test_plugins_of_another_distribution_are_listed(package: Path, tmp_path: Path) -> None:
    listed = json.loads(python(CLI, "list", "--json", path=package, cwd=tmp_path))
    found = {(c["family"], c["name"]) for c in listed}
    assert {(family, name_of(module)) for _, module, family, *_ in RECIPES} <= found
    broken = next(c for c in listed if (c["family"], c["name"]) == ("method", "broken"))
    assert broken["missing"].startswith("broken: ModuleNotFoundError")


def test_a_method_of_another_distribution_runs(package: Path, tmp_path: Path) -> None:
    done = python(
        CLI, "compress", "digits-cnn", "mantissa", "--bits", "4", "--json", path=package, cwd=tmp_path
    )
    assert json.loads(done)["history"][-1]["options"] == {"bits": 4}
    assert (tmp_path / "digits-cnn-mantissa.onnx").exists()


def test_a_backend_of_another_distribution_runs_in_a_worker(package: Path, tmp_path: Path) -> None:
    arguments = [
        "compare",
        "digits-cnn",
        "--data",
        "digits",
        "--paths",
        "onnx-reference",
        "--rows",
        "20",
        "--json",
    ]
    rows = json.loads(python(CLI, *arguments, path=package, cwd=tmp_path))["paths"]
    assert [r["verdict"] for r in rows if r["path"] == "onnx-reference"] == ["equal"]


def test_the_package_file_on_the_page_names_the_method() -> None:
    written = tomllib.loads(file_block(HOW_TO / "add-a-method.md", "pyproject.toml"))
    assert written["project"]["entry-points"]["dlas.method"] == {
        "mantissa": "my_dlas_methods.mantissa:Mantissa"
    }
