"""What a converter is: somebody else's tool that makes one model file of another.

Every tool runs in a process of its own, killed with everything it started when its time is up: in a worker where it
can share dlas's environment, else under the Python of a side environment (:mod:`dlas.core.environments`) and through
files only. Whatever happens to it becomes a :class:`Converted`.
"""

from __future__ import annotations

import json
import shutil
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dlas.core.environments import SideEnvironment
from dlas.core.errors import DlasError, UnknownNameError, UnsupportedError
from dlas.core.figure import Outcome
from dlas.core.files import atomic_paths, scratch_folder
from dlas.core.options import Choice, Configurable
from dlas.core.registry import Registry
from dlas.core.subprocesses import run_program
from dlas.core.worker import WorkerFailure, cause_of_death, run_in_worker

converters: Registry[type[Converter]] = Registry("converter", "dlas.runtime.converters")

TIMEOUT_S = 300.0
_FOLDER = Path(__file__).with_name("converters")
_RUNNERS = _FOLDER / "_runners"
_LONGEST = 300  # characters of a reason


@dataclass(frozen=True)
class Converted:
    """What became of a conversion.

    Attributes:
        status: ``ok``, ``crash``, ``timeout`` or ``unsupported``.
        reason: Why, in one line; empty for ``ok``.
        signal: Name of the signal that ended the tool, if one did.
        stderr_tail: Last lines the tool wrote.
        versions: Version of the tool and of the libraries its result depends on.
        seconds: How long the tool took.
        notes: What was done on the way.
    """

    status: Outcome
    reason: str = ""
    signal: str = ""
    stderr_tail: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "status": str(self.status),
            "reason": self.reason,
            "signal": self.signal,
            "stderr_tail": self.stderr_tail,
            "versions": dict(self.versions),
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }


class Converter(Configurable):
    """A tool that converts model files.

    Class attributes:
        takes: Endings of the files the tool itself reads.
        gives: Endings of the files it writes.
        needs: Who hands it what it takes: ``onnx`` (any network dlas reads is handed over as ONNX), ``torch`` (a
            network that comes with a torch module), or empty (it reads the source as it is).
    """

    takes: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[str] = ""

    def convert(
        self, source: Path, target: Path, *, architecture: str = "", timeout_s: float = TIMEOUT_S
    ) -> Converted:
        """Make ``target`` of ``source``; a target that exists is replaced only when all went well.

        Args:
            source: Model file.
            target: File to write.
            architecture: For bare checkpoints.
            timeout_s: Longest time for the tool.

        Raises:
            UnsupportedError: The tool cannot take or give files of these endings, or is not installed.
            StorageError: The target cannot be written.
        """
        self._check(source, target)
        start = time.monotonic()
        with scratch_folder() as scratch:
            try:
                return self._convert(source, target, scratch, architecture, timeout_s)
            except WorkerFailure as failure:
                seconds = time.monotonic() - start
                return Converted(
                    failure.outcome, failure.reason, stderr_tail=failure.stderr_tail, seconds=seconds
                )

    @abstractmethod
    def _convert(
        self, source: Path, target: Path, scratch: Path, architecture: str, timeout_s: float
    ) -> Converted:
        """Do it inside an empty scratch folder; raises WorkerFailure."""

    def _check(self, source: Path, target: Path) -> None:
        missing = self.missing_for()
        if missing:
            raise UnsupportedError(f"converter {self.name} {missing}")
        for path, endings, verb in ((source, self._sources(), "reads"), (target, self.gives, "writes")):
            if endings and path.suffix.lower() not in endings:
                raise UnsupportedError(
                    f"converter {self.name} {verb} {', '.join(endings)} files, not {path.suffix or path.name!r}"
                )

    def files(self, target: Path) -> tuple[Path, ...]:
        """Every file that a conversion to ``target`` writes."""
        return (target,)

    def _sources(self) -> tuple[str, ...]:
        return () if self.needs == "onnx" else self.takes

    def missing_for(self) -> str:
        """Why this very choice cannot be used here, or an empty string."""
        return type(self).missing()


class HomeConverter(Converter):
    """A converter that shares dlas's environment and runs in a worker.

    Class attributes:
        function: ``module:function`` called with source, target, architecture and the options as keywords; returns
            the versions of what it used.
    """

    function: ClassVar[str] = ""

    def _convert(
        self, source: Path, target: Path, scratch: Path, architecture: str, timeout_s: float
    ) -> Converted:
        start = time.monotonic()
        made = scratch / target.name
        options = {name: getattr(self.options, name) for name in self.options.__dataclass_fields__}
        versions = run_in_worker(
            self.function, str(source), str(made), architecture, timeout_s=timeout_s, **options
        )
        deliver([made], [target])
        return Converted(Outcome.OK, versions=versions, seconds=time.monotonic() - start)


class SideConverter(Converter):
    """A converter that runs under the Python of a side environment.

    Class attributes:
        environment: Name of its environment.
        runner: File in ``_runners`` that drives the tool there.
        reports: Distributions whose versions belong to the result.
        companion: Ending of a second file that the tool writes beside the target.
    """

    environment: ClassVar[str] = ""
    runner: ClassVar[str] = ""
    reports: ClassVar[tuple[str, ...]] = ()
    companion: ClassVar[str] = ""

    @property
    def side(self) -> SideEnvironment:
        """The environment this very choice runs in."""
        return side_environment(self.environment)

    @classmethod
    def missing(cls) -> str:
        """Which environment to build, or an empty string."""
        state = side_environment(cls.environment).state()
        return "" if state == "built" else f"needs its environment: dlas doctor --make-env {cls.environment}"

    def files(self, target: Path) -> tuple[Path, ...]:
        """The target last, after the file that belongs to it."""
        return (target.with_suffix(self.companion), target) if self.companion else (target,)

    def missing_for(self) -> str:
        """As :meth:`missing`, for the environment that the options ask for."""
        side = self.side
        return "" if side.state() == "built" else f"needs its environment: dlas doctor --make-env {side.name}"

    def _convert(
        self, source: Path, target: Path, scratch: Path, architecture: str, timeout_s: float
    ) -> Converted:
        handed, notes = self._hand_over(source, scratch, architecture, timeout_s)
        order = {
            "source": str(handed),
            "target": str(scratch / f"made{target.suffix.lower()}"),
            "reports": list(self.reports),
            "options": {n: getattr(self.options, n) for n in self.options.__dataclass_fields__},
        }
        done = run_runner(self.side.interpreter, self.runner, order, scratch, timeout_s)
        if done.status is Outcome.OK:
            made = self.files(Path(order["target"]))
            absent = [p for p in made if not p.is_file() or p.stat().st_size == 0]
            if absent:
                reason = f"the tool ended well but wrote no {absent[0].suffix} file"
                return Converted(Outcome.CRASH, reason, "", done.stderr_tail, done.versions, done.seconds)
            deliver(made, self.files(target))
        return Converted(
            done.status, done.reason, done.signal, done.stderr_tail, done.versions, done.seconds, notes
        )

    def _hand_over(
        self, source: Path, scratch: Path, architecture: str, timeout_s: float
    ) -> tuple[Path, tuple[str, ...]]:
        """A file of its own for the tool (some rewrite what they are given), and what was done to get it."""
        from dlas.graph.format import companions, save_model
        from dlas.graph.guard import import_model
        from dlas.graph.passes import bind_batch

        if self.needs == "torch":  # also an exported program: PyTorch's own reader would run what is in it
            handed = scratch / f"given{self.takes[0]}"
            function = "dlas.runtime.converters._torch:program"
            run_in_worker(function, str(source), str(handed), architecture, timeout_s=timeout_s)
            return handed, (f"{self.name} was given the torch module of {source.name}",)
        if source.suffix.lower() in self.takes:
            handed = scratch / f"given{source.suffix.lower()}"
            shutil.copyfile(source, handed)
            for other in companions(source):
                copied = scratch / other.relative_to(source.parent)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(other, copied)
            return handed, ()
        handed = scratch / "given.onnx"
        save_model(bind_batch(import_model(source, architecture), 1), handed)
        return handed, (f"{self.name} was given the ONNX file that dlas makes of {source.name}",)


def deliver(made: Sequence[Path], targets: Sequence[Path]) -> None:
    """Put finished files in their places, all or none."""
    with atomic_paths(targets) as temporaries:
        for file, temporary in zip(made, temporaries, strict=True):
            shutil.copyfile(file, temporary)


def converter_for(text: str) -> Converter:
    """The converter that ``name:option=value`` spells.

    Raises:
        UnknownNameError: There is none of that name, or it has no such option.
        OptionError: A value it does not accept.
    """
    choice = Choice.parse(text)
    return converters.get(choice.name)(**choice.as_dict())


def side_environments() -> list[SideEnvironment]:
    """Every side environment dlas has a lock file for, by name."""
    return [SideEnvironment.read(lock) for lock in sorted((_FOLDER / "locks").glob("*.txt"))]


def side_environment(name: str) -> SideEnvironment:
    """The side environment called ``name``; raises UnknownNameError."""
    found = {e.name: e for e in side_environments()}
    if name not in found:
        raise UnknownNameError("environment", name, found, "`dlas doctor` lists them")
    return found[name]


def run_runner(
    python: Path, runner: str, order: Mapping[str, Any], scratch: Path, timeout_s: float
) -> Converted:
    """Let a script of ``_runners`` carry out an order under another Python, and say what became of it.

    Args:
        python: The interpreter.
        runner: File name of the script.
        order: What to do; ``source``, ``target``, ``options`` and ``reports`` at least.
        scratch: Folder to run in.
        timeout_s: Longest time.

    Raises:
        DlasError: The interpreter cannot be started.
    """
    place, answer = scratch / "order.json", scratch / "result.json"
    place.write_text(json.dumps({**order, "runner": str(_RUNNERS / runner), "result": str(answer)}))
    command = [python, "-I", _RUNNERS / "driver.py", place]
    quiet = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ended = run_program(command, folder=scratch, timeout_s=timeout_s, env=quiet)
    except OSError as error:
        raise DlasError(
            f"{python} cannot be started: {error.strerror}", "build its environment again"
        ) from error
    known: dict[str, Any] = {}
    if answer.is_file():
        known = json.loads(answer.read_text())
    versions = dict(known.get("versions", {}))
    if ended.code is None:
        reason = f"no end within {timeout_s:g} s"
        return Converted(Outcome.TIMEOUT, reason, "SIGKILL", ended.tail, versions, ended.seconds)
    if ended.code < 0 or "status" not in known:
        reason = cause_of_death(ended.code)
        return Converted(Outcome.CRASH, reason, ended.signal, ended.tail, versions, ended.seconds)
    reason = str(known.get("reason", ""))[:_LONGEST]
    return Converted(Outcome(known["status"]), reason, "", ended.tail, versions, ended.seconds)
