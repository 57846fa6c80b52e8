"""The report: one HTML file with data, charts, style and script inside, readable offline.

Nothing in it is fetched. A content security policy lets only the page's own scripts run, known by their hash, so a
name taken from a file cannot become code; every text is escaped besides.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path

import jinja2

from dlas.core.figure import Source
from dlas.core.files import write_atomic
from dlas.explore.result import StudyResult
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


def render(result: StudyResult) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    library = charts.library()
    script = '"use strict";\n' + "\n".join(_file(name) for name in _SCRIPTS)
    groups, groups_left_out = summary.reasons(result)
    found = summary.answers(result)
    content = {
        **data.page_data(result),
        "best": found[0].index if found else -1,
        "specs": charts.specifications(),
    }
    changes, changes_left_out = data.changes_of(result)
    return environment.get_template("page.html.j2").render(
        result=result,
        style=_file("style.css"),
        library=library,
        script=script,
        hashes=[_hash(library), _hash(script)],
        data=data.embed_json(content),
        answers=found,
        tally=summary.tally(result),
        noisy=summary.noisy(result),
        volume=summary.volume_words(result),
        groups=groups,
        groups_left_out=groups_left_out,
        facts=summary.flat(
            {k: v for k, v in result.facts.items() if k not in ("notes", "baseline") and k[:9] != "baseline_"}
        ),
        notes=[str(note) for note in result.facts.get("notes") or ()],
        environment=summary.flat(result.environment),
        variants={variant: len(rows) for variant, rows in changes.items()},
        variants_left_out=changes_left_out,
        has_layers=any(p.record.facts.get("layers") for p in result.points),
        sources={str(s): SOURCES[s] for s in Source},
        verdicts=VERDICTS,
    )


def _file(name: str) -> str:
    return (resources.files("dlas.report") / "page" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode()
