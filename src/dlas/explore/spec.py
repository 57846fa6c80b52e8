"""The stack file: one TOML table per layer, read into a StudySpec.

A list stands for several choices. A file in which every axis has one choice is a Stack; one with lists is a Study;
both are the same kind of file. Several ``[[model]]`` tables stand for one Study each. An unknown key is refused with
file, line and the nearest key that exists.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dlas.core.errors import DlasError, OptionError, UnknownNameError
from dlas.core.options import Choice, build_options, option, parse_value
from dlas.explore.result import Objective
from dlas.explore.space import DESIGNS, Pipeline, Space
from dlas.graph.preprocessing import Preprocessing


@dataclass(frozen=True)
class DataSpec:
    """``[data]``: rows the network is judged on, and rows that compression may look at."""

    path: str = option("", "data set: a file, a folder or a built-in name")
    split: str = option("", "split of the data set, where it has several")
    calibration: str = option("", "rows for calibration and fine-tuning; never judged on")
    calibration_split: str = option("", "split of the calibration set")
    rows: int = option(0, "rows to judge on, 0 for all", low=0)
    calibration_rows: int = option(0, "rows handed to compression, 0 for all", low=0)
    check_rows: int = option(200, "rows on which each compiled network is checked", low=1)
    label_offset: int = option(0, "added to the labels, for networks with a background class")


@dataclass(frozen=True)
class ModelSpec:
    """``[model]``: the network."""

    path: str = option("", "model file, or the name of a network dlas ships")
    architecture: str = option("", "architecture of a bare checkpoint, such as cifar-resnet:depth=20")
    name: str = option("", "name in tables; default the file's")


@dataclass(frozen=True)
class StudyOptions:
    """``[study]``: design, objectives and how carefully to measure."""

    design: str = option("grid", "which combinations are tried", choices=DESIGNS)
    objectives: tuple[str, ...] = option(("min:latency_ms", "max:top1"), "figures to optimise")
    timing: str = option("full", "timing protocol", choices=("full", "quick"))


@dataclass(frozen=True)
class AttackSpec:
    """``[attack]``: what the figure ``robust_accuracy`` is found with; without attacks there is none."""

    attacks: str = option(
        "", "attacks, such as fgsm,pgd:steps=10,square; those on the original are carried over"
    )
    eps: str = option("8/255", "largest change of a pixel, as a share of its range")
    rows: int = option(100, "judged rows to attack at most, balanced over the classes", low=1)


@dataclass(frozen=True)
class Limits:
    """``[limits]``: what one step may use."""

    step_timeout_s: float = option(600.0, "seconds one step may take", low=1)
    memory_gib: float = option(4.0, "memory one step may use", low=0.25)


@dataclass(frozen=True)
class StudySpec:
    """Everything a stack file says.

    Attributes:
        name: Study name.
        data: Rows to judge on and to calibrate with.
        model: The network.
        preprocessing: Fields of Preprocessing given by the user; empty means the model's own.
        space: Choices per axis.
        study: Design, objectives, timing.
        limits: Time and memory per step.
        attack: How robustness is judged, if at all.
        folder: Folder that relative paths start from, besides DLAS_DATA.
        text: The file as written, after overrides were applied (for the report).
    """

    name: str
    data: DataSpec
    model: ModelSpec
    space: Space
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    study: StudyOptions = StudyOptions()
    limits: Limits = Limits()
    attack: AttackSpec = AttackSpec()
    folder: Path = Path()
    text: str = ""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is optimised."""
        return tuple(Objective.parse(o) for o in self.study.objectives)


DEFAULT_PIPELINE = (
    "none",
    "int8",
    "int8:per_channel=false",
    "float16",
    "magnitude:sparsity=0.5",
    "magnitude:sparsity=0.8",
    "channel:ratio=0.25",
    "channel:ratio=0.5",
)

_TABLES: dict[str, Any] = {
    "data": DataSpec,
    "model": ModelSpec,
    "compress": ("pipeline",),
    "kernels": (),
    "runtime": ("backend", "threads"),
    "hardware": ("target",),
    "study": StudyOptions,
    "limits": Limits,
    "attack": AttackSpec,
}


def read_spec(
    path: Path,
    overrides: Mapping[str, str] | None = None,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
) -> StudySpec:
    """Read a stack file.

    Args:
        path: TOML file.
        overrides: Dotted key to value text, as given by ``--set data.path=...``.
        tables: Values of other command line options, in the form of the file; they win over the file.

    Raises:
        DlasError: The file is missing, not TOML, or holds several models; says where.
        UnknownNameError: A key that does not exist; names file, line and the nearest key.
        OptionError: A value of the wrong type or range.
    """
    found = read_specs(path, overrides, tables)
    if len(found) > 1:
        raise DlasError(
            f"{path}: {len(found)} [[model]] tables, expected one", "run them with `dlas study run`"
        )
    return found[0]


def read_specs(
    path: Path,
    overrides: Mapping[str, str] | None = None,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[StudySpec]:
    """Read a stack file that may hold several ``[[model]]`` tables: one study each, named after file and model.

    Args and errors as :func:`read_spec`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DlasError(f"{path}: no such file", "give a stack file or a model file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DlasError(f"{path}: cannot be read: {error}", "give a TOML text file") from error
    try:
        read = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also too many digits, too deep
        raise DlasError(f"{path}: not valid TOML: {error}", "correct that line") from error
    applied = "\n".join([text, *(f"# --set {key}={value}" for key, value in (overrides or {}).items())])
    folder = path.resolve().parent
    try:
        studies = _each(read, path.stem)
    except OptionError as error:
        raise DlasError(f"{path}: {error.message}", error.hint) from error
    studies = [_overridden(one, overrides) for one in studies]
    try:
        return [_finished(one, applied, path.stem, folder, tables) for one in studies]
    except UnknownKeyError as error:
        wanted = f"{error.table}.{error.key}".lstrip(".")
        if any(key == wanted or key.startswith(f"{error.key}.") for key in overrides or {}):
            raise DlasError(f"--set {wanted}: {error}") from error
        raise DlasError(f"{path}:{_line_of(text, error)}: {error}") from error
    except DlasError as error:
        blamed = _blamed(path, text, overrides or {})
        raise DlasError(f"{blamed}: {error.message}" if blamed else error.message, error.hint) from error


def _each(read: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The file once per ``[[model]]``, each with a name of its own, which names its report as well."""
    models = read.get("model")
    if not isinstance(models, list):
        return [read]
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        if not isinstance(model, Mapping) or not isinstance(model.get("path"), str):
            raise OptionError("model", model, "tables with a path: [[model]]")
        label = f"{read.get('name', name)}-{model.get('name') or Path(model['path']).stem}"
        if Path(label).name != label:
            raise OptionError("model.name", label, "a name that a file can have")
        if label in found:
            raise OptionError("model.name", label, "another name for each network")
        found[label] = {**read, "model": dict(model), "name": label}
    if not found:
        raise OptionError("model", models, "one or more tables with a path: [[model]]")
    return list(found.values())


def _overridden(read: dict[str, Any], overrides: Mapping[str, str] | None) -> dict[str, Any]:
    for key, value in (overrides or {}).items():
        set_key(read, key, value)
    return read


def _blamed(path: Path, text: str, overrides: Mapping[str, str]) -> str:
    """Who is at fault for a value that is refused: the file, a ``--set``, or else ('') another option."""
    for name, given in ((f"{path}", {}), *((f"--set {k}={v}", {k: v}) for k, v in overrides.items())):
        try:
            for read in _each(tomllib.loads(text), path.stem):
                spec_of(_overridden(read, given), path.stem)
        except DlasError:
            return name
    return ""


def embedded_spec(
    overrides: Mapping[str, str] | None = None, tables: Mapping[str, Mapping[str, Any]] | None = None
) -> StudySpec:
    """The study that ``dlas run`` does without arguments; see ``embedded.toml`` beside this file."""
    return read_spec(Path(__file__).with_name("embedded.toml"), overrides, tables)


def model_spec(
    model: str,
    overrides: Mapping[str, str] | None = None,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
) -> StudySpec:
    """A study of one model file with sensible defaults: the usual pipelines on every back end that is installed."""
    from dlas.runtime.backend import installed_backends

    read: dict[str, Any] = {"model": {"path": model}, "runtime": {"backend": installed_backends()}}
    return _finished(_overridden(read, overrides), "", Path(model).stem, Path(), tables)


def _finished(
    read: dict[str, Any],
    text: str,
    name: str,
    folder: Path,
    tables: Mapping[str, Mapping[str, Any]] | None,
) -> StudySpec:
    for table, values in (tables or {}).items():
        if values:
            read[table] = {**_table(read, table), **values}
    return replace(spec_of(read, name), folder=folder, text=text)


class UnknownKeyError(UnknownNameError):
    """A key of a stack file that does not exist."""

    def __init__(self, table: str, key: str, known: Any) -> None:
        super().__init__(f"key in [{table}]" if table else "table", key, known)
        self.table = table
        self.key = key


def set_key(tables: dict[str, Any], dotted: str, text: str) -> None:
    """Apply one ``--set table.key=value``; a value in brackets is read as TOML."""
    table, dot, key = dotted.partition(".")
    if not dot or not key:
        raise OptionError("--set", f"{dotted}={text}", "TABLE.KEY=VALUE, such as data.path=rows.parquet")
    if not isinstance(text, str):
        raise OptionError(dotted, text, "text, as behind --set", "write lists as '[1, 2]'")
    value: Any = parse_value(text)
    if text.startswith(("[", "{", '"')):
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError) as error:  # also too many digits, too deep
            raise OptionError("--set", f"{dotted}={text}", "a TOML value") from error
    tables.setdefault(table, {})[key] = value


def spec_of(tables: Mapping[str, Any], name: str) -> StudySpec:
    """A StudySpec from the tables of a stack file."""
    tables = dict(tables)
    name = str(tables.pop("name", name))
    model = dict(_table(tables, "model"))
    preprocessing = model.pop("preprocessing", {})
    Preprocessing.from_dict(_table({"model.preprocessing": preprocessing}, "model.preprocessing"))
    for table in tables:
        if table not in _TABLES:
            raise UnknownKeyError("", table, _TABLES)
    runtime, hardware = _table(tables, "runtime"), _table(tables, "hardware")
    _only(runtime, "runtime")
    _only(hardware, "hardware")
    _only(_table(tables, "kernels"), "kernels")
    compress = _table(tables, "compress")
    _only(compress, "compress")
    space = Space(
        compress=_with_original(read_pipelines(compress.get("pipeline", list(DEFAULT_PIPELINE)))),
        backends=_unique(Choice.parse(str(b)) for b in _list(runtime.get("backend", "onnxruntime"))),
        threads=_unique(_threads(t) for t in _list(runtime.get("threads", 1))),
        targets=_unique(Choice.parse(str(t)) for t in _list(hardware.get("target", "host"))),
    )
    study: StudyOptions = _options(StudyOptions, tables, "study")
    for objective in study.objectives:
        Objective.parse(objective)  # refused now, not after the network was imported
    return StudySpec(
        name=name,
        data=_options(DataSpec, tables, "data"),
        model=_options_from(ModelSpec, model, "model"),
        preprocessing=preprocessing,
        space=space,
        study=study,
        limits=_options(Limits, tables, "limits"),
        attack=_options(AttackSpec, tables, "attack"),
    )


def read_pipelines(given: Any) -> list[Pipeline]:
    """Pipelines from TOML: a string, a table whose lists are expanded, or a list of those applied in order.

    ``{ method = "magnitude", sparsity = [0.5, 0.8] }`` stands for two pipelines; ``[["channel:ratio=0.5", "int8"]]``
    for one pipeline of two steps.
    """
    found: list[Pipeline] = []
    for entry in given if isinstance(given, list) else [given]:
        parts = entry if isinstance(entry, list) else [entry]
        found.extend(
            Pipeline(tuple(itertools.chain.from_iterable(p.steps for p in combination)))
            for combination in itertools.product(*(_expand(part) for part in parts))
        )
    return list(dict.fromkeys(found))


def _expand(part: Any) -> list[Pipeline]:
    if isinstance(part, str):
        return [Pipeline.parse(part)]
    if isinstance(part, dict) and isinstance(part.get("method"), str):
        options = {k.replace("-", "_"): _list(v) for k, v in part.items() if k != "method"}
        return [
            Pipeline((Choice.of(part["method"], **dict(zip(options, values, strict=True))),))
            for values in itertools.product(*options.values())
        ]
    raise OptionError("compress.pipeline", part, 'text such as "int8", or a table with a method key')


def _with_original(pipelines: list[Pipeline]) -> tuple[Pipeline, ...]:
    """The uncompressed network is always tried, and first: nothing else can be judged without it."""
    return (Pipeline(), *(p for p in pipelines if p.steps))


def _table(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = tables.get(name, {})
    if not isinstance(value, Mapping):
        raise OptionError(name, value, f"a table: [{name}]")
    return value


def _only(table: Mapping[str, Any], name: str) -> None:
    for key in table:
        if key not in _TABLES[name]:
            raise UnknownKeyError(name, key, _TABLES[name])


def _options(kind: type, tables: Mapping[str, Any], name: str) -> Any:
    return _options_from(kind, _table(tables, name), name)


def _options_from(kind: type, table: Mapping[str, Any], name: str) -> Any:
    known = [f.name for f in dataclasses.fields(kind)]
    for key in table:
        if key not in known:
            raise UnknownKeyError(name, key, [*known, "preprocessing"] if name == "model" else known)
    return build_options(kind, table, name)


def _threads(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError("runtime.threads", value, "a whole number of at least 1")
    return value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _unique(values: Any) -> tuple[Any, ...]:
    found = tuple(dict.fromkeys(values))
    if not found:
        raise OptionError("an axis", [], "at least one choice")
    return found


def _line_of(text: str, error: UnknownKeyError) -> int:
    """Line of the offending key: in its table if it can be found there, else where the word first stands."""
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([\w.-]+)", line)
        if header:
            table = header[1].split(".")[0]
            if not error.table and table == error.key:
                return number
        elif table == error.table and re.match(rf"\s*[\"']?{re.escape(error.key)}[\"']?\s*=", line):
            return number
    return 1
