"""The documentation does what it says: every command and every Python block on every page is run."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from docs_blocks import ROOT, Block, Command, anchors, blocks, links, pages

import dlas
from dlas.cli.main import run_command
from dlas.core.figure import Source
from dlas.core.options import describe_options
from dlas.core.timing import Protocol
from dlas.explore.spec import _TABLES, AttackSpec, DataSpec, Limits, ModelSpec, StudyOptions
from dlas.verify.differential import DEGENERATE_SHARE, SIGNIFICANT, Verdict, excess_p
from places import find_data

PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages()]
KNOWN_MARKS = {"needs", "slow", "file", "not run"}


@pytest.fixture
def workplace(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder that looks like a checkout, with one cache for all pages, also of several test processes."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    monkeypatch.setenv("DLAS_CACHE", str(shared / "docs-cache"))
    data = find_data()
    if data is not None:
        monkeypatch.setenv("DLAS_DATA", str(data))
    for name in ("examples", "benchmarks", "scripts", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def is_slow(page: Path) -> bool:
    return any("slow" in block.marks for block in blocks(page))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_does_what_the_page_says(page: Path, workplace: Path) -> None:
    run_page(page, with_slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if is_slow(p.values[0])])  # type: ignore[arg-type]
def test_slow_blocks_do_what_the_page_says(page: Path, workplace: Path) -> None:
    run_page(page, with_slow=True)


def run_page(page: Path, *, with_slow: bool) -> None:
    """Run a page's blocks in order, in the current folder; one namespace for its Python."""
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        assert set(block.marks) <= KNOWN_MARKS, f"{where}: unknown mark in {block.marks}"
        if "file" in block.marks:
            Path(block.marks["file"]).write_text(block.text)
        elif "not run" in block.marks:
            assert block.marks["not run"], f"{where}: say why it is not run"
        elif ("slow" in block.marks and not with_slow) or (block.marks.get("needs") and find_data() is None):
            continue
        elif block.language == "console":
            assert block.commands, f"{where}: a console block without a $ line"
            for command in block.commands:
                run_line(command, where)
        elif block.language == "python":
            run_python(block, where, namespace)
        elif block.language == "toml":
            tomllib.loads(block.text)


def run_line(command: Command, where: str) -> None:
    """Run one command; those of other programs (make, git, pip) are for the reader only."""
    if not command.runnable:
        return
    if re.search(r"[|><]", command.text) or command.text.startswith("python"):
        binaries = Path(sys.executable).parent
        line = f'PATH="{binaries}:$PATH"; set -o pipefail; {command.text}'
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300)
        code, told = done.returncode, done.stdout + done.stderr
    else:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = run_command(shlex.split(command.text)[1:])
        told = out.getvalue()
    assert code == command.code, (
        f"{where}: $ {command.text}\nleft with {code}, not {command.code}:\n{told[-3000:]}"
    )


def run_python(block: Block, where: str, namespace: dict[str, object]) -> None:
    code = compile("\n" * block.line + block.text, where, "exec")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, namespace)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        place = (page.parent / target).resolve() if target else page
        if not place.exists() or (anchor and place.suffix == ".md" and anchor not in anchors(place)):
            broken.append(link)
    assert broken == []


def test_every_page_is_linked_from_the_index() -> None:
    docs = ROOT / "docs"
    linked = {(docs / link.partition("#")[0]).resolve() for link in links(docs / "README.md")}
    assert [p.name for p in docs.rglob("*.md") if p.name != "README.md" and p.resolve() not in linked] == []


def test_stack_files_page_lists_every_key_with_its_default() -> None:
    """Against the dataclasses that read the file: a new key or another default must be written down."""
    text = (ROOT / "docs" / "stack-files.md").read_text()
    sections = dict(re.findall(r"^## `\[(\w+)\]`.*?$(.*?)(?=^## |\Z)", text, flags=re.M | re.S))
    assert set(sections) == set(_TABLES) - {"kernels"}
    for table, kind in {
        "data": DataSpec,
        "model": ModelSpec,
        "study": StudyOptions,
        "limits": Limits,
        "attack": AttackSpec,
    }.items():
        rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", sections[table], flags=re.M))
        defaults = {f.name: toml_text(f.default) for f in dataclasses.fields(kind)}
        if table == "model":
            rows.pop("preprocessing")
        assert rows == defaults, table
        for name, facts in describe_options(kind).items():
            for choice in facts.get("choices", ()):
                assert f"`{choice}`" in sections[table], f"[{table}] {name} = {choice}"
    for table in ("compress", "runtime", "hardware"):
        assert set(re.findall(r"^\| `(\w+)` \|", sections[table], flags=re.M)) == set(_TABLES[table])


@pytest.mark.parametrize("page", [p for p in PAGES if "how-to/add-a" not in p.id])  # type: ignore[operator]
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:src|tests|scripts|examples|benchmarks|docs)/[\w./-]+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_python_page_names_the_whole_public_face() -> None:
    table = (ROOT / "docs" / "python.md").read_text().partition("## All public names")[2]
    rows = re.findall(r"^\| \w+ \| (.*) \|$", table, flags=re.M)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(set(dlas.__all__) - {"__version__"})


def test_fixed_texts_of_the_measuring_page_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "measuring.md").read_text()
    cells = (re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if line.startswith("| "))
    rows = {first: rest for first, *rest in cells}
    for column, protocol in enumerate((Protocol(), Protocol.quick())):
        assert rows["warm-up, at least"][column] == f"{protocol.warmup_runs} runs and {protocol.warmup_s:g} s"
        assert rows["rounds"][column] == str(protocol.rounds)
        assert rows["samples, at least"][column] == f"{protocol.min_samples}, and {protocol.min_s:g} s"
        assert rows["time per candidate, at most"][column] == f"{protocol.max_s:g} s"
    verdicts = re.findall(r"^\| `([a-z-]+)` \| .* \| (yes|no) \|$", text, flags=re.M)
    assert {(str(v), "yes" if v.right else "no") for v in Verdict if v is not Verdict.CRASH} == set(verdicts)
    assert re.findall(
        r"^\| `(\w+)` \|", text.partition("##")[2].partition("## Latency")[0], flags=re.M
    ) == list(Source)
    assert f"below {SIGNIFICANT}" in text
    assert f"{DEGENERATE_SHARE:.0%}".replace("%", " %") in text
    assert f"{excess_p(5, 80, 0, 80):.3f}, still noise; 6 give {excess_p(6, 80, 0, 80):.3f}" in text.replace(
        "\n", " "
    )


def toml_text(value: object) -> str:
    """A default as it would stand in the file."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(toml_text, value)) + "]"
    return str(value)


def test_a_failing_command_is_noticed(workplace: Path) -> None:
    with pytest.raises(AssertionError, match="left with 2, not 0"):
        run_line(Command("dlas info no-such-file.onnx"), "here")
    run_line(Command("dlas info no-such-file.onnx", 2), "here")


def test_marks_and_commands_are_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- needs: data, slow -->\n```console\n$ dlas a \\\n    b  # exit 1\noutput\n$ make x\n```\n\n"
        "<!-- slow -->\ntext\n```python\nx\n```\n[a](b.md) `[c](d)`\n"
    )
    first, second = blocks(page)
    assert first.marks == {"needs": "data", "slow": ""}
    assert first.commands == [Command("dlas a b", 1), Command("make x")]
    assert [c.runnable for c in first.commands] == [True, False]
    assert second.marks == {}
    assert "b.md" in links(page)
