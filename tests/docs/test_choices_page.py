"""The page of all choices is up to date, whole, and every choice has a test."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest
from docs_blocks import ROOT

from dlas.cli.listing import choices


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_choices_page", ROOT / "scripts" / "make_choices_page.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(maker: ModuleType) -> None:
    assert maker.PAGE.read_text() == maker.page(), "run: python scripts/make_choices_page.py"


def test_every_choice_has_a_line_with_all_its_options() -> None:
    sections = re.split(r"^### ", (ROOT / "docs" / "choices.md").read_text(), flags=re.M)
    by_head = {s.split("\n", 1)[0]: s for s in sections[1:]}
    assert len(by_head) == len(choices()), (
        "two choices of different families share a name: say the family in the head"
    )
    for choice in choices():
        section = by_head[f"{choice['family']} `{choice['name']}`"]
        assert choice["summary"][1:] in section
        for option in choice["options"]:
            assert f"| `{option}` |" in section, (choice["name"], option)


@pytest.mark.parametrize("choice", choices(), ids=lambda c: f"{c['family']}-{c['name']}")
def test_every_choice_is_mentioned_by_a_test_of_its_layer(choice: dict[str, str]) -> None:
    """By its name or its module's; the suites find all members by themselves and so do not count."""
    folders = [ROOT / "tests" / choice["layer"], ROOT / "tests" / "verify"]
    texts = [p.read_text() + p.name for folder in folders for p in folder.rglob("*.py")]
    names = {choice["name"], choice["name"].replace("-", "_")}
    assert any(re.search(rf"(?<![a-z]){re.escape(name)}", text) for name in names for text in texts)
