"""Activations in a few bits, moved by a fixed amount before they are rounded and back afterwards.

A peer of ``dqa`` (Liu et al. 2023, "NoisyQuant: Noisy Bias-Enhanced Post-Training Activation Quantization for Vision
Transformers"). One signed grid per value, its range and the shift chosen by the least squared error on calibration
rows: ``x ~ Q(x + b) - b``, with a number ``b`` as in the released code, or a fixed noise per position as published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.quantize._activations.network import WHERE, Place, Writer
from dlas.compress.quantize._activations.rows import Calibration, found_in
from dlas.core.errors import UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.graph.model import Model, Step, step_versions
from dlas.graph.passes import infer_shapes
from dlas.kernels.formats import dqa as form

CLIPS, SHIFTS = 100, 50
_SEARCHED = 100_000  # values of one tensor that a search looks at


@dataclass(frozen=True)
class Options:
    """Options of ``noisyquant``."""

    bits: int = option(3, "bits of every value", low=2, high=8)
    noise: Literal["bias", "uniform"] = option(
        "bias",
        "what is added: one number per value, or a fixed noise per position",
        choices=("bias", "uniform"),
    )
    where: Literal["blocks", "all"] = option(
        "blocks", "which values: outputs of residual blocks, or every activation", choices=WHERE
    )
    only: str = option("", "patterns of the layers whose values are quantised, separated by |")
    rows: int = option(500, "training rows for the search and the measure of size", low=1)
    batch: int = option(128, "rows that are stored together", low=1)
    seed: int = option(0, "seed of the noise", low=0)


@methods.register("noisyquant")
class NoisyQuant(Method):
    """Activations rounded with a shift that makes the rounding error smaller."""

    name = "noisyquant"
    summary = "Activations in few bits with a bias or fixed noise around the rounding (NoisyQuant)"
    Options = Options
    needs_data = True
    options: Options

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """Values that are rounded; needs no rows."""
        found = self._found(model)[1]
        bits = self.options.bits
        what = "one signed grid, shifted by " + (
            "a number" if self.options.noise == "bias" else "a fixed noise"
        )
        changes = tuple(
            Change(p.layer, f"{p.channels} channels, {what}", "32 bits", f"{bits} bits") for p in found
        )
        return Plan(self.spelled(), changes, {"bits": Figure(bits, "bits", Source.ESTIMATED)})

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The network with rounded activations; see :meth:`Method.apply`.

        Raises:
            UnsupportedError: No activation to quantise, or not float32; ``noise=uniform`` where sizes are not fixed.
            UnknownNameError: A pattern of ``only`` matches nothing.
            DataError: No rows, rows of another shape, or values that are not finite.
        """
        options = self.options
        graph, found = self._found(model)
        rows = Calibration.of(model, data, options.rows, options.batch)
        told = progress or (lambda fraction, what: None)
        noises = self._noises(graph.graph, found)
        seen: dict[Place, list[np.ndarray]] = {p: [] for p in found}
        at: dict[Place, list[np.ndarray]] = {p: [] for p in found}
        share = max(1, _SEARCHED // rows.count)
        rng = np.random.default_rng(options.seed)
        for values in rows.values(graph, found, lambda f: told(0.3 * f, "reading values")):
            for place, x in zip(found, values, strict=True):
                flat = x.reshape(len(x), -1)
                where = rng.integers(0, flat.shape[1], share)
                seen[place].append(flat[:, where].reshape(-1))
                at[place].append(np.tile(where, len(x)))
        writer, made = Writer(graph), {}
        for index, place in enumerate(found):
            told(0.3 + 0.3 * index / len(found), f"searching {place.layer}")
            x = np.concatenate(seen[place])
            step = _best_step(x, options.bits)
            noise = noises[place]
            direction = np.ones_like(x) if noise is None else noise.reshape(-1)[np.concatenate(at[place])]
            factor = _best_shift(x, direction, step, options.bits, both=noise is None)
            if noise is None or factor == 0:
                noise, shift = None, np.full([1] * place.rank, factor, np.float32)
            else:
                shift = np.float32(factor) * noise
            layout = form.Layout(
                options.bits,
                np.zeros(place.channels, np.uint8),
                True,
                "static",
                np.array([step * 2 ** (options.bits - 1)], np.float32),
                tables="raw",
            )
            back = shift if noise is None else np.ascontiguousarray(np.moveaxis(shift, 1, place.axis))
            made[place] = (layout, shift)
            writer.grid(place, layout, back)
        infer_shapes(graph)
        stored = form.Stored()
        for values in rows.values(graph, found, lambda f: told(0.6 + 0.4 * f, "measuring")):
            for place, x in zip(found, values, strict=True):
                layout, shift = made[place]
                stored += form.encode_measured(x + shift, layout)[1]
        told(1.0, "quantised")
        return model.with_step(graph, self._step(made, stored, rows, data))

    def _step(
        self,
        made: dict[Place, tuple[form.Layout, np.ndarray]],
        stored: form.Stored,
        rows: Calibration,
        data: Dataset | None,
    ) -> Step:
        side = sum(layout.peaks.nbytes + shift.nbytes for layout, shift in made.values())
        facts = {
            "data": data.hash if data is not None else "",
            "stored_bits_per_value": stored.bits_per_value,
            "side_bytes": side,
        }
        notes = [
            f"{stored.bits_per_value:.4g} stored bits per value on the bytes of {rows.count} rows, {rows.size} at a "
            f"time; {side} bytes once with the network",
            *(
                f"{place.layer}: step {float(layout.peaks[0] * layout.factors[0]):.4g}, "
                + (
                    f"shift {shift.item():.4g}"
                    if shift.size == 1
                    else f"noise up to {np.abs(shift).max():.4g}"
                )
                for place, (layout, shift) in made.items()
            ),
        ]
        versions = step_versions("numpy", "onnx-ir", "onnxruntime")
        return Step(self.name, {**options_dict(self.options), **facts}, versions, tuple(notes))

    def _found(self, model: Model) -> tuple[ir.Model, list[Place]]:
        return found_in(model, self.options.where, self.options.only)

    def _noises(self, graph: ir.Graph, found: list[Place]) -> dict[Place, np.ndarray | None]:
        """Noise in -1..1 for each position of a value, channels on axis 1; None for ``noise=bias``."""
        if self.options.noise == "bias":
            return dict.fromkeys(found)
        rng = np.random.default_rng(self.options.seed)
        shapes = {v.name: v.shape for node in graph for v in node.outputs}
        noises: dict[Place, np.ndarray | None] = {}
        for place in found:
            shape = shapes[place.value]
            sizes = [d for d in (shape.dims if shape is not None else ())[1:] if isinstance(d, int)]
            if len(sizes) != place.rank - 1:
                raise UnsupportedError(
                    f"the sizes of {place.layer!r} are not fixed ({shape}), so no noise fits them",
                    "use noise=bias, or fix the shape of the network's input",
                )
            noises[place] = place.forward(rng.uniform(-1, 1, (1, *sizes)).astype(np.float32))
        return noises


def _rounded(x: np.ndarray, step: float, bits: int) -> np.ndarray:
    top = 2 ** (bits - 1)
    return np.clip(np.rint(x / np.float32(step)), -top, top - 1) * np.float32(step)


def _best_step(x: np.ndarray, bits: int) -> float:
    """Of 100 clipping points, the step of the one with the least squared error."""
    reach = max(float(np.abs(x).max(initial=0.0)), float(form.TINY))
    steps = [reach * k / CLIPS / (2 ** (bits - 1) - 1) for k in range(1, CLIPS + 1)]
    return min(steps, key=lambda step: float(np.square(_rounded(x, step, bits) - x).sum(dtype=np.float64)))


def _best_shift(x: np.ndarray, direction: np.ndarray, step: float, bits: int, *, both: bool) -> float:
    """Multiple of ``direction`` within one step whose addition leaves the least squared error; 0 if none helps."""

    def error(factor: float) -> float:
        shift = np.float32(factor) * direction
        return float(np.square(_rounded(x + shift, step, bits) - shift - x).sum(dtype=np.float64))

    tried = [0.0] + [
        sign * step * k / SHIFTS for k in range(1, SHIFTS + 1) for sign in ((1, -1) if both else (1,))
    ]
    return float(np.float32(min(tried, key=error)))
