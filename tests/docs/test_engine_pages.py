"""What the page of layer 5 says of the engine is what the engine has."""

from __future__ import annotations

import re

from docs_blocks import ROOT

from dlas.runtime.backends.engine import POLICIES
from dlas.runtime.engine.delegate import DELEGATES
from dlas.runtime.engine.passes import PASSES


def test_the_page_names_every_policy_pass_and_delegate() -> None:
    page = (ROOT / "docs" / "layers" / "runtime.md").read_text()
    named = re.findall(r"`([\w-]+)`", page.partition("The passes, in order:")[2].partition(".\n")[0])
    assert named == list(PASSES)
    assert set(re.findall(r"^\| `(\w+)`", page, flags=re.M)) >= set(POLICIES)
    assert all(f"`{name}`" in page for name in DELEGATES)
