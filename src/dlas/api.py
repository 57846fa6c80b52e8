"""The Python face of dlas: the same nouns as the command line, on paths or Models alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlas.core.errors import DataError, DlasError, ModelError, OptionError, UnsupportedError
from dlas.core.files import scratch_folder

if TYPE_CHECKING:
    from dlas.compress.method import Progress as MethodProgress
    from dlas.core.timing import Protocol
    from dlas.data.dataset import Dataset
    from dlas.explore.progress import Progress
    from dlas.explore.result import StudyResult
    from dlas.graph.format import Written
    from dlas.graph.model import Model
    from dlas.kernels.asymmetric.study import AsymmetricStudy
    from dlas.kernels.asymmetric.survey import SurveyOptions
    from dlas.kernels.asymmetric.systolic import ArrayOptions
    from dlas.kernels.asymmetric.throughput import IssueOptions
    from dlas.runtime.backend import Executable
    from dlas.runtime.bench import BenchRow
    from dlas.runtime.engine.explain import Explanation
    from dlas.runtime.engine.plan import Plan
    from dlas.runtime.engine.profile import Profile
    from dlas.verify.attack.report import AttackReport
    from dlas.verify.conversion import Conversion
    from dlas.verify.differential.compare import CompareReport
    from dlas.verify.localize.report import LocalizeReport
    from dlas.verify.mutate.report import MutationReport
    from dlas.verify.repair.report import RepairReport
    from dlas.verify.running import Subject

_MODELS = "a path, a name of `dlas list`, a Model or a torch.nn.Module"


def load(
    source: Any,
    example: Any = None,
    *,
    architecture: str = "",
    name: str = "",
    preprocessing: Mapping[str, Any] | None = None,
) -> Model:
    """A network from a file, from the name of one that dlas ships, or from a ``torch.nn.Module``.

    Args:
        source: Path of an ONNX, TFLite or PyTorch file (relative ones are also looked for under DLAS_DATA), a name
            such as ``digits-cnn``, an architecture with random weights (``resnet:depth=18``; seed 0), a Model
            (returned as it is), or a module object.
        example: For a module: one example input tensor, batch axis first.
        architecture: For a bare checkpoint: ``cifar-resnet:depth=20``; found out by itself where possible.
        name: Name for tables.
        preprocessing: Fields of Preprocessing, if the file does not carry them.

    Raises:
        ModelError: The file is missing or not a network.
        UnsupportedError: It uses operators dlas cannot express; all are named.
    """
    from dataclasses import replace

    from dlas.graph.guard import import_model
    from dlas.graph.model import Model
    from dlas.graph.preprocessing import Preprocessing

    if isinstance(source, Model):
        model = source
    elif isinstance(source, str) and is_architecture(source):
        model = untrained(source)
    elif isinstance(source, str | Path):
        model = import_model(model_path(source), architecture)
    else:
        from dlas.graph.formats.torch import from_module

        _check_module(source, example)
        model = from_module(source, example, name or type(source).__name__)
    if name:
        model = model.renamed(name)
    if preprocessing:
        model = replace(model, preprocessing=Preprocessing.from_dict(preprocessing))
    return model


def model_path(source: str | Path) -> Path:
    """Where a model lies: a name dlas ships, a path, or a path below DLAS_DATA."""
    if not isinstance(source, str | Path):
        raise OptionError("model", source, _MODELS)
    from dlas.core.paths import resolve
    from dlas.models.pretrained import pretrained_path

    return pretrained_path(str(source)) or resolve(source, "model")


def is_architecture(source: str) -> bool:
    """Whether ``source`` names an architecture, with or without options, and no file or shipped network."""
    from dlas.models.architecture import architectures
    from dlas.models.pretrained import pretrained_path

    name = source.partition(":")[0]
    return name in architectures.names() and not Path(source).exists() and pretrained_path(source) is None


def untrained(choice: str) -> Model:
    """An architecture with the random weights of seed 0: right for times and sizes, useless for answers.

    Raises:
        OptionError: An option does not accept the value.
    """
    import torch

    from dlas.graph.formats.torch import from_module
    from dlas.models.architecture import architecture_for

    architecture = architecture_for(choice)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = architecture.build()
        example = torch.randn(1, *architecture.input_shape)
    return from_module(module, example, choice.replace(":", " "), architecture.preprocessing)


def save(model: Model, path: str | Path) -> Written:
    """Write a network in the format that the ending of ``path`` names; returns notes on what could not be kept."""
    from dlas.graph.format import save_model
    from dlas.graph.model import Model

    if not isinstance(model, Model):
        raise OptionError("model", model, "a Model", "make one with dlas.load")
    return save_model(model, Path(path))


def compress(
    model: str | Path | Model,
    *methods: str,
    data: str | Path | Dataset | None = None,
    split: str = "",
    progress: MethodProgress | None = None,
    checkpoints: str | Path | None = None,
    **options: Any,
) -> Model:
    """Apply compression methods in order.

    Args:
        model: Network or path.
        methods: Names, with options as ``magnitude:sparsity=0.8``.
        data: Rows for calibration and fine-tuning; never those the network will be judged on.
        split: Split of the data set, where it has several.
        progress: Told the fraction done and what is being done.
        checkpoints: Folder for the checkpoints of training, from which the same call goes on after a kill; remove it
            when the result is safe. (The command line needs none: it keeps them in its cache.)
        options: Options of the method, if there is only one.

    Raises:
        UnknownNameError: No such method or option.
        DataError: A method needs rows and got none that fit.
    """
    from dlas.compress.checkpoint import checkpoints_in
    from dlas.compress.method import compress_model
    from dlas.core.options import Choice
    from dlas.runtime.costs import engine_costs

    if options and len(methods) != 1:
        raise DlasError(
            "options can be given to one method only",
            "write them behind their method: magnitude:sparsity=0.8",
        )
    rows, current = dataset(data, split), load(model)
    if rows is not None:
        current, note = prepared_for(current, rows)
        if note and progress is not None:
            progress(0.0, note)
    with nullcontext() if checkpoints is None else checkpoints_in(Path(checkpoints)):
        for text in methods:
            choice = Choice.parse(text)
            choice = Choice.of(choice.name, **{**choice.as_dict(), **options})
            current = compress_model(current, choice, rows, progress, engine_costs)
    return current


def convert(
    source: str | Path,
    target: str | Path,
    *,
    architecture: str = "",
    data: str | Path | Dataset | None = None,
    check: bool = True,
    read: Mapping[str, Any] | None = None,
    write: Mapping[str, Any] | None = None,
    converter: str = "",
    tell: Callable[[str], None] = lambda text: None,
) -> Conversion:
    """Convert a file and compare the result with its source on the runtimes that own the two formats.

    ``read`` and ``write`` are options of the two formats (``dlas list formats``). ``converter`` names somebody else's
    tool (``onnx2tf:version=1.28``; ``dlas list converters``) that writes the target instead of dlas.
    """
    from dlas.verify.conversion import convert_file, convert_with

    if converter:
        from dlas.runtime.converter import converter_for

        if write:
            raise OptionError(
                "write", dict(write), "none with a converter, whose options stand behind its name"
            )
        return convert_with(
            converter_for(converter),
            model_path(source),
            Path(target),
            architecture=architecture,
            data=dataset(data),
            check=check,
            read=read,
            tell=tell,
        )
    return convert_file(
        model_path(source),
        Path(target),
        architecture=architecture,
        data=dataset(data),
        check=check,
        read=read,
        write=write,
        tell=tell,
    )


def compile(
    model: str | Path | Model,
    backend: str = "onnxruntime",
    *,
    target: str = "host",
    threads: int = 1,
    batch: int = 1,
) -> Executable:
    """Compile a network; the result has ``run``, ``profile``, ``memory`` and ``close``."""
    from dlas.runtime.backend import backend_for

    for name, value in (("threads", threads), ("batch", batch)):
        if not isinstance(value, int) or value < 1:
            raise OptionError(name, value, "a whole number of at least 1")
    return backend_for(backend).compile(load(model), target, threads=threads, batch=batch)


def compare(
    source: str | Path | Model,
    *targets: str | Path | Model,
    data: str | Path | Dataset | None = None,
    split: str = "",
    paths: Sequence[str] = (),
    rows: int = 200,
    layers: bool = False,
    timing: Protocol | None = None,
    architecture: str = "",
    timeout_s: float = 300.0,
    tell: Callable[[str], None] = lambda text: None,
) -> CompareReport:
    """Compare conversions with their source; files run on the runtime that owns them, and on ``paths`` besides.

    Args:
        source: The network that is right by definition.
        targets: Its conversions; without any, the source itself is run on the paths.
        data: Rows; without them random inputs are used.
        split: Split of the data set.
        paths: Back ends and levels to run each target on as well: ``ort:O0``, ``tvm:O0..O3``, ``openvino:bf16``.
            Without any and without targets: ``ort:O0``, and every installed back end as it is by default.
        rows: Rows to use at most.
        layers: Also compare intermediate tensors by name.
        timing: How to time the paths (``dlas.verify.differential.times.PROTOCOL``); by default they are not timed.
        architecture: For the bare checkpoints among them.
        timeout_s: Longest time for compiling, and for 64 rows.
        tell: Receives one line per step.

    Raises:
        DlasError: The source cannot be read or run, or none of the targets can be read; one that cannot be is a row.
    """
    from dlas.verify.differential.compare import compare_files
    from dlas.verify.paths import USUAL

    if not targets:
        targets, paths = (source,), paths or [USUAL]
    with _opened((source, *targets), architecture, needed=1) as (first, *others):
        return compare_files(
            first,
            others,
            data=dataset(data, split),
            paths=paths,
            rows=rows,
            layers=layers,
            timing=timing,
            timeout_s=timeout_s,
            tell=tell,
        )


def localize(
    source: str | Path | Model,
    target: str | Path | Model | None = None,
    *,
    path: str = "",
    data: str | Path | Dataset | None = None,
    split: str = "",
    rows: int = 32,
    budget_s: float = 300.0,
    architecture: str = "",
    tell: Callable[[str], None] = lambda text: None,
) -> LocalizeReport:
    """Where a conversion does something else than its source, why, and the operators to look at.

    Args:
        source: The network that is right by definition.
        target: Its conversion; not with ``path``.
        path: A back end instead: which operators of ``source`` does it compute otherwise than the network says?
        data: Samples; without them random numbers are fed.
        split: Split of the data set.
        rows: Samples at most.
        budget_s: Seconds for the search for explanations.
        architecture: For the bare checkpoints among them.
        tell: Receives one line per step.
    """
    from dlas.verify.localize.report import localize_files, localize_path

    if (target is None) == (not path):
        raise OptionError("target and path", target or path, "a conversion or a back end, one of the two")
    if target is None:
        with _pair(source, source, data, split, architecture, tell) as (first, _, samples):
            return localize_path(first, path, data=samples, rows=rows, timeout_s=budget_s, tell=tell)
    with _pair(source, target, data, split, architecture, tell) as (first, second, samples):
        return localize_files(first, second, data=samples, rows=rows, budget_s=budget_s, tell=tell)


def repair(
    source: str | Path | Model,
    target: str | Path | Model,
    *,
    data: str | Path | Dataset | None = None,
    split: str = "",
    rows: int = 200,
    strategy: str = "replay",
    minimal: bool = False,
    budget_s: float = 300.0,
    architecture: str = "",
    tell: Callable[[str], None] = lambda text: None,
) -> RepairReport:
    """Change a conversion until it answers as its source does; the result's ``model`` is the repaired network.

    Args:
        source: The network that is right by definition.
        target: Its conversion; it is not changed.
        data: Samples: half of them to choose by, the other half for the last word.
        split: Split of the data set.
        rows: Samples at most.
        strategy: ``replay``, or ``fetafix`` for the published procedure.
        minimal: Drop every change whose removal changes nothing.
        budget_s: Seconds.
        architecture: For the bare checkpoints among them.
        tell: Receives one line per step.
    """
    from dlas.verify.repair.report import repair_file

    with _pair(source, target, data, split, architecture, tell) as (first, second, samples):
        return repair_file(
            first,
            second,
            data=samples,
            rows=rows,
            strategy=strategy,
            minimal=minimal,
            budget_s=budget_s,
            tell=tell,
        )


def mutate(
    model: str | Path | Model,
    *,
    data: str | Path | Dataset | None = None,
    split: str = "",
    paths: str | Sequence[str] = "onnxruntime",
    operators: str | Sequence[str] = "all",
    max_mutants: int = 100,
    seed: int = 0,
    rows: int = 50,
    folder: str | Path | None = None,
    architecture: str = "",
) -> MutationReport:
    """Put faults into a network, one at a time, and see which of them the rows notice on which path.

    Args:
        model: The network.
        data: Rows; without them random inputs are used.
        split: Split of the data set.
        paths: Ways to run it, such as ``ort:O0,tvm:O2``; tensor programs need one of TVM.
        operators: ``all``, ``graph``, ``program``, ``mutatenn``, or names of mutations.
        max_mutants: Budget, spread over the mutations and then over their sites; 0 for all.
        seed: Same seed, same mutants.
        rows: Rows to use at most.
        folder: Where mutants and tables go; finished mutants found there are not run again.
        architecture: For a bare checkpoint.
    """
    from dlas.verify.mutate import mutate as run

    return run(
        load(model, architecture=architecture),
        data=dataset(data, split),
        paths=paths,
        operators=operators,
        max_mutants=max_mutants,
        seed=seed,
        rows=rows,
        folder=Path(folder) if folder is not None else None,
    )


def attack(
    *models: str | Path | Model,
    data: str | Path | Dataset,
    split: str = "",
    attacks: str | Sequence[str] = "fgsm,pgd,square",
    eps: float | str = 8 / 255,
    rows: int = 200,
    path: str = "",
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    threads: int = 1,
    architecture: str = "",
    timeout_s: float = 300.0,
    progress: Progress | None = None,
) -> AttackReport:
    """Accuracy of networks on rows as they are, and as attacks change them by at most ``eps``.

    Args:
        models: Networks; what white boxes find on the first one is tried on all others (transfer).
        data: Labelled rows: images, or arrays within ``value_range``.
        split: Split of the data set.
        attacks: Names with options, such as ``fgsm,pgd:steps=40,square``.
        eps: Largest change of a number of a sample, as a share of its range: ``"8/255"`` of a pixel.
        rows: Rows to use at most; fewer than there are come as a sample balanced over the classes.
        path: What answers for the networks, such as ``tvm:O2``; by default the runtime that owns the file.
        value_range: For arrays that are no images: the values that 0 and 1 stand for.
        seed: For every attack that draws and has none of its own.
        threads: Of torch, and of the runtime that owns the file; answers repeat for one number of them.
        architecture: For the bare checkpoints among them.
        timeout_s: Longest time for compiling, and for 100 rows.
        progress: Told what is being done.

    Raises:
        DataError: The rows have no labels, or fit none of the networks.
        DlasError: None of the networks can be attacked; one among several that cannot be is a row that says why.
    """
    from dlas.verify.attack import attack_networks

    if not models:
        raise OptionError("models", models, "at least one network")
    samples = dataset(data, split)
    if samples is None:
        raise OptionError("data", data, "labelled rows: an attack needs to know which answers are right")
    with _opened(models, architecture, needed=1) as subjects:
        return attack_networks(
            subjects,
            samples,
            attacks=attacks,
            eps=eps,
            rows=rows,
            path=path,
            value_range=value_range,
            seed=seed,
            threads=threads,
            timeout_s=timeout_s,
            progress=progress,
        )


@contextmanager
def _pair(
    source: Any, target: Any, data: Any, split: str, architecture: str, tell: Callable[[str], None]
) -> Iterator[tuple[Subject, Subject, Dataset | None]]:
    """Source and target opened, and the samples; the source with the preprocessing found out from them."""
    from dataclasses import replace

    with _subjects((source, target), architecture) as (first, second):
        samples = dataset(data, split)
        if samples is not None:
            model, note = prepared_for(first.model, samples)
            first = replace(first, model=model)
            if note:
                tell(note)
        yield first, second, samples


@contextmanager
def _subjects(given: Sequence[Any], architecture: str) -> Iterator[list[Subject]]:
    """Paths and Models as files to run, in order; what is given twice is opened once."""
    with _opened(given, architecture, needed=len(given)) as found:
        yield found


@contextmanager
def _opened(given: Sequence[Any], architecture: str, *, needed: int) -> Iterator[list[Any]]:
    """As :func:`_subjects`; behind the first ``needed``, a file that cannot be read comes as an ``Unread``."""
    from dlas.graph.format import save_model, takes
    from dlas.graph.model import Model
    from dlas.verify.running import Subject, Unread

    def is_bare(one: Any, needed: bool) -> bool:
        path = model_path(one)  # a name that is none is a slip of the pen, not a result
        try:
            return takes(path, "architecture")
        except ModelError:
            if needed:
                raise
            return False

    bare = [g for i, g in enumerate(given) if not isinstance(g, Model) and is_bare(g, i < needed)]
    if architecture and not bare:
        raise OptionError("architecture", architecture, "none, as no file here is a bare checkpoint")
    with scratch_folder() as folder:

        def opened(one: Any) -> Subject:
            if not isinstance(one, Model):
                return Subject.open(model_path(one), architecture if one in bare else "")
            path = folder / f"{one.renamed(one.name).name}-{one.hash[:8]}.onnx"
            save_model(one, path)
            return Subject(path, one)

        found: list[Any] = []
        for i, one in enumerate(given):
            same = next((j for j in range(i) if given[j] is one or given[j] == one), None)
            try:
                found.append(opened(one) if same is None else found[same])
            except (ModelError, UnsupportedError) as error:
                if i < needed or isinstance(one, Model) or not model_path(one).exists():
                    raise
                found.append(Unread(model_path(one), error))
        yield found


def bench(
    model: str | Path | Model,
    backends: str | Sequence[str] = (),
    *,
    threads: Sequence[int] = (1,),
    target: str = "host",
    protocol: Protocol | None = None,
    layers: bool = False,
    limits: bool = False,
    fresh: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> list[BenchRow]:
    """Time a network on several back ends (all installed ones by default), interleaved.

    Args:
        model: The network.
        backends: Back ends as text.
        threads: Thread counts, one after the other.
        target: Device.
        protocol: How long and how often to time.
        layers: Also time per layer, where a back end can tell.
        limits: Also GFLOP/s, and the share of what the measured roofline of this machine allows.
        fresh: Measure that roofline again.
        tell: Receives one line per step.
    """
    from dlas.runtime.backend import installed_backends
    from dlas.runtime.bench import bench as run
    from dlas.runtime.bench import with_limits
    from dlas.runtime.engine.work import roof_for

    network = load(model)
    rows = run(
        network,
        [backends] if isinstance(backends, str) else list(backends) or installed_backends(),
        threads=threads,
        target=target,
        protocol=protocol,
        layers=layers,
        tell=tell,
    )
    if not limits:
        return rows
    tell("measure the limits of this machine")
    return with_limits(rows, network, lambda count: roof_for(count, fresh=fresh))


def explain(model: str | Path | Model, rows: Sequence[BenchRow]) -> list[Explanation]:
    """Layers of several back ends side by side, once per thread count; rows come from ``bench(layers=True)``."""
    from dlas.runtime.engine.explain import explain as align

    network, found = load(model), []
    for count in dict.fromkeys(row.threads for row in rows):
        taken = [row for row in rows if row.threads == count]
        told = {row.backend: row.layers for row in taken if row.layers}
        silent = {row.backend: row.reason or str(row.outcome) for row in taken if not row.layers}
        found.append(align(network, told, count, silent))
    return found


def profile(
    model: str | Path | Model,
    backend: str = "engine",
    *,
    threads: int = 1,
    target: str = "host",
    runs: int = 50,
    tell: Callable[[str], None] = lambda text: None,
) -> Profile:
    """Time a network on the engine step by step, against the limits of this machine.

    Args:
        model: The network.
        backend: The engine with its options, such as ``engine:policy=measure``.
        threads: Threads.
        target: Device, such as ``host:isa=x86-64-v3``.
        runs: Runs behind every median.
        tell: Receives one line per step.

    Raises:
        UnsupportedError: The engine cannot run the network here.
    """
    from dlas.core.options import Choice
    from dlas.runtime.profiling import profile as run

    if Choice.parse(backend).name != "engine":
        raise OptionError(
            "backend", backend, "engine, with or without options", "Executable.profile has the others"
        )
    return run(load(model), choice=backend, threads=threads, target=target, runs=runs, tell=tell)


def optimize(
    model: str | Path | Model,
    *,
    policy: str = "portfolio",
    impl: Sequence[str] = (),
    without: Sequence[str] = (),
    threads: int = 1,
    isa: str = "native",
    exact: bool = False,
    plugins: Sequence[str | Path] = (),
) -> tuple[Plan, list[tuple[str, str, str, str]]]:
    """Choose a kernel for every layer.

    Args:
        model: The network.
        policy: ``portfolio``, ``measure``, ``rules`` or ``fixed``.
        impl: Rules such as ``Conv=gspc`` or ``node:NAME=onnxruntime``; the last one that covers a layer decides.
        without: Engine passes to leave out.
        threads: Threads.
        isa: Instruction set.
        exact: Leave out kernels that differ from the reference by more than rounding.
        plugins: Shared objects with layers of your own; loading one runs its code.

    Returns:
        The plan, and one row per layer: name, operator, kernel, layouts.

    Raises:
        UnsupportedError: An operator that nothing here computes.
        UnknownNameError: No such kernel, operator, node or pass.
    """
    from dlas.core.options import Choice
    from dlas.runtime.backend import backend_for, deployable
    from dlas.runtime.engine.engine import prepared
    from dlas.runtime.engine.executable import EngineExecutable
    from dlas.runtime.engine.portfolio import Whole

    known = load(model)
    choice = Choice.of("engine", policy=policy, impl="+".join(impl), without="+".join(without), exact=exact)
    with backend_for(choice).compile(known, f"host:isa={isa}", threads=threads) as executable:
        assert isinstance(executable, EngineExecutable | Whole)
        plan = executable.plan
        assert plan is not None
    network = prepared(deployable(known), without=without)
    rows = [
        (name, call.node.op, kernel or "(same memory)", f"{' '.join(dict.fromkeys(ins))} to {' '.join(outs)}")
        for (name, kernel, ins, outs), call in zip(plan.impls, network.calls, strict=True)
    ]
    return plan, rows


def asymmetric(
    model: str | Path | Model,
    data: str | Path | Dataset,
    split: str = "",
    *,
    rows: int = 40,
    options: SurveyOptions | None = None,
    machine: IssueOptions | None = None,
    array: ArrayOptions | None = None,
    architecture: str = "",
) -> AsymmetricStudy:
    """What an 8-bit by 4-bit matrix instruction with 16-bit accumulators would be worth for a network.

    Args:
        model: A network with float activations and one input.
        data: Rows to run it on.
        split: Split of the data set.
        rows: Rows to use at most.
        options: Grids, distances between two additions into 32 bits, tolerance.
        machine: The processor to model.
        array: The systolic array to model.
        architecture: Of a bare checkpoint.

    Raises:
        UnsupportedError: The network has no dense layer in float32.
        DlasError: The network or the data cannot be read, or do not fit.
    """
    from dlas.kernels.asymmetric.study import study as run
    from dlas.verify.running import source_rows

    samples, network = dataset(data, split), load(model, architecture=architecture)
    if samples is None:
        raise OptionError("data", data, "a data set: overflows depend on what the network sees")
    network, _ = prepared_for(network, samples)
    inputs, _ = source_rows(network, samples, rows)
    return run(network, inputs, options, machine, array)


def study(
    file: str | Path | None = None,
    *,
    out: str | Path = "dlas-out",
    overrides: Mapping[str, str] | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> StudyResult:
    """Run the stacks of a file (the embedded default without one), resuming where an earlier run was stopped."""
    from dlas.explore.spec import embedded_spec, read_spec
    from dlas.explore.study import Study

    spec = read_spec(Path(file), overrides) if file is not None else embedded_spec(overrides)
    return Study(spec, Path(out), progress=progress, command=command).run(fresh=fresh)


def report(result: StudyResult, path: str | Path) -> Path:
    """Write a study as one self-contained HTML page."""
    from dlas.report.html import write_report

    write_report(result, Path(path))
    return Path(path)


def dataset(data: Any, split: str = "") -> Dataset | None:
    """A data set by path or name; None and Datasets pass through, and have no split to be named."""
    from dlas.data.dataset import Dataset
    from dlas.data.find import load_dataset

    if split and not (isinstance(data, str | Path) and str(data)):
        raise OptionError(
            "split", split, "none without the path or name of a data set", "say which data it is a split of"
        )
    if isinstance(data, str | Path):
        return load_dataset(data, split=split) if str(data) else None
    if data is not None and not isinstance(data, Dataset):
        raise DataError(
            f"data is a {type(data).__name__}", "give a path, the name of a data set, or a dlas.Dataset"
        )
    return data


def prepared_for(model: Model, rows: Dataset) -> tuple[Model, str]:
    """``model``, with the preprocessing found out from labelled images if it says none, and a sentence on it."""
    from dlas.data.guess import with_guessed_preprocessing

    ready = not isinstance(rows.samples, Sequence) and rows.samples.dtype.kind == "f"
    if model.preprocessing is not None or ready or rows.labels is None or len(model.inputs) != 1:
        return model, ""
    return with_guessed_preprocessing(model, rows)


def _check_module(source: Any, example: Any) -> None:
    """Raise OptionError unless these are a torch module and the example it needs."""
    import torch

    if not isinstance(source, torch.nn.Module):
        raise OptionError("model", source, _MODELS)
    given = example if isinstance(example, tuple | list) else (example,)
    if not given or not all(hasattr(part, "shape") for part in given):
        raise OptionError(
            "example",
            example,
            "an input tensor of the module, batch axis first",
            "dlas.load(module, torch.zeros(1, ...))",
        )
