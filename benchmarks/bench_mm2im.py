"""Cycles of transposed convolution on ``mm2im``, and by two other mappings of the same array.

The accelerator's cycles are those of its model, which a test holds equal to its RTL. The other mappings are formulas
(``dlas.hardware.accelerators._mm2im.baselines`` says what is in them), zero insertion and the input-oriented mapping
(IOM), which leaves col2im to the CPU. IOM is given without that (``array``: multiplying and loading alone), with
partial sums on the bus (``bus``), and with an estimate of the CPU's time (``CPU``); with filters and taps laid over the
elements without gaps, and with an output channel per element (``narrow``).
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import asdict

import numpy as np
from _common import Row, finish, parser

from dlas.hardware.accelerators._mm2im.baselines import Processor, iom, zero_insertion
from dlas.hardware.accelerators._mm2im.geometry import Geometry
from dlas.hardware.accelerators._mm2im.schedule import Schedule, Shape

# Output channels, kernel, input size, input channels, stride; padding SAME.
LAYERS = {
    "DCGAN 1": (512, 5, 4, 1024, 2),
    "DCGAN 2": (256, 5, 8, 512, 2),
    "DCGAN 3": (128, 5, 16, 256, 2),
    "DCGAN 4": (3, 5, 32, 128, 2),
    "FSRCNN x2": (1, 9, 32, 56, 2),
    "FSRCNN x3": (1, 9, 32, 56, 3),
    "FSRCNN x4": (1, 9, 32, 56, 4),
    "FCN-8s first": (21, 4, 7, 21, 2),
    "FCN-8s last": (21, 16, 28, 21, 8),
    "pix2pix 1": (512, 4, 2, 1024, 2),
    "pix2pix last": (3, 4, 128, 128, 2),
    "style transfer 1": (64, 3, 64, 128, 2),
    "style transfer 2": (32, 3, 128, 64, 2),
    "style transfer 3": (3, 9, 256, 32, 1),
}
GRID = list(itertools.product((16, 32, 64), (3, 5, 7), (7, 9, 11), (32, 64, 128, 256), (1, 2)))
LABELS = ("IOM array", "IOM bus", "IOM CPU", "narrow IOM bus", "narrow IOM CPU", "zero insertion", "1 / kept")


def ratios(geometry: Geometry, shape: Shape) -> tuple[int, list[float]]:
    """Cycles of the accelerator, and what the other mappings take relative to that."""
    total = Schedule(geometry, shape).cycles()["total"]
    mapped, narrow = iom(geometry, shape), iom(geometry, shape, dense=False)
    others = [
        mapped.array,
        mapped.accelerator,
        mapped.total,
        narrow.accelerator,
        narrow.total,
        zero_insertion(geometry, shape),
    ]
    return total, [*(other / total for other in others), shape.taps / shape.kept]


def line(name: str, total: str, values: np.ndarray | list[float]) -> None:
    """One line of the table."""
    print(
        f"{name:26}{total:>10}"
        + "".join(f"{v:>{len(label) + 2}.2f}" for v, label in zip(values, LABELS, strict=True))
    )


def main() -> int:
    """Run everything."""
    options = parser(__doc__).parse_args()
    geometry = Geometry()
    print(f"{geometry}\n{Processor()}\n")
    print(f"{'layer':26}{'cycles':>10}" + "".join(f"  {label}" for label in LABELS))
    found = {name: ratios(geometry, Shape.same(*layer)) for name, layer in LAYERS.items()}
    for name, (total, values) in found.items():
        line(name, str(total), values)
    grid = np.array([ratios(geometry, Shape.same(*layer))[1] for layer in GRID])
    print()
    for name, values in (
        ("mean", grid.mean(0)), ("geometric mean", np.exp(np.log(grid).mean(0))), ("least", grid.min(0)),
        ("most", grid.max(0)),
    ):  # fmt: skip
        line(f"grid of {len(grid)}: {name}", "", values)
    print()
    dense, narrow = (max(found, key=lambda name, c=column: found[name][1][c]) for column in (2, 4))
    mean, least = float(grid[:, 2].mean()), float((grid[:, 0] / grid[:, 6]).min())
    best, straight = found[dense][1][2], found[narrow][1][4]
    square = float(np.mean([found[f"DCGAN {i}"][1][5] / 4 for i in range(1, 5)]))
    rows = [
        Row("grid, mean", "cycles", "IOM with its CPU", mean, None, None, len(grid), ">= 2", mean >= 2),
        Row(
            "grid, least",
            "cycles",
            "IOM array x kept",
            least,
            None,
            None,
            len(grid),
            ">= 0.97",
            least >= 0.97,
        ),
        Row(narrow, "cycles", "narrow IOM with its CPU", straight, None, None, 1, ">= 4", straight >= 4),
        Row(dense, "cycles", "IOM with its CPU", best, None, None, 1, ">= 4", best >= 4),
        Row("DCGAN, mean", "cycles", "zero insertion / S^2", square, None, None, 4, ">= 1", square >= 1),
    ]
    details = {"geometry": asdict(geometry), "layers": found, "labels": LABELS, "grid": grid.tolist()}
    return finish("mm2im against other mappings of the same array (cycles)", rows, options.json, details)


if __name__ == "__main__":
    sys.exit(main())
