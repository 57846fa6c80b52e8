"""The report: one HTML file with data, charts, style and script inside, readable offline.

Nothing in it is fetched. A content security policy lets only the page's own scripts run, known by their hash, so a
name taken from a file cannot become code; every text is escaped besides.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from dlas.core.figure import Source
from dlas.core.files import write_atomic
from dlas.explore.result import StudyResult
from dlas.explore.setbacks import setbacks
from dlas.report import charts, data, summary
from dlas.report.labels import SOURCES, VERDICTS

_SCRIPTS = ("words.js", "table.js", "charts.js", "layers.js", "page.js")


def write_report(result: StudyResult, path: Path) -> None:
    """Write the report of a study as one HTML file.

    Raises:
        DlasError: The folder does not exist or cannot be written, or the disk is full.
    """
    # A name with half a surrogate pair, as file systems can hold, has no UTF-8 form.
    write_atomic(Path(path), render(result).encode("utf-8", "replace"))


@dataclass(frozen=True)
class Live:
    """What a page needs that is served while its study may still grow.

    Attributes:
        version: Entity tag of what the page shows; the page reloads when its address answers with another.
        running: Whether a process is working on it now.
    """

    version: str
    running: bool


def render(result: StudyResult, live: Live | None = None) -> str:
    """The page as text; with ``live``, one that is served and reloads by itself."""
    library, script = report_scripts()
    groups, groups_left_out = summary.reasons(result)
    found = summary.answers(result)
    content = {
        **data.page_data(result),
        "best": found[0].index if found else -1,
        "specs": charts.specifications(),
    }
    changes, changes_left_out = data.changes_of(result)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            result=result,
            live=live,
            policy=policy([library, script, *([live_script()] if live else [])], live=live is not None),
            style=file("style.css"),
            library=library,
            script=script,
            live_script=live_script() if live else "",
            data=data.embed_json(content),
            answers=found,
            tally=summary.tally(result),
            noisy=summary.noisy(result),
            setbacks=setbacks(result),
            volume=summary.volume_words(result),
            groups=groups,
            groups_left_out=groups_left_out,
            facts=summary.flat(
                {
                    k: v
                    for k, v in result.facts.items()
                    if k not in ("notes", "baseline") and k[:9] != "baseline_"
                }
            ),
            notes=[str(note) for note in result.facts.get("notes") or ()],
            environment=summary.flat(result.environment),
            variants={variant: len(rows) for variant, rows in changes.items()},
            variants_left_out=changes_left_out,
            has_layers=any(p.record.facts.get("layers") for p in result.points),
            sources={str(s): SOURCES[s] for s in Source},
            verdicts=VERDICTS,
        )
    )


def render_index(**content: Any) -> str:
    """The list of studies that ``dlas serve`` shows; see ``page/index.html.j2``."""
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            policy=policy([live_script()], live=True),
            style=file("style.css") + file("index.css"),
            live_script=live_script(),
            **content,
        )
    )


def report_scripts() -> tuple[str, str]:
    """The scripts of a report: the charts' library and the page's own."""
    return charts.library(), '"use strict";\n' + "\n".join(file(name) for name in _SCRIPTS)


def policy(scripts: Sequence[str], *, live: bool = False) -> str:
    """Content security policy of a page: these scripts may run, and nothing is fetched but, when ``live``, itself."""
    known = " ".join(f"'{_hash(script)}'" for script in scripts)
    own = "; connect-src 'self'" if live else ""
    return (
        f"default-src 'none'; script-src {known}; style-src 'unsafe-inline'; img-src data:{own};"
        " base-uri 'none'; form-action 'none'"
    )


def live_script() -> str:
    """The script by which a served page notices that there is something new."""
    return '"use strict";\n' + file("live.js")


def environment() -> jinja2.Environment:
    """Templates of the folder ``page``; every text in them is escaped."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(file),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def file(name: str) -> str:
    """A file of the folder ``page`` as text."""
    return (resources.files("dlas.report") / "page" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode()
