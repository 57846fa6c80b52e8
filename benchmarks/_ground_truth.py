"""The rows of the ground-truth table, and how a run of one is made. Imported by ``ground_truth.py`` and by the tests.

The table was measured before dlas existed, on 1,000 (A) and 500 (B) JPEG files of the CIFAR-10 test set: the first 100
of each class by file name, and every second of these. The data set here lacks a fifth of all files. A and B are those
of the same files that are there: A 0000.jpg to 0099.jpg of each class, B those with an even number.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.errors import DlasError
from dlas.core.figure import Outcome
from dlas.core.worker import WorkerFailure, run_in_worker
from dlas.graph.guard import import_model
from dlas.graph.model import Model
from dlas.graph.signature import adapt_rows, output_quantisation, to_real
from dlas.runtime.converter import Converter, SideConverter, converter_for
from dlas.verify.differential import Comparison, compare_outputs
from dlas.verify.running import Subject, native, on_backend

_TIMEOUT_S = 900.0
_RANDOM_ROWS = 60
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True)
class Run:
    """One way to get answers.

    Attributes:
        file: Model file below the data folder.
        via: Converters, one after the other.
        path: Who runs what comes out: ``native`` (the runtime that owns the file), a back end as users write it, or
            one of :data:`SPECIAL`.
    """

    file: str
    via: tuple[str, ...] = ()
    path: str = "native"

    def __str__(self) -> str:
        return " -> ".join([Path(self.file).name, *self.via, self.path])


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Short name for ``--only``.
        reference: Whose answers are right.
        run: What is judged.
        rows: Which inputs: ``A``, ``B``, or random ones for a network (``vww``, ``ad01``, ``kws``).
        verdict: What may come out: verdicts, or outcomes where nothing ran.
        label_diff: Expected percentage of rows with another label; None where it does not count.
        max_abs: Expected largest difference.
        sqnr: Expected signal-to-noise ratio in dB, where the table has one.
        words: What the reason must contain.
        note: What else there is to say.
    """

    name: str
    reference: Run
    run: Run
    rows: str
    verdict: tuple[str, ...] = ("equal",)
    label_diff: float | None = 0.0
    max_abs: float | None = None
    sqnr: float | None = None
    words: str = ""
    note: str = ""

    @property
    def environments(self) -> tuple[str, ...]:
        """Side environments it needs."""
        found = [converter_for(text) for run in (self.reference, self.run) for text in run.via]
        return tuple(dict.fromkeys(c.side.name for c in found if isinstance(c, SideConverter)))

    @property
    def needs_keras(self) -> bool:
        """Whether TensorFlow is needed."""
        runs = (self.reference, self.run)
        return any(
            r.file.endswith(".h5") or any(v.startswith(("tf2onnx", "tflite-converter")) for v in r.via)
            for r in runs
        )


@dataclass(frozen=True)
class Found:
    """What came out of a row.

    Attributes:
        verdict: Verdict, or outcome where nothing ran.
        reason: Why, in one line.
        comparison: The differences, where it ran.
        holds: Whether it is what the table says; None where the row could not be tried.
        why: What does not fit, or what is missing.
    """

    verdict: str
    reason: str = ""
    comparison: Comparison | None = None
    holds: bool | None = None
    why: str = ""


@dataclass
class Bench:
    """Evaluates rows; files, inputs and answers are made once and kept.

    Attributes:
        data: Folder with the data sets and models.
        folder: Where converted files are kept.
        most: Images to use at most, evenly from all classes; 0 for all.
        tell: Receives one line per step.
    """

    data: Path
    folder: Path
    most: int = 0
    tell: Callable[[str], None] = lambda text: None
    _files: dict[tuple[str, tuple[str, ...]], Path | WorkerFailure] = field(default_factory=dict)
    _answers: dict[tuple[Run, str], np.ndarray | WorkerFailure] = field(default_factory=dict)
    _models: dict[Path, Model] = field(default_factory=dict)
    _inputs: dict[str, np.ndarray] = field(default_factory=dict)
    _labels: dict[str, np.ndarray] = field(default_factory=dict)

    def judge(self, row: Row) -> Found:
        """Run a row and set it against what is expected."""
        missing = self._missing(row)
        if missing:
            return Found("not tried", why=missing)
        reference = self.answers(row.reference, row.rows)
        if isinstance(reference, WorkerFailure):
            return Found("not tried", why=f"the reference does not run: {reference.reason}")
        found = self.answers(row.run, row.rows)
        if isinstance(found, WorkerFailure):
            return _against(row, Found(str(found.outcome), _with_tail(found)))
        comparison = compare_outputs(reference, found)
        return _against(row, Found(str(comparison.verdict), comparison.reason, comparison))

    def accuracy(self, run: Run, rows: str) -> float | None:
        """Share of right labels in percent, where the rows have some."""
        self._rows(rows)
        found = self.answers(run, rows)
        if rows not in self._labels or isinstance(found, WorkerFailure):
            return None
        return 100 * float((found.argmax(1) == self._labels[rows]).mean())

    def answers(self, run: Run, rows: str) -> np.ndarray | WorkerFailure:
        """What a run says to a set of rows, ``(N, K)``, or how it failed."""
        key = (run, rows)
        if key not in self._answers:
            try:
                self._answers[key] = self._run(run, rows)
            except WorkerFailure as failure:
                self._answers[key] = failure
            except DlasError as error:
                self._answers[key] = WorkerFailure(Outcome.UNSUPPORTED, str(error))
        return self._answers[key]

    def file(self, file: str, via: tuple[str, ...]) -> Path:
        """A model file, converted step by step; raises WorkerFailure."""
        if not via:
            return self.data / "models" / file
        key = (file, via)
        if key not in self._files:
            try:
                source = self.file(file, via[:-1])
                converter = converter_for(via[-1])
                target = self.folder / f"{len(self._files)}-{Path(file).stem}{_ending(converter)}"
                self.tell(f"convert {source.name} with {via[-1]}")
                done = converter.convert(source, target, timeout_s=_TIMEOUT_S)
                failed = WorkerFailure(done.status, f"{via[-1]}: {done.reason}", done.stderr_tail)
                self._files[key] = target if done.status is Outcome.OK else failed
            except WorkerFailure as failure:
                self._files[key] = failure
        found = self._files[key]
        if isinstance(found, WorkerFailure):
            raise found
        return found

    def _run(self, run: Run, rows: str) -> np.ndarray:
        path = self.file(run.file, run.via)
        self.tell(f"run {run} on {rows}")
        given = self._rows(rows)
        if run.file.endswith(".th"):  # as its authors feed it
            given = ((given / np.float32(255) - _MEAN) / _STD).astype(np.float32).transpose(0, 3, 1, 2)
        if run.path in SPECIAL:
            return SPECIAL[run.path](path, np.ascontiguousarray(given))
        model, origin = self._model(path), None
        if run.via and np.issubdtype(np.dtype(model.inputs[0].dtype), np.integer):
            # A conversion that kept the integers of its source need not say what they stand for.
            origin = self._model(self.data / "models" / run.file)
            given = adapt_rows(given, origin, 0)
        fed = [adapt_rows(given, model, 0)]
        if run.path == "native":
            found = native(Subject(path, model), fed, _TIMEOUT_S)[0]
        else:
            found = on_backend(model, run.path, fed, _TIMEOUT_S)[0]
        if origin is None or output_quantisation(model) is not None:
            return found
        return to_real(found.astype(origin.outputs[0].dtype), origin)

    def _model(self, path: Path) -> Model:
        if path not in self._models:
            self._models[path] = import_model(path)
        return self._models[path]

    def _rows(self, rows: str) -> np.ndarray:
        if rows not in self._inputs:
            if rows in RANDOM:
                self._inputs[rows] = RANDOM[rows](np.random.default_rng(0))
            else:
                self._inputs[rows], self._labels[rows] = images(self.data, rows, self.most)
        return self._inputs[rows]

    def _missing(self, row: Row) -> str:
        from dlas.core.lazy import installed
        from dlas.core.options import Choice
        from dlas.runtime.backend import backends
        from dlas.runtime.converter import side_environment

        for run in (row.reference, row.run):
            if not (self.data / "models" / run.file).is_file():
                return f"{run.file} is not among the data"
            name = "" if run.path in SPECIAL else Choice.parse(run.path).name
            if name in backends.names() and (why := backends.get(name).missing()):
                return f"{name} {why}"
        for name in row.environments:
            if side_environment(name).state() != "built":
                return f"needs the environment {name}: dlas doctor --make-env {name}"
        if row.needs_keras and not installed("tensorflow"):
            return "needs tensorflow: pip install 'dlas[keras]'"
        return ""


def images(data: Path, rows: str, most: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The images of A or B that are there, ``(N, 32, 32, 3)`` float32 0..255, and their labels.

    Args:
        data: The data folder.
        rows: ``A`` or ``B``.
        most: Use at most this many, evenly from all classes; 0 for all.
    """
    from PIL import Image
    from pyarrow import parquet

    table = parquet.read_table(data / "cifar10-test.parquet", columns=["image", "label"])
    found = []
    for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
        number = int(Path(image["path"]).stem)
        if number < 100 and (rows == "A" or number % 2 == 0):
            found.append((number, label, image["bytes"]))
    found.sort(key=lambda entry: entry[:2])  # number first: the head holds all classes
    found = found[: most or None]
    pixels = [np.asarray(Image.open(io.BytesIO(entry[2])).convert("RGB")) for entry in found]
    return np.stack(pixels).astype(np.float32), np.array([entry[1] for entry in found])


RANDOM: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "vww": lambda rng: rng.random((_RANDOM_ROWS, 96, 96, 3), dtype=np.float32),
    # Which ones the table was measured with is not recorded. Labels of the pair that differs flip in 0 % of the rows
    # (uniform 0..1) to 28 % (uniform -50..0); these come close to its figures.
    "ad01": lambda rng: rng.normal(0, 5, (100, 640)).astype(np.float32),
    "kws": lambda rng: rng.uniform(-123, 25, (100, 49, 10, 1)).astype(
        np.float32
    ),  # the range of its int8 twin
}


def _ending(converter: Converter) -> str:
    return converter.gives[0]


def _with_tail(failure: WorkerFailure) -> str:
    """The reason, and where a tool speaks of it only in passing, what it said."""
    told = [line for line in failure.stderr_tail.splitlines() if "rror" in line or "not exists" in line]
    return f"{failure.reason}; {told[-1].strip()}" if told else failure.reason


def _against(row: Row, found: Found) -> Found:
    """``found`` with whether it is what the row expects, and why not."""
    why = []
    if found.verdict not in row.verdict:
        why.append(f"expected {' or '.join(row.verdict)}")
    if row.words and row.words.lower() not in found.reason.lower():
        why.append(f"the reason does not say {row.words!r}")
    seen = found.comparison
    if seen is not None and row.label_diff is not None and seen.label_diff is not None:
        distance = 100 * seen.label_diff.value - row.label_diff
        if abs(distance) > max(1.0, left_out(row, seen.rows)):
            why.append(f"labels differ by {distance:+.1f} points")
    if seen is not None and row.max_abs is not None:
        small = row.max_abs < 1e-3  # rounding: less is as good
        if seen.max_abs > 10 * row.max_abs or (seen.max_abs < row.max_abs / 10 and not small):
            why.append("the largest difference is of another order")
    if seen is not None and row.sqnr is not None and seen.sqnr_db is not None:
        high = row.sqnr > 100
        if seen.sqnr_db < row.sqnr - 5 or (seen.sqnr_db > row.sqnr + 5 and not high):
            why.append(f"expected {row.sqnr:g} dB")
    return Found(found.verdict, found.reason, seen, not why, "; ".join(why))


def left_out(row: Row, rows: int) -> float:
    """Two standard errors, in points, of a percentage on ``rows`` images that are drawn from all of the published set.

    The variance is that of drawing without replacement; 0 for rows that the table does not count on images.
    """
    whole = {"A": 1000, "B": 500}.get(row.rows, rows)
    share = (row.label_diff or 0.0) / 100
    missing = max(0, whole - rows) / (whole - 1)
    return 200 * (share * (1 - share) / rows * missing) ** 0.5


# --- runs that go round dlas on purpose: the tool alone, as the table was measured -------------------------------


def raw_tvm_onnx(path: Path, rows: np.ndarray) -> np.ndarray:
    """TVM's own ONNX importer, without what dlas does to a graph first."""
    return run_in_worker("_ground_truth:tvm_onnx", str(path), rows, timeout_s=_TIMEOUT_S)


def raw_tvm_tflite(path: Path, rows: np.ndarray) -> np.ndarray:
    """TVM's own TFLite importer."""
    model = import_model(path)
    fed = adapt_rows(rows, model, 0)
    return to_real(run_in_worker("_ground_truth:tvm_tflite", str(path), fed, timeout_s=_TIMEOUT_S), model)


def tvm_onnx(path: str, rows: np.ndarray) -> np.ndarray:
    """In a worker: import, compile, run."""
    import onnx
    from tvm.relax.frontend.onnx import from_onnx

    return _tvm(from_onnx(onnx.load(path), keep_params_in_input=False), rows)


def tvm_tflite(path: str, rows: np.ndarray) -> np.ndarray:
    """In a worker: import, compile, run."""
    from tflite import Model as Flat
    from tvm.relax.frontend.tflite import from_tflite

    return _tvm(from_tflite(Flat.GetRootAs(Path(path).read_bytes(), 0)), rows)


def _tvm(module: Any, rows: np.ndarray) -> np.ndarray:
    import tvm
    from tvm import relax

    module = relax.get_pipeline("zero")(module)
    built = tvm.compile(module, target=tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(built, tvm.cpu())
    name = next(str(g.name_hint) for g in module.get_global_vars() if g.name_hint == "main")
    found = []
    for row in rows:
        answer = machine[name](tvm.runtime.tensor(np.ascontiguousarray(row[None])))
        found.append((answer if hasattr(answer, "numpy") else answer[0]).numpy()[0])
    return np.stack(found)


def litert_with(resolver: str) -> Callable[[Path, np.ndarray], np.ndarray]:
    """LiteRT on the file as it is, with other kernels."""

    def run(path: Path, rows: np.ndarray) -> np.ndarray:
        model = import_model(path)
        fed = adapt_rows(rows, model, 0)
        found = run_in_worker("_ground_truth:litert", str(path), fed, resolver, timeout_s=_TIMEOUT_S)
        return to_real(found, model)

    return run


def litert(path: str, rows: np.ndarray, resolver: str) -> np.ndarray:
    """In a worker: an interpreter with the kernels that ``resolver`` names."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    engine = Interpreter(model_path=path, experimental_op_resolver_type=OpResolverType[resolver])
    engine.allocate_tensors()
    given, wanted = engine.get_input_details()[0]["index"], engine.get_output_details()[0]["index"]
    found = []
    for row in rows:
        engine.set_tensor(given, row[None])
        engine.invoke()
        found.append(engine.get_tensor(wanted)[0].copy())
    return np.stack(found)


def as_bytes(path: Path, rows: np.ndarray) -> np.ndarray:
    """The same bytes under the shape the file declares: what an application does that forgets the layout."""
    model = import_model(path)
    return native(Subject(path, model), [rows.reshape(len(rows), *model.inputs[0].shape[1:])], _TIMEOUT_S)[0]


def unadapted(path: Path, rows: np.ndarray) -> np.ndarray:
    """The rows as the source takes them, whatever the file declares."""
    return run_in_worker("_ground_truth:onnx_as_given", str(path), rows, timeout_s=_TIMEOUT_S)


def onnx_as_given(path: str, rows: np.ndarray) -> np.ndarray:
    """In a worker: ONNX Runtime, one row after the other."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: row[None]})[0] for row in rows])


def ncnn(path: Path, rows: np.ndarray) -> np.ndarray:
    """ncnn, by a program that asks for its return codes."""
    return _pnnx().answers(path, rows)


def ncnn_careless(path: Path, rows: np.ndarray) -> np.ndarray:
    """ncnn, by a program that does not."""
    return _pnnx().answers(path, rows, strict=False)


def _pnnx() -> Any:
    return converter_for("pnnx")


def keras_3(path: Path, rows: np.ndarray) -> np.ndarray:
    """Keras 3, whatever wrote the file."""
    return run_in_worker("_ground_truth:keras_3_answers", str(path), rows, timeout_s=_TIMEOUT_S)


def keras_3_answers(path: str, rows: np.ndarray) -> np.ndarray:
    """In a worker."""
    from dlas.graph.formats.keras.loading import tensorflow

    tensorflow()
    import keras

    return np.asarray(keras.models.load_model(path, compile=False)(rows, training=False))


SPECIAL: dict[str, Callable[[Path, np.ndarray], np.ndarray]] = {
    "tvm alone": raw_tvm_onnx,
    "tvm's tflite importer": raw_tvm_tflite,
    "litert xnnpack": litert_with("AUTO"),
    "litert builtin": litert_with("BUILTIN_WITHOUT_DEFAULT_DELEGATES"),
    "litert reference": litert_with("BUILTIN_REF"),
    "NCHW bytes": as_bytes,
    "rows as given": unadapted,
    "ncnn": ncnn,
    "ncnn, codes ignored": ncnn_careless,
    "keras 3": keras_3,
}

# --- the table ---------------------------------------------------------------------------------------------------

_R20 = "cifar-resnet/resnet20.th"
_R8 = "mlperf-tiny/ic_resnet8"
_AD = "mlperf-tiny/ad01_autoencoder"
_VWW = "mlperf-tiny/vww_mobilenetv1_96_float.tflite"
_KWS = "mlperf-tiny/kws_dscnn_float.tflite"
_FAILED = ("crash", "unsupported")


def _resnet20() -> list[Row]:
    source = Run(_R20)
    dynamo, legacy = ("onnx-dynamo",), ("onnx-legacy",)

    def row(name: str, via: Sequence[str], path: str = "native", rows: str = "A", **expected: Any) -> Row:
        return Row(f"r20-{name}", source, Run(_R20, tuple(via), path), rows, **expected)

    found = []
    for word, via in (("dynamo", dynamo), ("legacy", legacy)):
        found += [
            row(f"{word}-ort-{level}", via, f"onnxruntime:level={level}", max_abs=1.5e-5)
            for level in ("disable", "basic", "extended", "layout", "all")
        ]
    found += [
        row(f"dynamo-tvm-{o}", dynamo, f"tvm:opt={o}", max_abs=1.7e-5) for o in ("O0", "O1", "O2", "O3")
    ]
    found.append(
        row("legacy-tvm", legacy, "tvm alone", verdict=_FAILED, label_diff=None, words="Dynamic pads")
    )
    found.append(
        row("legacy-tvm-dlas", legacy, "tvm:opt=O2", max_abs=1.7e-5, note="dlas folds constants first")
    )
    for precision, diff, most in (("bf16", 0.5, 0.334), ("f16", 0.1, 0.046)):
        found.append(
            row(
                f"dynamo-openvino-{precision}", dynamo, f"openvino:precision={precision}", label_diff=diff,
                max_abs=most, verdict=("label-diff", "score-only"),
                note="where a processor has no such arithmetic, OpenVINO takes another",
            )
        )  # fmt: skip
    found.append(row("dynamo-openvino-f32", dynamo, "openvino:precision=f32", max_abs=1.8e-5))
    for word, via in (("dynamo", dynamo), ("legacy", legacy)):
        found += [row(f"{word}-iree-{o}", via, f"iree:opt={o}", max_abs=1.7e-5) for o in ("O0", "O2", "O3")]
    wrong: dict[str, Any] = {"verdict": ("label-diff",), "label_diff": 46.0, "max_abs": 23.4, "rows": "B"}
    found += [
        row("onnx2tf-1.28", (*dynamo, "onnx2tf:version=1.28"), rows="B", max_abs=2.2e-5),
        row("onnx2tf-1.29", (*dynamo, "onnx2tf"), **wrong),
        row("onnx2tf-1.29-kat", (*dynamo, "onnx2tf:keep_axes=true"), **wrong),
        row("onnx2tf-1.29-fp16", (*dynamo, "onnx2tf:precision=float16"), **wrong),
        row("onnx2tf-1.29-bytes", (*dynamo, "onnx2tf"), "NCHW bytes", **{**wrong, "label_diff": 78.8, "max_abs": 36}),
        row("legacy-onnx2tf-1.29-kat", (*legacy, "onnx2tf:keep_axes=true"), rows="B", verdict=_FAILED, label_diff=None),
        row("litert-torch", ("litert-torch",), rows="B", max_abs=2.3e-5),
        row("executorch", (), "executorch", "B", max_abs=2.4e-5),
        row("ncnn", ("pnnx",), "ncnn", "B", verdict=_FAILED, label_diff=None, words="-1"),
        row(
            "ncnn-careless", ("pnnx",), "ncnn, codes ignored", "B", verdict=("crash",), label_diff=None,
            words="SIGSEGV",
        ),
    ]  # fmt: skip
    return found


def _resnet8() -> list[Row]:
    h5, flat, int8 = Run(f"{_R8}.h5"), Run(f"{_R8}_float.tflite"), f"{_R8}_int8.tflite"
    equal: dict[str, Any] = {"rows": "B", "max_abs": 3.1e-6, "sqnr": 120.0}
    paths = {
        "keras3": Run(h5.file, (), "keras 3"),
        "shipped": flat,
        "tflite-converter": Run(h5.file, ("tflite-converter",)),
        "tf2onnx-keras": Run(h5.file, ("tf2onnx:via=keras",)),
        "tf2onnx-function": Run(h5.file, ("tf2onnx:via=function",)),
        "keras-export": Run(h5.file, ("tf2onnx:via=export",)),
    }
    found = [Row(f"r8-{name}", h5, run, **equal) for name, run in paths.items()]
    equal = {"rows": "B", "max_abs": 2.4e-6, "sqnr": 121.0}
    found += [
        Row("r8-tflite-tf2onnx", flat, Run(flat.file, ("tf2onnx",)), **equal),
        Row("r8-tflite-tvm", flat, Run(flat.file, (), "tvm's tflite importer"), **equal),
        Row("r8-tflite-dlas-tvm", flat, Run(flat.file, (), "tvm:opt=O2"), note="read by dlas", **equal),
        Row("r8-int8", flat, Run(int8), "B", ("label-diff",), 3.8, 0.28, 19.0),
    ]
    runs = {
        "xnnpack": Run(int8, (), "litert xnnpack"),
        "builtin": Run(int8, (), "litert builtin"),
        "reference": Run(int8, (), "litert reference"),
        "tf2onnx": Run(int8, ("tf2onnx",)),
        "tvm": Run(int8, (), "tvm's tflite importer"),
    }
    pairs = (
        ("xnnpack", "builtin", 3.8), ("xnnpack", "reference", 4.6), ("builtin", "reference", 2.8),
        ("xnnpack", "tf2onnx", 1.0), ("reference", "tf2onnx", 4.4), ("xnnpack", "tvm", 8.6),
        ("builtin", "tvm", 10.2), ("reference", "tvm", 9.4),
    )  # fmt: skip
    found += [
        Row(f"r8-int8-{a}-{b}", runs[a], runs[b], "B", ("label-diff", "score-only"), diff)
        for a, b, diff in pairs
    ]
    found += [
        Row("r8-int8-tflite2onnx", Run(int8), Run(int8, ("tflite2onnx",)), "B", _FAILED, None, words="Assertion"),
        Row(
            "r8-tflite2onnx", flat, Run(flat.file, ("tflite2onnx",), "rows as given"), "B", _FAILED, None,
            note="NCHW input where the tflite has NHWC",
        ),
        Row(
            "r8-tflite2onnx-dlas", flat, Run(flat.file, ("tflite2onnx",)), "B", max_abs=2.4e-6,
            note="dlas turns the axes of what it feeds",
        ),
    ]  # fmt: skip
    return found


def _others() -> list[Row]:
    vww, h5, flat, kws = Run(_VWW), Run(f"{_AD}.h5"), Run(f"{_AD}_float.tflite"), Run(_KWS)
    quiet: dict[str, Any] = {"rows": "vww", "max_abs": 1.2e-7, "sqnr": 140.0}
    plain: dict[str, Any] = {"rows": "ad01", "max_abs": 5e-5, "sqnr": 126.0}
    return [
        Row("vww-tf2onnx", vww, Run(_VWW, ("tf2onnx",)), **quiet),
        Row("vww-tvm", vww, Run(_VWW, (), "tvm's tflite importer"), **quiet),
        Row("vww-dlas-tvm", vww, Run(_VWW, (), "tvm:opt=O2"), note="read by dlas", **quiet),
        Row("ad01-tflite-converter", h5, Run(h5.file, ("tflite-converter",)), **plain),
        Row("ad01-tf2onnx", h5, Run(h5.file, ("tf2onnx",)), **plain),
        Row("ad01-shipped", h5, flat, "ad01", ("label-diff",), 4.0, 0.914, 36.3),
        Row("ad01-tflite-tf2onnx", flat, Run(flat.file, ("tf2onnx",)), **plain),
        Row("ad01-tflite2onnx", flat, Run(flat.file, ("tflite2onnx",)), **plain),
        Row("kws-tvm", kws, Run(_KWS, (), "tvm's tflite importer"), "kws", _FAILED, None, words="NotImplemented"),
        Row("kws-tflite2onnx", kws, Run(_KWS, ("tflite2onnx",)), "kws", _FAILED, None),
        Row("kws-tf2onnx", kws, Run(_KWS, ("tf2onnx",)), "kws", ("label-diff", "score-only"), 1.0, None, 35.0),
    ]  # fmt: skip


ROWS: tuple[Row, ...] = (*_resnet20(), *_resnet8(), *_others())

# Of the published table, the files are not among the data.
ABSENT = (
    "vww_96.h5 crashes in Keras 3 and works in tf_keras",
    "vww int8: tf2onnx and TVM against LiteRT",
    "str_ww_ref_model.h5: all float paths",
)
