"""Short names of paths."""

from __future__ import annotations

import pytest

from dlas.core.errors import OptionError, UnknownNameError
from dlas.runtime.backend import backends, installed_backends
from dlas.verify.paths import known_paths, parse_paths


def spelled(text: str) -> list[tuple[str, str, str, int]]:
    return [(p.label, str(p.backend), p.target, p.threads) for p in parse_paths(text)]


def test_levels_of_onnxruntime_have_short_names() -> None:
    assert spelled("ort:O0,ort:O1,ort:O2,ort:O3,ort:all") == [
        (f"ort:{word}", f"onnxruntime:level={level}", "host", 1)
        for word, level in zip(
            ["O0", "O1", "O2", "O3", "all"], ["disable", "basic", "extended", "layout", "all"], strict=True
        )
    ]


def test_a_range_is_every_level_from_one_to_the_other() -> None:
    assert [label for label, *_ in spelled("tvm:O1..O3")] == ["tvm:O1", "tvm:O2", "tvm:O3"]
    assert [choice for _, choice, *_ in spelled("ort:O2..all")] == [
        "onnxruntime:level=extended",
        "onnxruntime:level=layout",
        "onnxruntime:level=all",
    ]


def test_instruction_set_and_threads_stand_behind() -> None:
    assert spelled("tvm:O0..O1@x86-64-v3/2") == [
        ("tvm:O0@x86-64-v3/2", "tvm:opt=O0", "host:isa=x86-64-v3", 2),
        ("tvm:O1@x86-64-v3/2", "tvm:opt=O1", "host:isa=x86-64-v3", 2),
    ]


def test_full_choices_and_one_word_values_are_taken() -> None:
    assert spelled("onnxruntime:level=basic,unsigned=false,litert:ref,openvino:bf16,torch") == [
        ("onnxruntime:level=basic,unsigned=false", "onnxruntime:level=basic,unsigned=false", "host", 1),
        ("litert:ref", "litert:kernels=reference", "host", 1),
        ("openvino:bf16", "openvino:precision=bf16", "host", 1),
        ("torch", "torch", "host", 1),
    ]


def test_two_spellings_of_one_path_are_one() -> None:
    assert [p.label for p in parse_paths("ort,ort:all,onnxruntime:level=all,ort:all/2")] == [
        "ort",
        "ort:all/2",
    ]


def test_all_is_what_is_installed_and_levels_has_every_level_of_it() -> None:
    assert [p.label for p in parse_paths("all")] == installed_backends()
    labels = [p.label for p in parse_paths("levels")]
    assert {"ort:O0", "ort:all", "torch:eager"} <= set(labels)
    assert len(labels) == len({p.key for p in parse_paths("levels")})


def test_every_known_name_can_be_parsed() -> None:
    assert set(backends.names()) <= set(known_paths())
    for name in known_paths():
        assert len(parse_paths(name)) == 1, name


def test_only_optimisation_levels_rise() -> None:
    low, high, other = parse_paths("ort:O0,ort:all,ort:O1/2")
    assert low.ladder == high.ladder != other.ladder
    assert low.level < high.level
    assert parse_paths("openvino:bf16")[0].ladder is None


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("onnxruntme", "'onnxruntime'"),
        ("orrt:O0", "'ort:O0'"),
        ("ort:O9", "'ort:O3'"),
        ("litert:xnnpak", "'litert:xnnpack'"),
        ("tvm:O0..O9", "'tvm:O3'"),
        ("tvm:", "'tvm'"),
        (":", "known: "),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(text: str, near: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_paths(text)
    assert near in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tvm:O3..O0", "a range that rises"),
        ("ort/0", "from 1 to 1024"),
        ("ort/two", "from 1 to 1024"),
        ("ort@mips", "one of native"),
        ("a@b@c", "BACKEND"),
        ("tvm:opt=O9", "one of O0"),
    ],
)
def test_values_are_checked(text: str, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        parse_paths(text)
