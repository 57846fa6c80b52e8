"""``dlas mutate``: would these rows notice a fault, and on which path?"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlas.cli._shared import Architecture, Bar, Data, Json, Split, figure_text, say, write_json, write_table

if TYPE_CHECKING:
    from dlas.core.figure import Figure
    from dlas.verify.mutate.report import MutationReport


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("mutate")(mutate)


def mutate(
    model: Annotated[str, typer.Argument(help="The network, right by definition.")],
    data: Data = "",
    split: Split = "",
    paths: Annotated[
        str, typer.Option(help="Ways to run it, such as ort:O0,tvm:O0..O3; tensor programs need one of tvm.")
    ] = "onnxruntime",
    operators: Annotated[
        str,
        typer.Option(help="all, graph, program, mutatenn (as published), or names: `dlas list mutation`."),
    ] = "all",
    max_mutants: Annotated[
        int, typer.Option(help="Budget, spread over the mutations, then their sites; 0 is all.", min=0)
    ] = 100,
    seed: Annotated[int, typer.Option(help="Same seed, same mutants.", min=0)] = 0,
    rows: Annotated[int, typer.Option(help="Rows to use at most.", min=1)] = 50,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder for mutants, matrix.csv and report.json; a run goes on in it."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Mutants at once; 0 is one per processor.", min=0)] = 0,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds for one mutant on one path.", min=1)
    ] = 120.0,
    fail_under: Annotated[
        float, typer.Option(help="Exit with 1 where a path's mutation score is lower.", min=0, max=1)
    ] = 0.0,
    architecture: Architecture = "",
    json: Json = False,
) -> int:
    """Put small faults into a network, one at a time, and see which of them the rows notice."""
    from dlas import api
    from dlas.verify.mutate import mutate as run
    from dlas.verify.mutate.selection import chosen_operators
    from dlas.verify.paths import parse_paths

    chosen_operators(operators)  # a wrong name is told before anything is read
    parse_paths(paths)
    samples = api.dataset(data or None, split)
    network = api.load(model, architecture=architecture)
    with Bar() as bar:
        found = run(
            network,
            data=samples,
            paths=paths,
            operators=operators,
            max_mutants=max_mutants,
            seed=seed,
            rows=rows,
            folder=output,
            jobs=jobs,
            timeout_s=timeout_s,
            progress=bar,
        )
    if json:
        write_json(found.to_dict())
    else:
        show(found)
    if output is not None:
        say(f"wrote {output / 'report.json'}, {output / 'matrix.csv'} and {output / 'mutants'}")
    scores = [score.value for path in found.paths if (score := found.score(path)) is not None]
    return int(any(score < fail_under for score in scores))


def show(found: MutationReport) -> None:
    """Print a report: fates by mutation and path, scores, and where paths disagree."""
    from dlas.core.statistics import proportion
    from dlas.verify.mutate.report import pair

    kind = "random " if found.random else ""
    touched = sum(c.touched for c in found.coverage.values())
    sites = sum(c.sites for c in found.coverage.values())
    say(
        f"{found.model}: {len(found.mutants)} mutants on {found.rows} {kind}rows, "
        f"{touched} of {sites} sites touched, seed {found.seed}"
    )
    for path, reason in found.refused.items():
        say(f"{path} does not run the network: {reason}")
    rows = [
        (
            name,
            f"{found.coverage[name].touched}/{found.coverage[name].sites}",
            *[_fates(found, p, name) for p in found.paths],
        )
        for name in found.mutations
    ]
    rows.append(("all", f"{touched}/{sites}", *[_fates(found, p, "") for p in found.paths]))
    rows.append(("mutation score", "", *[_share(found.score(p)) for p in found.paths]))
    write_table(("mutation", "sites", *found.paths), rows)
    pairs = [(a, b) for a, b in combinations(found.paths, 2) if found.discrepancy(a, b) is not None]
    if pairs:
        header = ("labels differ between", *[f"{a} and {b}" for a, b in pairs])
        lines = [
            (name, *[_share(found.discrepancy(a, b, name)) for a, b in pairs]) for name in found.mutations
        ]
        clean = [proportion(found.baseline[pair(a, b)], found.rows) for a, b in pairs]
        lines.append(("no fault", *map(_share, clean)))
        lines.append(("all", *[_share(found.discrepancy(a, b)) for a, b in pairs]))
        write_table(header, [line for line in lines if any(line[1:])])
    if found.no_effect:
        say(f"no place for {', '.join(found.no_effect)}: not counted")


def _fates(found: MutationReport, path: str, mutation: str) -> str:
    return ", ".join(f"{count} {fate}" for fate, count in found.counts(path, mutation).items())


def _share(figure: Figure | None) -> str:
    if figure is None:
        return ""
    low, high = 100 * (figure.low or 0), 100 * (figure.high or 0)
    return f"{figure_text(figure)} [{low:.1f}, {high:.1f}] of {figure.n}"
