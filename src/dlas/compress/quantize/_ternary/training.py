"""The training of ``ternary-stq``: what stands in for weights and activations, the phases, and the graph afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dlas.compress.jacobian import JacobianLoss
from dlas.compress.quantize._ternary.layers import Layer, Norm, rectified, round_activations, stored, write
from dlas.compress.quantize._ternary.weights import Normalised, Phase, Rounded, RoundedActivation, Ternary
from dlas.compress.training import Schedule, train
from dlas.data.dataset import Dataset
from dlas.data.preprocess import prepare
from dlas.graph.model import Model
from dlas.graph.torch_module import to_torch, weights_back

if TYPE_CHECKING:
    from dlas.compress.method import Progress
    from dlas.compress.quantize.ternary_stq import Options

_MEASURED_ROWS = 512  # for the statistics that training begins with
_SETTLED_ROWS = 4096  # for those that are deployed


class Training:
    """One training.

    Args:
        model: The network, without batch norms behind its layers.
        layers: Its layers.
        norms: Those that were behind them, by the layers' outputs.
        options: Of the method.
        rows: Labelled training rows.

    Attributes:
        zeros: How many ternary weights are 0, and how many there are; after :meth:`written`.
    """

    def __init__(
        self,
        model: Model,
        layers: Sequence[Layer],
        norms: Mapping[str, Norm],
        options: Options,
        rows: Dataset,
    ) -> None:
        assert rows.labels is not None
        self.model, self.layers, self.options = model, layers, options
        self.module: Any = to_torch(model)
        self.inputs = prepare(rows, model)
        self.labels = np.asarray(rows.labels, np.int64)
        self.phase = Phase()
        self.norms: dict[str, Normalised] = {}
        self.activations: dict[str, RoundedActivation] = {}
        self.zeros = (0, 0)
        self._put(norms)

    def run(self, schedule: Schedule, progress: Progress | None) -> list[float]:
        """Train through all phases; mean loss of each epoch."""
        o = self.options
        loss = self._loss()
        ramp = min(o.ramp_epochs / o.epochs, max(0.0, 1 - o.warmup - o.settle))

        def each_step(fraction: float) -> None:
            after = fraction - o.warmup
            settled = fraction >= 1 - o.settle
            self.phase.mode = "float" if after < 0 else "ternary" if settled else "stochastic"
            if loss is not None:
                loss.strength = 0.0 if after < 0 else min(1.0, after / ramp) if ramp > 0 else 1.0

        # A checkpoint must not be gone on from with other settings, which only these functions know.
        settings = [o.jacobian, o.jacobian_layers, o.ramp_epochs, o.warmup, o.settle]
        self.module.register_buffer("settings", torch.tensor(settings, dtype=torch.float64))
        names = () if loss is None else tuple(filter(None, (loss.scores, *loss.layers)))
        with ExitStack() as stack:
            if loss is not None:
                loss.kept = stack.enter_context(self.module.kept(dict.fromkeys(names)))
            losses = train(
                self.module,
                self.inputs,
                self.labels,
                schedule,
                loss=loss,
                each_step=each_step,
                input_gradients=loss is not None,
                progress=progress,
            )
        self.phase.mode = "ternary"
        self._settle(schedule)
        return losses

    def written(self) -> tuple[ir.Model, int]:
        """The graph with what was learned, and its bytes packed."""
        graph = weights_back(self.model, self.module)
        weights = {n: t.detach().numpy() for n, t in self.module.weights().items()}
        found, zeros, codes = {}, 0, 0
        readers = {str(node.outputs[0].name): node for node in graph.graph}
        for layer in self.layers:
            norm = self.norms.get(layer.output)
            folded = None
            if norm is not None:
                factor, shift = norm.factor_and_shift()
                folded = (factor.double().numpy(), shift.double().numpy())
            node = readers[layer.output]
            value = node.inputs[2] if len(node.inputs) > 2 else None
            bias = weights[str(value.name)] if value is not None and value.name in weights else None
            found[layer.output] = stored(layer, weights[layer.weight], bias, folded)
            if layer.form == "ternary":
                zeros += int((found[layer.output].codes == 0).sum())
                codes += layer.size
        packed = write(graph.graph, self.layers, found)
        round_activations(graph.graph, {n: (a.bits, a.step) for n, a in self.activations.items()})
        RemoveUnusedNodesPass()(graph)
        self.zeros = (zeros, codes)
        return graph, packed

    def _put(self, norms: Mapping[str, Norm]) -> None:
        """Put the changes into the module; layers without a normalisation begin with statistics of some rows."""
        bits = self.options.activation_bits
        for name, norm in norms.items():
            arrays = (norm.mean, norm.variance, norm.weight, norm.bias)
            self.norms[name] = Normalised(*map(torch.from_numpy, arrays), eps=norm.eps)
            self.module.on_value(name, self.norms[name])
        normalised = [x.output for x in self.layers if x.normalised and x.output not in norms]
        rounded = rectified(self.model.ir.graph) if bits else []
        means, variances, largest = self._measured(normalised, rounded)
        for layer in {x.weight: x for x in self.layers}.values():
            if layer.form == "ternary":
                self.module.on_weight(layer.weight, Ternary(layer.axis, self.phase))
            elif layer.form == "int8":
                self.module.on_weight(layer.weight, Rounded(layer.axis, self.phase))
        for name in normalised:
            self.norms[name] = Normalised(means[name], variances[name])
            self.module.on_value(name, self.norms[name])
        for name in rounded:
            self.activations[name] = RoundedActivation(bits, largest[name], self.phase)
            self.module.on_value(name, self.activations[name])

    def _measured(
        self, normalised: Sequence[str], rounded: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, float]]:
        """Mean and variance per channel of some values, and the largest of others, over some rows."""
        sums: dict[str, Any] = dict.fromkeys(normalised, 0.0)
        squares: dict[str, Any] = dict.fromkeys(normalised, 0.0)
        largest = dict.fromkeys(rounded, 0.0)
        count = 0
        with torch.no_grad(), self.module.kept(dict.fromkeys([*normalised, *rounded])) as kept:
            for batch in self._batches(_MEASURED_ROWS, 128):
                self.module(batch)
                count += len(batch)
                for name in normalised:
                    value = kept[name].double()
                    others = [a for a in range(value.dim()) if a != 1]
                    sums[name] = sums[name] + value.mean(others) * len(batch)
                    squares[name] = squares[name] + value.square().mean(others) * len(batch)
                for name in rounded:
                    largest[name] = max(largest[name], float(kept[name].max()))
        means = {n: (s / count) for n, s in sums.items()}
        variances = {n: (squares[n] / count - means[n] ** 2).clamp_min(0) for n in normalised}
        return {n: m.float() for n, m in means.items()}, {n: v.float() for n, v in variances.items()}, largest

    def _settle(self, schedule: Schedule) -> None:
        """Count the statistics anew: those of training lag behind the weights, and are of weights drawn by lot."""
        if not self.norms:
            return
        for norm in self.norms.values():
            norm.count_anew()
            norm.train()
        with torch.no_grad():
            for batch in self._batches(_SETTLED_ROWS, schedule.batch_size):
                self.module(batch)
        for norm in self.norms.values():
            norm.eval()

    def _batches(self, rows: int, size: int) -> Iterator[torch.Tensor]:
        """Some rows at even distances, so that rows sorted by class are still seen from all classes."""
        count = min(rows, len(self.inputs))
        at = np.arange(count) * len(self.inputs) // count
        at = np.random.default_rng(self.options.seed).permutation(at)
        for start in range(0, count, size):
            yield torch.from_numpy(np.ascontiguousarray(self.inputs[at[start : start + size]]))

    def _loss(self) -> JacobianLoss | None:
        """The loss with its Jacobians, or None for cross-entropy alone."""
        o = self.options
        if not o.jacobian and not o.jacobian_layers:
            return None
        graph = self.model.ir.graph
        last = graph.outputs[0].producer()
        before = last.inputs[0] if last is not None and last.op_type == "Softmax" else None
        scores = "" if before is None else str(before.name)
        inputs = {str(v.name) for v in graph.inputs}
        hidden = dict.fromkeys(x.given for x in self.layers if x.given not in inputs)
        layers = tuple(hidden) if o.jacobian_layers else ()
        return JacobianLoss(o.jacobian, o.jacobian_layers, scores=scores, layers=layers)
