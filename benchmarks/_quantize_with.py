"""One tool quantises one ONNX network and the result is judged: the part of compare_quantizers.py that runs alone.

Every tool gets the same files and runs in a process and an environment of its own, so nothing but that tool, NumPy
and ONNX Runtime may be imported. Usage: ``_quantize_with.py SETTING FOLDER RESULT.onnx``; prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

# Neither tool may report home, nor look anything up.
os.environ |= {
    "OLIVE_DISABLE_TELEMETRY": "1",
    "NNCF_CI": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}

import numpy as np

BATCH = 100
LABELLED = "dlas int8 + class-bias (uses the calibration labels)"
SETTINGS = {
    "dlas": ("dlas", {}),
    LABELLED: ("dlas", {"class_bias": True}),
    "olive": ("olive", {}),
    "olive per-channel": ("olive", {"per_channel": True}),
    "nncf": ("nncf", {}),
    "nncf mixed, exact bias": ("nncf", {"preset": "mixed", "fast_bias_correction": False}),
}
"""Name in the table -> tool and what differs from its defaults. The second of a peer is what its manual advises for
accuracy: per-channel weights, and asymmetric activations with the slower bias correction. That of dlas is told the
labels of the calibration rows, which no other setting is."""

PACKAGES = ("dlas", "olive-ai", "nncf", "onnxruntime", "onnx", "numpy", "torch")


def with_dlas(folder: Path, result: Path, options: dict[str, object]) -> None:
    """The int8 method of dlas with its defaults, and class-bias behind it where the options say so."""
    import dlas
    from dlas.data.dataset import Dataset

    found = np.load(folder / "calibration.npy")
    methods, rows = ["int8"], Dataset("calibration", found, task="none")
    if options.get("class_bias"):
        methods.append("class-bias")
        rows = Dataset("calibration", found, np.load(folder / "calibration_labels.npy"))
    dlas.save(dlas.compress(folder / "model.onnx", *methods, data=rows), result)


def with_olive(folder: Path, result: Path, options: dict[str, object]) -> None:
    """Olive's pass OnnxStaticQuantization, run directly: its workflow engine would only add to the time."""
    from olive.data.config import DataComponentConfig, DataConfig
    from olive.data.registry import Registry
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.quantization import OnnxStaticQuantization

    rows = np.load(folder / "calibration.npy")
    name = _input(folder / "model.onnx")

    class Rows:
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], int]:
            return {name: rows[index]}, 0

    @Registry.register_dataset("calibration_rows")
    def calibration_rows(**_: object) -> Rows:
        return Rows()

    data = DataConfig(
        name="calibration",
        load_dataset_config=DataComponentConfig(type="calibration_rows"),
        pre_process_data_config=DataComponentConfig(type="skip_pre_process"),
        dataloader_config=DataComponentConfig(params={"batch_size": 1}),
    )
    quantization = create_pass_from_dict(
        OnnxStaticQuantization, {"data_config": data, **options}, disable_search=True
    )
    made = quantization.run(
        ONNXModelHandler(model_path=str(folder / "model.onnx")), str(result.with_suffix(""))
    )
    Path(made.model_path).replace(result)


def with_nncf(folder: Path, result: Path, options: dict[str, object]) -> None:
    """``nncf.quantize`` on the ONNX network; its default subset is all the rows there are."""
    import nncf
    import onnx

    rows = np.load(folder / "calibration.npy")
    name = _input(folder / "model.onnx")
    preset = options.get("preset")
    made = nncf.quantize(
        onnx.load(folder / "model.onnx"),
        nncf.Dataset(rows, lambda row: {name: row[None]}),
        subset_size=len(rows),
        preset=nncf.QuantizationPreset(preset) if preset else None,
        fast_bias_correction=bool(options.get("fast_bias_correction", True)),
    )
    onnx.save(made, result)


def _input(path: Path) -> str:
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


def answers(path: Path, rows: np.ndarray) -> np.ndarray:
    """Label of every row, ``(N,) int64``, by ONNX Runtime with its defaults."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    step = given.shape[0] if isinstance(given.shape[0], int) else BATCH
    return np.concatenate(
        [
            session.run(None, {given.name: part})[0].reshape(len(part), -1).argmax(1)
            for part in _parts(rows, step)
        ]
    )


def _parts(rows: np.ndarray, step: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows) - len(rows) % step, step):
        yield rows[start : start + step]


def main() -> int:
    """Entry point."""
    setting, folder, result = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    start = time.perf_counter()
    tool, options = SETTINGS[setting]
    {"dlas": with_dlas, "olive": with_olive, "nncf": with_nncf}[tool](folder, result, dict(options))
    quantised = time.perf_counter()
    found = answers(result, np.load(folder / "rows.npy", mmap_mode="r"))
    judged = time.perf_counter()
    np.save(result.with_suffix(".npy"), found)
    told = {
        "quantise_s": quantised - start,
        "evaluate_s": judged - quantised,
        "versions": {name: _version(name) for name in PACKAGES if _version(name)},
    }
    print("\n" + json.dumps(told))
    return 0


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
