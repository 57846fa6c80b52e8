"""Stack files: what they may say, and what is said about those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlas.core.errors import DlasError, OptionError
from dlas.explore.space import Pipeline
from dlas.explore.spec import embedded_spec, read_pipelines, read_spec, read_specs

GOOD = """
name = "mine"
[data]
path = "rows.parquet"
[model]
path = "net.onnx"
[model.preprocessing]
scale = 0.5
[compress]
pipeline = ["int8", { method = "magnitude", sparsity = [0.5, 0.8] }, ["channel:ratio=0.5", "int8"]]
[runtime]
backend = ["onnxruntime", "tvm:opt=O3"]
threads = [1, 2]
[study]
design = "one-at-a-time"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "stack.toml"
    path.write_text(text)
    return path


def test_a_file_becomes_a_space_with_the_original_first(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path, GOOD))
    assert spec.name == "mine"
    assert [str(p) for p in spec.space.compress] == [
        "none",
        "int8",
        "magnitude:sparsity=0.5",
        "magnitude:sparsity=0.8",
        "channel:ratio=0.5 + int8",
    ]
    assert [str(b) for b in spec.space.backends] == ["onnxruntime", "tvm:opt=O3"]
    assert spec.preprocessing == {"scale": 0.5}
    assert spec.folder == tmp_path


def test_grid_has_as_many_stacks_as_the_product_and_starts_with_the_baseline(tmp_path: Path) -> None:
    space = read_spec(write(tmp_path, GOOD)).space
    grid = space.stacks("grid")
    assert len(grid) == len(set(grid)) == 5 * 2 * 2
    assert grid[0] == space.baseline
    assert str(grid[0].compress) == "none"


def test_one_at_a_time_changes_one_axis(tmp_path: Path) -> None:
    space = read_spec(write(tmp_path, GOOD)).space
    stacks = space.stacks("one-at-a-time")
    assert len(stacks) == 1 + 4 + 1 + 1


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (GOOD.replace("threads =", "thread ="), 13, "'thread' .* did you mean 'threads'|thread.*threads"),
        (GOOD.replace("[runtime]", "[runtimes]"), 11, "runtimes.*'runtime'"),
        (GOOD.replace('path = "net.onnx"', 'pathh = "net.onnx"'), 6, "pathh.*'path'"),
        (GOOD.replace("design = ", "desing = "), 15, "desing.*'design'"),
    ],
)
def test_an_unknown_key_is_named_with_file_line_and_nearest_key(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DlasError, match=words) as caught:
        read_spec(path)
    assert str(caught.value).startswith(f"{path}:{line}:")


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("threads = [1, 2]", "threads = [0]"),
        GOOD.replace("threads = [1, 2]", 'threads = ["two"]'),
        GOOD.replace('"one-at-a-time"', '"all"'),
        GOOD.replace('path = "rows.parquet"', "path = 3\nrows = 'many'"),
        GOOD.replace('"int8", {', '"int8 + ", {'),
        GOOD.replace("[compress]", "compress = 3\n[compress]"),
        GOOD.replace("[study]", "[study]\nobjectives = [1]"),
        GOOD.replace("[study]", '[study]\nobjectives = ["most:top1"]'),
        GOOD.replace("[study]", '[study]\nobjectives = ["min:"]'),
    ],
)
def test_a_value_that_does_not_fit_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DlasError):
        read_spec(write(tmp_path, text))


def test_overrides_win_and_are_kept_for_the_report(tmp_path: Path) -> None:
    spec = read_spec(
        write(tmp_path, GOOD), {"data.path": "other.parquet", "runtime.threads": "[4]", "data.rows": "10"}
    )
    assert spec.data.path == "other.parquet"
    assert spec.data.rows == 10
    assert spec.space.threads == (4,)
    assert "--set data.path=other.parquet" in spec.text


def test_an_override_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DlasError, match=r"TABLE\.KEY=VALUE"):
        read_spec(write(tmp_path, GOOD), {"threads": "2"})


def test_missing_and_broken_files_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(DlasError, match="no such file"):
        read_spec(tmp_path / "none.toml")
    with pytest.raises(DlasError, match="not valid TOML"):
        read_spec(write(tmp_path, "[data"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DlasError, match="cannot be read"):
        read_spec(binary)


def test_lists_in_a_method_table_are_expanded() -> None:
    found = read_pipelines([{"method": "channel", "ratio": [0.25, 0.5], "finetune-epochs": 1}])
    assert [str(p) for p in found] == [
        "channel:finetune_epochs=1,ratio=0.25",
        "channel:finetune_epochs=1,ratio=0.5",
    ]


def test_a_pipeline_reads_back_what_it_prints() -> None:
    for text in ("none", "int8", "channel:ratio=0.5 + int8:per_channel=false"):
        assert str(Pipeline.parse(text)) == text
    with pytest.raises(OptionError):
        Pipeline.parse("none + int8")


def test_the_embedded_default_is_a_valid_study() -> None:
    spec = embedded_spec()
    assert spec.name == "digits-cnn"
    assert len(spec.space.stacks("grid")) >= 12


@pytest.mark.parametrize(
    ("overrides", "tables", "start"),
    [
        ({"data.rows": "-4"}, {}, "--set data.rows=-4: data: rows = -4 is not accepted"),
        ({"data.check_rows": "5", "data.rows": "x"}, {}, "--set data.rows=x: data: rows"),
        ({"study.objectives": "foo"}, {}, "--set study.objectives=foo: study: objectives"),
        ({}, {"data": {"rows": -4}}, "data: rows = -4"),
    ],
)
def test_a_bad_value_is_blamed_on_who_gave_it(
    overrides: dict[str, str], tables: dict[str, dict[str, int]], start: str
) -> None:
    with pytest.raises(DlasError) as caught:
        embedded_spec(overrides, tables)
    assert str(caught.value).startswith(start)


def test_a_bad_value_of_the_file_is_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "stack.toml"
    path.write_text("[data]\nrows = -4\n")
    with pytest.raises(DlasError) as caught:
        read_spec(path, {"data.check_rows": "5"})
    assert str(caught.value).startswith(f"{path}: data: rows = -4")


TWO = """
[compress]
pipeline = ["none"]

[[model]]
path = "digits-cnn"

[[model]]
path = "digits-cnn"
name = "twin"
"""


def test_several_models_are_a_study_each(tmp_path: Path) -> None:
    path = write(tmp_path, TWO)
    first, second = read_specs(path, {"data.path": "digits"})
    stem = path.stem
    assert (first.name, second.name) == (f"{stem}-digits-cnn", f"{stem}-twin")
    assert first.data.path == second.data.path == "digits"
    with pytest.raises(DlasError, match="study run"):
        read_spec(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (('name = "twin"', ""), "another name"),
        (('"digits-cnn"\nname = "twin"', '"elsewhere/digits-cnn.onnx"'), "another name"),
        (('name = "twin"', 'name = "../../twin"'), "a file can have"),
        (('name = "twin"', 'name = "twin"\nnme = "x"'), "nme"),
        (("path", "pth"), "path"),
    ],
)
def test_models_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, change: tuple[str, str], match: str
) -> None:
    with pytest.raises(DlasError, match=match):
        read_specs(write(tmp_path, TWO.replace(*change)))
