"""ResNet-20 in int8 against its own float32 on the CIFAR-10 test rows, and against onnxruntime's own quantiser.

Claim: dlas's int8 loses at most 1.0 point of top-1 and gives the same label on at least 97 % of all 8,000 rows. Needs
DLAS_DATA. The rows are JPEGs, so accuracies are below the published ones: only differences on the same rows count.
Both quantisers are calibrated on the same 512 training rows, none of which is judged.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from _common import Row, finish, paired_interval, parser, progress

LOSS, AGREEMENT = 0.010, 0.97
CALIBRATION_ROWS = 512


class Rows:
    """Calibration rows in the form that onnxruntime's quantiser asks for."""

    def __init__(self, name: str, x: np.ndarray) -> None:
        self._feeds = iter([{name: x[i : i + 1]} for i in range(len(x))])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Next row, or None at the end."""
        return next(self._feeds, None)


def onnxruntime_int8(model: object, x: np.ndarray) -> object:
    """The peer: static QDQ quantisation by onnxruntime, per-channel weights, min-max calibration, its defaults."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    import dlas

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        dlas.save(model, source)
        quantize_static(
            source,
            target,
            Rows(model.inputs[0].name, x),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        return dlas.load(target)


def main() -> int:
    """Entry point."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=0, help="test rows, 0 for all")
    given = options.parse_args()
    if not os.environ.get("DLAS_DATA"):
        sys.stderr.write(
            "set DLAS_DATA to the folder with cifar10-test.parquet and models/: nothing was measured\n"
        )
        return 2
    import dlas
    from dlas.core.statistics import wilson
    from dlas.data.find import load_dataset
    from dlas.data.preprocess import prepare
    from dlas.data.splits import sample
    from dlas.graph.reference import predict

    test = load_dataset("cifar10-test.parquet").head(given.rows)
    train = sample(load_dataset("cifar10-train.parquet"), CALIBRATION_ROWS)
    original = dlas.load("models/cifar-resnet/resnet20.th", architecture="cifar-resnet:depth=20")
    progress("quantise")
    variants = {
        "dlas int8": dlas.compress(original, "int8", data=train),
        "onnxruntime int8": onnxruntime_int8(original, prepare(train, original)),
    }
    x = prepare(test, original)
    progress(f"judge on {len(test)} rows")
    answers = predict(original, x).argmax(1)
    right = answers == test.labels
    rows = []
    for name, model in variants.items():
        found = predict(model, x).argmax(1)
        hits = found == test.labels
        loss, (low, high) = float(right.mean() - hits.mean()), paired_interval(right, hits)
        same = int((found == answers).sum())
        peer = not name.startswith("dlas")
        lost_target, same_target = ("(peer)",) * 2 if peer else (f"<= {100 * LOSS:.1f}", f">= {AGREEMENT}")
        lost = (100 * loss, 100 * low, 100 * high, len(x), lost_target, peer or loss <= LOSS)
        agreed = (
            same / len(x),
            *wilson(same, len(x)),
            len(x),
            same_target,
            peer or same >= AGREEMENT * len(x),
        )
        rows += [
            Row(
                f"{name}: points lost", f"top-1 {hits.mean():.2%}", f"own float32, {right.mean():.2%}", *lost
            ),
            Row(f"{name}: same label", f"{same} of {len(x)}", "own float32", *agreed),
        ]
    return finish("ResNet-20 in int8 on CIFAR-10 (JPEG rows)", rows, given.json)


if __name__ == "__main__":
    sys.exit(main())
