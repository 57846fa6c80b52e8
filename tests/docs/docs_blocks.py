"""Reads the fenced blocks of a Markdown page, with the HTML comment that stands right before each.

Marks in that comment, joined by commas: ``needs: data`` (skipped without the real data), ``slow`` (only in the slow
tests), ``file: NAME`` (the block is a file, written and not run), ``not run: WHY``.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNNABLE = ("dlas", "python")

_FENCE = re.compile(r"^(`{3,})(\w*)\s*$")
_MARK = re.compile(r"^<!--\s*(.*?)\s*-->$")
_EXIT = re.compile(r"\s+#\s*exit (\d+)\s*$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Command:
    """One ``$`` line of a console block, continuation lines joined."""

    text: str
    code: int = 0

    @property
    def runnable(self) -> bool:
        return self.text.split()[0] in RUNNABLE


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    text: str
    line: int
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def commands(self) -> list[Command]:
        """What a console block tells the reader to type."""
        found = []
        lines = iter(self.text.splitlines())
        for line in lines:
            if not line.startswith("$ "):
                continue
            text = line[2:]
            while text.endswith("\\"):
                text = text[:-1] + next(lines).strip()
            stated = _EXIT.search(text)
            found.append(Command(_EXIT.sub("", text).strip(), int(stated[1]) if stated else 0))
        return found


def pages() -> list[Path]:
    """Every page whose blocks are run."""
    return [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def blocks(page: Path) -> list[Block]:
    """Fenced blocks in order."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        mark, fence = _MARK.match(line.strip()), _FENCE.match(line.strip())
        if mark:
            marks = _marks(mark[1])
        elif fence:
            body = []
            for _, inner in lines:
                if inner.strip() == fence[1]:
                    break
                body.append(inner)
            found.append(Block(fence[2], textwrap.dedent("\n".join(body)) + "\n", number, marks))
            marks = {}
        elif line.strip():
            marks = {}
    return found


def file_block(page: Path, name: str) -> str:
    """Text of the block marked ``file: NAME``."""
    return next(b.text for b in blocks(page) if b.marks.get("file") == name)


def links(page: Path) -> list[str]:
    """Targets of the links and pictures that point into the repository."""
    text = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = [a or b for a, b in _LINK.findall(text)]
    return [t for t in targets if not re.match(r"[a-z]+:", t)]


def anchors(page: Path) -> set[str]:
    """Anchors that the headings of a page have when it is shown."""
    heads = re.findall(r"^#+\s+(.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


def _marks(text: str) -> dict[str, str]:
    if text.startswith("not run"):
        return {"not run": text.partition(":")[2].strip()}
    parts = (part.partition(":") for part in text.split(","))
    return {key.strip(): value.strip() for key, _, value in parts}
