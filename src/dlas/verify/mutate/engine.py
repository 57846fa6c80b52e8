"""Mutation testing of a network on several paths.

Every mutant is one small fault. It is run on every path, in a worker process, on the same rows as the unchanged
network, and judged against that network *on the same path*: what differs comes from the fault alone. Two paths are
then compared on the mutant itself, which shows where compilers or kernels disagree about a network that is off its
usual values (Louloudakis et al. 2023, MutateNN).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dlas.core.cache import key_of
from dlas.core.environment import usable_cores
from dlas.core.errors import OptionError, UnsupportedError
from dlas.core.files import explain_write, scratch_folder, write_atomic
from dlas.core.lazy import distribution_version
from dlas.core.options import Choice
from dlas.core.worker import WorkerFailure
from dlas.data.dataset import Dataset
from dlas.data.guess import with_guessed_preprocessing
from dlas.graph.model import Model
from dlas.graph.signature import to_real
from dlas.runtime.backend import backends
from dlas.verify.differential import NoiseFloor, floor_between, is_classifier
from dlas.verify.differential.compare import SourceError
from dlas.verify.mutate.bounds import out_of_bounds
from dlas.verify.mutate.crew import Crew
from dlas.verify.mutate.journal import Journal
from dlas.verify.mutate.mutation import Mutation, ProgramMutation, Site, mutated, mutations, prepared
from dlas.verify.mutate.report import Coverage, MutantResult, MutationReport, label_flips
from dlas.verify.mutate.selection import Mutant, choose, chosen_operators
from dlas.verify.mutate.verdicts import Fate, PathFate, failed, judge
from dlas.verify.paths import RunPath, parse_paths
from dlas.verify.running import source_rows

# Named as text because workers import them.
ANSWERS = "dlas.verify.mutate.answers:answers"
PREPARE = "dlas.verify.mutate.answers:prepare"
SAME_CODE = "dlas.verify.mutate.lowering:same_code"
FLOORS = "dlas.verify.mutate.answers:both_ways"
PROGRAMS = "dlas.verify.mutate.lowering:programs"
_PREPARATION_S = 600.0


class Progress(Protocol):
    """Receives the state of a run; as that of studies."""

    def start(self, total: int) -> None:
        """``total`` mutants lie ahead."""
        ...

    def step(self, text: str) -> None:
        """What is being done now."""
        ...

    def advance(self, units: int = 1) -> None:
        """So many mutants are finished."""
        ...


@dataclass(frozen=True)
class _Run:
    """What all mutants have in common.

    Attributes:
        model: The unchanged network.
        original: Its file.
        folder: Where mutants are written.
        x: Rows, by input.
        floors: Noise floor of each output.
        paths: Paths that run the network.
        base: Its outputs on each of them, by label.
        programs: Its tensor programs in TVMScript, by name; empty where none are to be changed.
        crew: Workers.
        timeout_s: Longest time for one mutant on one path.
    """

    model: Model
    original: Path
    folder: Path
    x: Mapping[str, np.ndarray]
    floors: Sequence[NoiseFloor]
    paths: Sequence[RunPath]
    base: Mapping[str, list[np.ndarray]]
    programs: Mapping[str, str]
    crew: Crew
    timeout_s: float


def mutate(
    model: Model,
    *,
    data: Dataset | None = None,
    paths: str | Sequence[str] = "onnxruntime",
    operators: str | Sequence[str] = "all",
    max_mutants: int = 100,
    seed: int = 0,
    rows: int = 50,
    folder: Path | None = None,
    jobs: int = 0,
    timeout_s: float = 120.0,
    progress: Progress | None = None,
) -> MutationReport:
    """Put faults into a network, one at a time, and see which of them the rows notice on which path.

    Args:
        model: The network.
        data: Rows; without them 32 random ones are used.
        paths: Ways to run it, as :func:`dlas.verify.paths.parse_paths` reads them. Tensor programs are TVM's own.
        operators: Mutations, as :func:`dlas.verify.mutate.selection.chosen_operators` reads them.
        max_mutants: Budget, spread over the mutations and then over their sites; 0 for all.
        seed: Same seed, same mutants.
        rows: Rows to use at most.
        folder: Where mutants, ``matrix.csv`` and ``report.json`` go; finished mutants found there are not run again.
        jobs: Mutants at once; 0 for one per processor.
        timeout_s: Longest time for one mutant on one path.
        progress: Told what is being done.

    Raises:
        SourceError: The network itself does not run.
        OptionError: No path, no mutation, or tensor programs asked for without TVM among the paths.
        StorageError: The folder cannot be written; what is finished is kept.
    """
    _check(max_mutants, rows, jobs, timeout_s)
    chosen, runs = chosen_operators(operators), parse_paths(paths)
    if not runs:
        raise OptionError("paths", paths, "at least one, such as ort or tvm:O2")
    if not any(path.backend.name == "tvm" for path in runs):
        chosen = _without_programs(chosen, isinstance(operators, str) and operators == "all")
    if data is not None and model.preprocessing is None:
        model, _ = with_guessed_preprocessing(model, data)
    x, _ = source_rows(model, data, rows)
    with ExitStack() as stack:
        place = folder or stack.enter_context(scratch_folder())
        with explain_write(f"to {place}", "name a folder that can be written"):
            (place / "mutants").mkdir(parents=True, exist_ok=True)
        original = place / "original.onnx"
        write_atomic(original, model.to_bytes())
        crew = stack.enter_context(Crew(jobs or usable_cores()))
        tell = progress.step if progress else _silent
        tell("run the network without a fault")
        base, refused = _originals(crew, runs, original, x, model, timeout_s)
        floors = _floors(crew, model, original, x)
        running = [path for path in runs if path.label in base]
        programs = _programs(chosen, running, crew, original)
        tell("look for sites")
        sites = _sites(chosen, model, programs)
        mutants = choose(sites, max_mutants, seed)
        run = _Run(model, original, place, x, floors, running, base, programs, crew, timeout_s)
        results, resumed = _all(run, mutants, Journal(folder), progress)
    report = MutationReport(
        model=model.name,
        rows=len(next(iter(x.values()))),
        random=data is None,
        seed=seed,
        floors=tuple(floors),
        paths=tuple(path.label for path in running),
        refused=refused,
        mutants=tuple(results[m.name] for m in mutants),
        coverage={str(c): _coverage(c, found, mutants) for c, found in sites.items() if found},
        no_effect=tuple(str(c) for c in sites if not any(m.mutation == c for m in mutants) and not sites[c]),
        baseline=label_flips(_labels(base), list(base)),
        resumed=resumed,
    )
    if folder is not None:
        report.write(folder)
    return report


def _check(max_mutants: int, rows: int, jobs: int, timeout_s: float) -> None:
    for name, value, least in (("max_mutants", max_mutants, 0), ("rows", rows, 1), ("jobs", jobs, 0)):
        if value < least:
            raise OptionError(name, value, f"a number >= {least}")
    if not timeout_s > 0:
        raise OptionError("timeout_s", timeout_s, "a number of seconds above 0")


def _silent(text: str) -> None:
    """Nobody listens."""


def _originals(
    crew: Crew,
    paths: Sequence[RunPath],
    original: Path,
    x: Mapping[str, np.ndarray],
    model: Model,
    timeout_s: float,
) -> tuple[dict[str, list[np.ndarray]], dict[str, str]]:
    """Outputs of the unchanged network by path, and why other paths give none."""
    found: dict[str, list[np.ndarray] | WorkerFailure] = {}

    def work(path: RunPath) -> list[np.ndarray] | WorkerFailure:
        try:
            return _answers(crew, path, original, original, {}, x, model, timeout_s)
        except WorkerFailure as failure:
            return failure

    crew.map(work, list(paths), lambda path, answers: found.__setitem__(path.label, answers))
    base = {p.label: a for p in paths if not isinstance(a := found[p.label], WorkerFailure)}
    refused = {p.label: a.reason for p in paths if isinstance(a := found[p.label], WorkerFailure)}
    if not base:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in refused.items())
        raise SourceError(f"{model.name} runs on none of the paths: {reasons}")
    return base, refused


def _answers(
    crew: Crew,
    path: RunPath,
    original: Path,
    network: Path,
    programs: Mapping[str, str],
    x: Mapping[str, np.ndarray],
    model: Model,
    timeout_s: float,
) -> list[np.ndarray]:
    """All outputs on a path as real numbers, in the network's order; raises WorkerFailure."""
    backend = str(path.backend)
    leading = model.inputs[0].shape[0] if model.inputs[0].shape else 1
    batch = leading if isinstance(leading, int) else 1
    given = (backend, path.target, path.threads, batch, str(original), str(network), dict(programs), dict(x))
    first = (PREPARE, backend, path.target, str(original))
    found = crew.call(ANSWERS, *given, timeout_s=timeout_s, first=first)
    return [to_real(found[spec.name], model, i) for i, spec in enumerate(model.outputs)]


def _floors(crew: Crew, model: Model, original: Path, x: Mapping[str, np.ndarray]) -> list[NoiseFloor]:
    """How much each output moves when only the kernels of the reference engine change."""
    try:
        found = crew.call(FLOORS, str(original), dict(x), timeout_s=_PREPARATION_S)
    except WorkerFailure as failure:
        raise SourceError(f"{model.name}: the network itself cannot be run: {failure.reason}") from failure
    words = "onnxruntime, all optimisations against none"
    return [
        floor_between(to_real(first, model, i), to_real(second, model, i), words)
        for i, (first, second) in enumerate(found)
    ]


def _without_programs(chosen: list[Choice], everything: bool) -> list[Choice]:
    """Mutations of the graph; the others are left out where nobody asked for them by name."""
    wanted = [c for c in chosen if mutations.get(c.name).level == "program"]
    if wanted and not everything:
        names = ", ".join(map(str, wanted))
        raise OptionError("operators", names, "mutations of the graph", "or add a path of tvm")
    return [c for c in chosen if c not in wanted]


def _programs(
    chosen: Sequence[Choice], paths: Sequence[RunPath], crew: Crew, original: Path
) -> dict[str, str]:
    """Tensor programs of the network, where mutations of them are asked for and TVM runs it."""
    wanted = any(mutations.get(c.name).level == "program" for c in chosen)
    if not wanted or not any(path.backend.name == "tvm" for path in paths):
        return {}
    try:
        return dict(crew.call(PROGRAMS, str(original), timeout_s=_PREPARATION_S))
    except WorkerFailure as failure:
        raise UnsupportedError(f"no tensor programs can be had: {failure.reason}") from failure


def _sites(chosen: Sequence[Choice], model: Model, programs: Mapping[str, str]) -> dict[Choice, list[Site]]:
    graph = prepared(model)
    found: dict[Choice, list[Site]] = {}
    for choice in chosen:
        operator = mutations.get(choice.name)(**choice.as_dict())
        if isinstance(operator, ProgramMutation):
            found[choice] = operator.sites(programs)
        elif isinstance(operator, Mutation):
            found[choice] = operator.sites(graph)
    return found


def _coverage(choice: Choice, sites: Sequence[Site], mutants: Sequence[Mutant]) -> Coverage:
    touched = {site for m in mutants if m.mutation == choice for site in m.sites}
    return Coverage(len(touched), len(sites))


def _all(
    run: _Run, mutants: Sequence[Mutant], journal: Journal, progress: Progress | None
) -> tuple[dict[str, MutantResult], int]:
    """Results of all mutants by name, and how many of them an earlier run had finished."""
    common = key_of(
        run.model.hash,
        [list(path.key) for path in run.paths],
        {name: [str(rows.dtype), list(rows.shape), rows.tobytes()] for name, rows in run.x.items()},
        run.timeout_s,
        {d: distribution_version(d) for d in sorted({"dlas", *_distributions(run.paths)})},
    )
    keys = {m.name: key_of(common, m.recipe) for m in mutants}
    results: dict[str, MutantResult] = {}
    for mutant in mutants:
        if (stored := journal.get(keys[mutant.name])) is not None:
            results[mutant.name] = MutantResult.from_stored(mutant, stored)
    resumed = len(results)
    if progress:
        progress.start(len(mutants))
        progress.advance(resumed)

    def done(mutant: Mutant, result: MutantResult) -> None:
        journal.put(keys[mutant.name], result.stored())
        results[mutant.name] = result
        if progress:
            fates = ", ".join(f"{path} {fate.fate}" for path, fate in result.fates.items())
            progress.advance()
            progress.step(f"{mutant.name}: {fates}")

    run.crew.map(lambda mutant: _one(run, mutant), [m for m in mutants if m.name not in results], done)
    return results, resumed


def _distributions(paths: Sequence[RunPath]) -> list[str]:
    return [name for path in paths if (name := backends.get(path.backend.name).distribution)]


def _one(run: _Run, mutant: Mutant) -> MutantResult:
    """Make a mutant and run it on every path."""
    operator = mutant.operator
    network, programs, outside = run.original, {}, ""
    if isinstance(operator, ProgramMutation):
        programs, outside = _changed_programs(run, operator, mutant)
    elif isinstance(operator, Mutation):
        network = run.folder / "mutants" / f"{mutant.name}.onnx"
        write_atomic(network, mutated(run.model, operator, mutant.sites).renamed(mutant.name).to_bytes())
    fates: dict[str, PathFate] = {}
    answers: dict[str, list[np.ndarray]] = {}
    for path in run.paths:
        if programs and path.backend.name != "tvm":
            fates[path.label] = PathFate(Fate.UNSUPPORTED, "tensor programs are TVM's own")
        elif outside:
            fates[path.label] = PathFate(Fate.OUT_OF_BOUNDS, outside)
        else:
            fates[path.label] = _fate(run, path, network, programs, answers)
    labels = _labels(answers)
    count = len(next(iter(labels.values()))) if labels else 0
    return MutantResult(mutant, fates, label_flips(labels, [p.label for p in run.paths]), count)


def _fate(
    run: _Run,
    path: RunPath,
    network: Path,
    programs: Mapping[str, str],
    answers: dict[str, list[np.ndarray]],
) -> PathFate:
    try:
        found = _answers(run.crew, path, run.original, network, programs, run.x, run.model, run.timeout_s)
        answers[path.label] = found
        fate = judge(run.base[path.label], found, run.floors)
        if programs and fate.fate is Fate.EQUIVALENT:
            given = (str(path.backend), path.target, str(run.original))
            if run.crew.call(SAME_CODE, *given, timeout_s=run.timeout_s):
                fate = replace(fate, fate=Fate.COMPILED_AWAY, reason="the compiler made the same code of it")
    except WorkerFailure as failure:
        return failed(failure)
    return fate


def _changed_programs(run: _Run, operator: ProgramMutation, mutant: Mutant) -> tuple[dict[str, str], str]:
    """New TVMScript by name, and why it must not be run, if so; a difference to the old one is written down."""
    programs: dict[str, str] = {}
    for site in reversed(mutant.sites):  # from the end, so that earlier places keep their numbers
        script = programs.get(site.node, run.programs[site.node])
        programs[site.node] = operator.apply(script, site)
    texts: list[str] = []
    outside = ""
    for name, script in sorted(programs.items()):
        before, after = (_normal(text) for text in (run.programs[name], script))
        texts += difflib.unified_diff(before, after, f"{name} before", f"{name} after")
        if not outside and not out_of_bounds(run.programs[name]):
            outside = out_of_bounds(script)
    write_atomic(run.folder / "mutants" / f"{mutant.name}.diff", "".join(texts))
    return programs, outside


def _normal(script: str) -> list[str]:
    """TVMScript as the mutations print it, so that only what they changed differs."""
    from dlas.verify.mutate.script import Program

    return Program.parse(script).text().splitlines(keepends=True)


def _labels(answers: Mapping[str, list[np.ndarray]]) -> dict[str, Any]:
    """Labels of each path's first output, where that holds class scores."""
    return {label: found[0].argmax(1) for label, found in answers.items() if is_classifier(found[0])}
