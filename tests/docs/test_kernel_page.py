"""What the page of layer 4 says of the kernels is what the kernels have."""

from __future__ import annotations

import re

from docs_blocks import ROOT

from dlas.kernels.kernel import kernels
from dlas.kernels.layout import Layout

PAGE = (ROOT / "docs" / "layers" / "kernels.md").read_text()


def test_every_float_convolution_has_a_row_and_no_other() -> None:
    table = PAGE.partition("## Ways to compute a convolution")[2].partition("`transpose-col2im`")[0]
    rows = re.findall(r"^\| `([\w-]+)` \|", table, flags=re.M)
    assert sorted(rows) == sorted(name for name, member in kernels.members() if "Conv" in member.ops)


def test_layouts_and_folders() -> None:
    section = PAGE.partition("## Layouts")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.M) == [str(layout) for layout in Layout]
    room = ROOT / "src" / "dlas" / "kernels"
    folders = {p.name for p in room.iterdir() if p.is_dir() and not p.name.startswith("_")} - {"native"}
    assert all(f"`src/dlas/kernels/{name}/`" in PAGE for name in folders)
