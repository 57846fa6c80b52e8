from __future__ import annotations

from dataclasses import dataclass

import pytest

from dlas.core.errors import DlasError, OptionError, UnknownNameError
from dlas.core.options import Choice, Configurable, build_options, describe_options, option, options_dict


@dataclass(frozen=True)
class Options:
    sparsity: float = option(0.5, "fraction of zeros", low=0, below=1)
    bits: int = option(8, "bits", choices=(4, 8))
    name: str = option("x", "a name")
    symmetric: bool = option(True, "no zero point")
    seed: int | None = option(None, "seed", low=0, high=10)
    shape: tuple[int, ...] = option((1,), "shape")


class Member(Configurable):
    name = "member"
    summary = "A member."
    Options = Options


class Needy(Configurable):
    name = "needy"
    requires = {"json": "core", "no_such_library": "extra"}  # noqa: RUF012


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("prune", {}),
        (" prune:sparsity=0.5,bits=4 ", {"sparsity": 0.5, "bits": 4}),
        ("prune:flag,other=false", {"flag": True, "other": False}),
        ("prune:a-b=x=y", {"a_b": "x=y"}),
        ("prune:v=1e-3,n=-2", {"v": 0.001, "n": -2}),
    ],
)
def test_choices_are_read(text, options):
    choice = Choice.parse(text)
    assert (choice.name, choice.as_dict()) == ("prune", options)
    assert Choice.parse(str(choice)) == choice


@pytest.mark.parametrize("text", ["", ":a=1", "-x", "a b", "prune:"])
def test_other_forms_of_choices_are_refused(text):
    with pytest.raises(OptionError, match="name:key=value"):
        Choice.parse(text)


def test_spelling_is_canonical():
    assert str(Choice.of("m", b=1, a=True)) == "m:a=true,b=1"
    assert Choice.parse("m:b=1,a") == Choice.parse("m:a=true,b=1")


def test_values_are_checked_and_converted():
    built = build_options(Options, {"sparsity": 0, "name": 7, "shape": [1, 2], "seed": None}, "m")
    assert built == Options(sparsity=0.0, name="7", shape=(1, 2), seed=None)
    assert isinstance(built.sparsity, float)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"sparsity": 1}, "a number >= 0 and < 1"),
        ({"sparsity": -0.1}, "a number >= 0"),
        ({"sparsity": float("nan")}, "a number"),
        ({"sparsity": "half"}, "expected float"),
        ({"bits": 5}, "one of 4, 8"),
        ({"bits": 8.5}, "expected int"),
        ({"bits": True}, "expected int"),
        ({"symmetric": 1}, "expected bool"),
        ({"seed": 11}, "<= 10"),
        ({"seed": "x"}, "expected int or none"),
    ],
)
def test_bad_values_name_the_option_and_what_is_accepted(given, text):
    with pytest.raises(OptionError) as caught:
        build_options(Options, given, "m")
    assert text in str(caught.value)
    assert f"m: {next(iter(given))}" in str(caught.value)


def test_unknown_option_offers_the_closest():
    with pytest.raises(UnknownNameError, match="did you mean 'sparsity'"):
        Member(sparsty=0.5)


def test_description_and_dictionary():
    described = describe_options(Options)
    assert described["sparsity"] == {
        "type": "float",
        "default": 0.5,
        "help": "fraction of zeros",
        "low": 0,
        "below": 1,
    }
    assert described["seed"]["type"] == "int or none"
    assert options_dict(Options())["bits"] == 8


def test_member_is_spelled_with_what_differs_from_its_defaults():
    assert Member().spelled() == "member"
    assert Member(bits=4, sparsity=0.5).spelled() == "member:bits=4"
    with pytest.raises(DlasError, match="not both"):
        Member(Options(), bits=4)


def test_missing_library_names_the_extra():
    assert Needy.missing() == "needs no_such_library: pip install 'dlas[extra]'"
    assert Member.missing() == ""
