"""Weights of few bits whose scales are found by an evolutionary search for the answers of the float network.

Weights become uniform with a zero point per output channel, activations 8-bit; then the scales of one attention or
residual block at a time take small random steps, and the network whose answers are nearest to the float ones stays
(CPT-V / Evol-Q: Frumkin, Gope and Marculescu, "Jumping through Local Minima: Quantization in the Loss Landscape of
Vision Transformers", ICCV 2023). Needs a thousand rows, no labels and no training; costs ``passes * blocks * cycles``
runs of half the network over them. Not where training is possible: that gains more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dlas.compress.calibration import CALIBRATIONS, calibration_batches
from dlas.compress.checkpoint import Checkpoint, next_checkpoint
from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.quantize._int8.quantise import notes_on
from dlas.compress.quantize._int8.scheme import weight_axis
from dlas.compress.quantize._search.distance import DISTANCES
from dlas.compress.quantize._search.evolution import Settings, State, search
from dlas.compress.quantize._search.network import FewBitNetwork
from dlas.compress.quantize._search.suffix import Rows
from dlas.compress.quantize._search.trial import Trial
from dlas.compress.quantize._search.units import UNITS
from dlas.core.cache import key_of
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.core.provenance import made_with
from dlas.data.dataset import Dataset
from dlas.graph.model import Model, Step, step_versions

_RADIUS = {"relative": (0.02, 0.002), "absolute": (1e-3, 1e-4)}  # up to 4 bits, above


@dataclass(frozen=True)
class Options:
    """Options of ``cptv``."""

    bits: int = option(4, "bits of the weights: 3, 4 or 8", choices=(3, 4, 8))
    edge_bits: int = option(8, "bits of the weights of the first and the last layer", choices=(3, 4, 8))
    rows: int = option(1000, "training rows used for calibration and search; no labels are looked at", low=2)
    unit: Literal["auto", "attention", "residual", "layer"] = option(
        "auto",
        "whose scales change together: attention blocks, residual blocks, single layers",
        choices=UNITS,
    )
    loss: Literal["infonce", "mse", "kl", "cosine"] = option(
        "infonce", "distance from the float network's answers", choices=tuple(DISTANCES)
    )
    batch_size: int = option(100, "rows per batch of the loss", low=2)
    passes: int = option(10, "times that all blocks are visited, last to first; 0 for no search", low=0)
    cycles: int = option(3, "children per visit of a block", low=1)
    population: int = option(15, "sets of scales kept", low=1)
    sample: int = option(10, "sets of scales drawn, with replacement, to choose a parent among", low=1)
    perturbation: Literal["relative", "absolute"] = option(
        "relative", "whether a step is a share of the scale or a number", choices=("relative", "absolute")
    )
    radius: float = option(
        0.0,
        "largest step; 0 for 2 % up to 4 bits and 0.2 % above (absolute: 0.001 and 0.0001)",
        low=0,
        below=1,
    )
    budget_evals: int = option(0, "children in all; 0 for passes * blocks * cycles", low=0)
    calibration: Literal["min-max", "percentile", "mse"] = option(
        "mse", "how the range of an activation is read from the rows", choices=CALIBRATIONS
    )
    percentile: float = option(
        99.99, "percent of the values kept by calibration=percentile", low=50, high=100
    )
    bias_correction: bool = option(True, "add the mean error of each layer over the rows to its bias")
    pack: bool = option(
        False, "store codes of up to 4 bits two in a byte (ONNX opset 21), which not every back end reads"
    )
    keep_float: str = option("", "patterns of node names to leave float, separated by |")
    cache_mib: int = option(1024, "memory for values that the search does not compute again", low=1)
    threads: int = option(2, "runs at a time; the result does not depend on it", low=1, high=256)
    seed: int = option(0, "decides draws and steps", low=0)


@methods.register("cptv")
class Cptv(Method):
    """Few-bit weights, 8-bit activations, and scales searched block by block."""

    name = "cptv"
    summary = "Weights of 3, 4 or 8 bits with scales found by evolutionary search (CPT-V, Evol-Q)"
    Options = Options
    needs_data = True
    options: Options

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """Layers with their bits and bytes, and what the search will change; needs no rows."""
        network = FewBitNetwork(model, self.options)
        member = {i: f"{unit.kind} block {n}" for n, unit in enumerate(network.units) for i in unit.layers}
        changes = []
        saved = 0
        for i, layer in enumerate(network.layers):
            weight = network.weight(i)
            stored, channels = network.stored_bytes(i), weight.shape[weight_axis(layer)]
            saved += weight.nbytes - stored
            shape = "x".join(map(str, weight.shape))
            what = f"{layer.op_type} {shape}: {network.bits(i)} bits, {channels} scales and zero points"
            searched = f", searched in {member[i]}" if i in member else ", not searched"
            changes.append(
                Change(network.names[i], what + searched, f"{weight.nbytes} bytes", f"{stored} bytes")
            )
        stored_now = network.graph.graph.initializers.values()
        before = sum(v.const_value.nbytes for v in stored_now if v.const_value)
        expected = {
            "weight_bytes_before": Figure(before, "bytes", Source.ESTIMATED),
            "weight_bytes": Figure(before - saved, "bytes", Source.ESTIMATED),
            "packed_weight_bytes": Figure(network.packed_bytes(), "bytes", Source.ESTIMATED),
            "bits_per_weight": Figure(network.bits_per_weight(), "bits", Source.ESTIMATED),
            "evaluations": Figure(
                self._settings().evaluations(len(network.units)), "count", Source.ESTIMATED
            ),
        }
        return Plan(self.spelled(), tuple(changes), expected, (*notes_on(network.scheme), *network.notes))

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The network with the best scales found; the step of its history holds the search.

        Raises:
            UnsupportedError: Already quantised, not float32, without a layer that can become integer, or without a
                block of the kind asked for.
            DataError: Fewer than eight rows, rows of another shape, or activations that are not finite.
            ModelError: Weights that are not finite.
        """
        tell = progress or (lambda fraction, text: None)
        network = FewBitNetwork(model, self.options)
        batches, _ = calibration_batches(model, data, self.options.rows)
        fixed = model.inputs[0].shape[0]
        rows = Rows(
            model.inputs[0].name,
            np.concatenate(list(batches())),
            self.options.batch_size,
            fixed if isinstance(fixed, int) else 0,
            self.options.threads,
        )
        network.calibrate(rows, lambda f: tell(0.15 * f, "calibrating"))
        o = self.options
        trial = Trial(network, rows, o.loss, o.batch_size, o.cache_mib << 20)
        start = trial.loss({})
        state = self._searched(model, data, trial, start, lambda f, text: tell(0.15 + 0.85 * f, text))
        graph, notes = network.stored(network.grids | trial.grids_of(state.scales))
        labels = [trial.label(u) for u in range(len(network.units))]
        words = (
            f"loss {start:.6g} before the search, {state.loss:.6g} after {state.evaluations} evaluations on "
            f"{len(rows)} rows of {data.name if data else ''} ({data.hash[:16] if data else ''})"
        )
        step = Step(
            self.name,
            {**options_dict(self.options), **_facts(network, labels, start, state)},
            step_versions("numpy", "onnx-ir", "onnxruntime"),
            (words, *notes_on(network.scheme), *network.notes, *notes),
        )
        tell(1.0, "quantised")
        return model.with_step(graph, step)

    def _settings(self) -> Settings:
        o = self.options
        radius = o.radius or _RADIUS[o.perturbation][o.bits > 4]
        return Settings(
            o.passes,
            o.cycles,
            o.population,
            o.sample,
            radius,
            o.perturbation == "relative",
            o.budget_evals,
            o.seed,
        )

    def _searched(
        self, model: Model, data: Dataset | None, trial: Trial, start: float, tell: Progress
    ) -> State:
        """The search from the start, or from where a killed one was."""
        settings, members = self._settings(), [unit.layers for unit in trial.network.units]
        scales = {i: trial.network.grid(i).scale for layers in members for i in layers}
        state = State(scales, start, np.random.default_rng(settings.seed))
        place = next_checkpoint()
        facts = [self.name, model.hash, options_dict(self.options), data.hash if data else "", made_with()]
        saved = Checkpoint(place, key_of(*facts)) if place is not None else None
        stored = saved.read() if saved is not None else None
        every = settings.evaluations(len(members))
        if stored is not None:
            state = State.from_dict(json.loads(stored["state"]))
            tell(state.evaluations / every, f"resumed after {state.evaluations} of {every} evaluations")

        def after(now: State) -> None:
            tell(now.evaluations / every, f"evaluation {now.evaluations} of {every}, loss {now.loss:.6g}")
            if saved is not None and saved.due:
                saved.write({"state": json.dumps(now.to_dict())})

        return search(state, members, trial.fitness, settings, after)


def _facts(network: FewBitNetwork, labels: list[str], start: float, state: State) -> dict[str, Any]:
    """What the history holds of the search and of the sizes."""
    return {
        "loss_before": start,
        "loss_after": state.loss,
        "evaluations": state.evaluations,
        "units": labels,
        "search": [{"pass": p, "unit": u, "evaluations": e, "loss": v} for p, u, e, v in state.history],
        "bits_per_weight": network.bits_per_weight(),
        "packed_weight_bytes": network.packed_bytes(),
        "weight_bytes": network.weight_bytes(),
    }
