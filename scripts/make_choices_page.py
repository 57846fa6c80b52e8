"""Write docs/choices.md from the registries: every choice of every layer, with its options.

    python scripts/make_choices_page.py           # write the page
    python scripts/make_choices_page.py --check   # leave with 1 if it is out of date

What is installed on this machine does not change the page.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dlas.compress.method import methods
from dlas.core.files import write_atomic
from dlas.core.options import describe_options
from dlas.data.dataset import loaders
from dlas.graph.format import formats
from dlas.hardware.accelerator import accelerators
from dlas.hardware.target import targets
from dlas.kernels.kernel import kernels
from dlas.models.architecture import architectures
from dlas.runtime.backend import backends
from dlas.runtime.converter import converters
from dlas.verify.attack.attack import attacks
from dlas.verify.localize.case import explanations
from dlas.verify.mutate.mutation import mutations
from dlas.verify.passes.tool import pass_tools
from dlas.verify.repair.strategy import strategies

PAGE = Path(__file__).resolve().parent.parent / "docs" / "choices.md"
FAMILIES = (
    ("data", "Data set loaders", loaders),
    ("models", "Architectures", architectures),
    ("graph", "File formats", formats),
    ("compress", "Compression methods", methods),
    ("kernels", "Kernels", kernels),
    ("runtime", "Back ends", backends),
    ("runtime", "Converters", converters),
    ("hardware", "Targets", targets),
    ("hardware", "Accelerators", accelerators),
    ("verify", "Attacks", attacks),
    ("verify", "Mutations", mutations),
    ("verify", "Optimisers whose passes can be blamed", pass_tools),
    ("verify", "Explanations of a fault", explanations),
    ("verify", "Repair strategies", strategies),
)
HEAD = """# Every choice

<!-- Made by scripts/make_choices_page.py; do not edit. -->

A choice is written `name:option=value,option=value`. `dlas list` prints the same, with what is missing on your machine.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for layer, title, registry in FAMILIES:
        parts.append(f"## {title}\n\nLayer [{layer}](layers/{layer}.md).\n")
        parts += [_member(registry.family, name, registry.get(name)) for name in registry.names()]
    return "\n".join(parts)


def _member(family: str, name: str, member: Any) -> str:
    lines = [
        f"### {family} `{name}`",
        "",
        f"{member.summary[0].upper()}{member.summary[1:]}. {_needs(member)}".rstrip(),
        "",
    ]
    options = describe_options(member.Options)
    if options:
        lines += ["| option | default | accepted | what |", "| --- | --- | --- | --- |"]
        for option, facts in options.items():
            cells = (
                f"`{option}`",
                f"`{_spelled(facts['default'])}`",
                _accepted(facts),
                facts.get("help", "") + (f" (for {facts['use']})" if "use" in facts else ""),
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _needs(member: Any) -> str:
    """Libraries beyond those that dlas always installs."""
    needed = [
        f"`{m}` (`pip install 'dlas[{extra}]'`)"
        for m, extra in getattr(member, "requires", {}).items()
        if extra != "all"
    ]
    return f"Needs {' and '.join(needed)}." if needed else ""


def _accepted(facts: dict[str, Any]) -> str:
    if "choices" in facts:
        return ", ".join(f"`{_spelled(c)}`" for c in facts["choices"])
    bounds = [
        f"{sign} {facts[key]}" for sign, key in (("≥", "low"), ("≤", "high"), ("<", "below")) if key in facts
    ]
    return f"{facts['type']} {', '.join(bounds)}".rstrip()


def _spelled(value: Any) -> str:
    if value == "":
        return '""'
    return str(value).lower() if isinstance(value, bool) else str(value)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    wanted = page()
    if parser.parse_args().check:
        current = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        if current != wanted:
            sys.stderr.write(f"{PAGE.name} is out of date: run python scripts/make_choices_page.py\n")
            return 1
        return 0
    write_atomic(PAGE, wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
