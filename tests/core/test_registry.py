from __future__ import annotations

import importlib
import sys
import textwrap

import pytest

from dlas.core.errors import UnknownNameError
from dlas.core.registry import Registry, RegistryError


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A package ``fam_members`` whose modules register with ``fam_members.registry``."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(**modules: str) -> Registry:
        folder = tmp_path / "fam_members"
        folder.mkdir()
        (folder / "__init__.py").write_text("from dlas.core.registry import Registry\nregistry = None\n")
        for name, text in modules.items():
            path = folder.joinpath(*name.split("__"))
            path.parent.mkdir(exist_ok=True)
            if path.parent != folder:
                (path.parent / "__init__.py").touch()
            path.with_suffix(".py").write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        registry = Registry("thing", "fam_members")
        importlib.import_module("fam_members").registry = registry
        made.append(registry)
        return registry

    yield make
    for name in [n for n in sys.modules if n.startswith("fam_members")]:
        del sys.modules[name]


GOOD = """
    from fam_members import registry
    @registry.register("{name}")
    class Thing:
        pass
"""


def test_members_are_found_by_their_file_and_loaded_when_asked_for(family):
    registry = family(two_words=GOOD.format(name="two-words"), _private="raise SystemExit", broken="1/0")
    assert registry.names() == ["broken", "two-words"]
    assert "fam_members.two_words" not in sys.modules
    assert registry.get("two-words").__module__ == "fam_members.two_words"
    with pytest.raises(ZeroDivisionError):
        registry.get("broken")


def test_unknown_name_offers_the_closest(family):
    registry = family(magnitude=GOOD.format(name="magnitude"))
    with pytest.raises(UnknownNameError, match="did you mean 'magnitude'"):
        registry.get("magnitud")


def test_module_must_register_what_its_name_promises(family):
    registry = family(one=GOOD.format(name="other"))
    with pytest.raises(RegistryError, match="does not register a thing called 'one'"):
        registry.get("one")


def test_one_name_twice_names_both_places(family):
    registry = family(one=GOOD.format(name="one"))
    registry.get("one")

    class Other:
        pass

    with pytest.raises(RegistryError, match=r"registered twice: by fam_members\.one:Thing and .*Other"):
        registry.register("one")(Other)


def test_sub_packages_are_scanned_with_a_star(family):
    family(a__one=GOOD.format(name="one"), b__two=GOOD.format(name="two"))
    registry = Registry("thing", "fam_members.*")
    sys.modules["fam_members"].registry = registry
    assert [name for name, _ in registry.members()] == ["one", "two"]


def test_one_name_in_two_folders_is_refused(family):
    family(a__one=GOOD.format(name="one"), b__one=GOOD.format(name="one"))
    with pytest.raises(RegistryError, match="stands in"):
        Registry("thing", "fam_members.*").names()


def test_plug_ins_join_and_a_broken_one_is_logged(family, monkeypatch, caplog):
    registry = family(one=GOOD.format(name="one"))

    class Point:
        def __init__(self, name, value):
            self.name, self.value = name, value

        def load(self):
            if self.name == "bad":
                raise ImportError("no wheel")
            return dict

    monkeypatch.setattr(registry, "_entry_points", lambda: [Point("bad", "p:bad"), Point("good", "p:good")])
    assert [name for name, _ in registry.members()] == ["good", "one"]
    assert registry.get("good") is dict
    assert "'bad' cannot be loaded: no wheel" in caplog.text


def test_loaders_register_what_their_files_promise():
    from dlas.data.dataset import loaders

    assert [member.name for _, member in loaders.members()] == loaders.names()


def test_a_survey_says_what_cannot_be_imported(family):
    registry = family(one=GOOD.format(name="one"), broken="1/0")
    found = dict(registry.survey())
    assert found["one"].__name__ == "Thing"
    assert isinstance(found["broken"], ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        registry.members()
