"""Which channels of which activations deserve more bits.

``fisher`` needs one pass back over the rows: the importance of channel c is ``sum_n (sum_hw g * (x - Q(x)))**2`` with
the gradient g of the summed cross-entropy at the float network, the expected change of the loss that rounding the
channel brings. ``greedy`` is DQA's own: one evaluation of the network per channel with that channel left float.
``random`` is what both must beat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from dlas.compress.calibration import open_session
from dlas.compress.quantize._activations.network import Place
from dlas.core.errors import DataError
from dlas.graph.model import Model
from dlas.kernels.formats import dqa

IMPORTANCE = ("fisher", "greedy", "random")
GREEDY_BITS = 3  # the ranking is made at 3 bits whatever is stored later, as published

Rows = Callable[[], Iterator[np.ndarray]]
Told = Callable[[float], Any]


@dataclass(frozen=True)
class Sample:
    """The rows that importance is judged on.

    Attributes:
        batches: Starts a pass over the inputs, ``(n, ...)`` each.
        labels: ``(N,) int64``; None takes the network's own answers.
        count: N.
    """

    batches: Rows
    labels: np.ndarray | None
    count: int


def fisher(
    model: Model, layouts: Mapping[Place, dqa.Layout], sample: Sample, told: Told | None = None
) -> dict[str, np.ndarray]:
    """Importance per value and channel, ``(C,) float64`` each: squared first-order change of the loss, summed.

    Args:
        model: The float network, names as in the places.
        layouts: How each value would be rounded without extra bits.
        sample: The rows.
        told: Called with the fraction done.

    Raises:
        DataError: A label is beyond the network's outputs, or the loss is not finite.
        UnsupportedError: torch cannot run the network.
    """
    import torch

    from dlas.compress.training import cross_entropy
    from dlas.graph.torch_module import to_torch

    module = to_torch(model)
    scores = {place.value: np.zeros(place.channels) for place in layouts}
    done = 0
    with module.kept([place.value for place in layouts]) as kept:  # type: ignore[operator]
        for batch in sample.batches():
            inputs = torch.from_numpy(batch)
            if inputs.is_floating_point():  # gradients then start at the input, and weights need none
                module.requires_grad_(False)
                inputs.requires_grad_(True)
            outputs = module(inputs)
            logits = (outputs[0] if isinstance(outputs, tuple) else outputs).flatten(1)
            labels = logits.argmax(1)
            if sample.labels is not None:
                labels = torch.from_numpy(sample.labels[done : done + len(batch)])
            loss = cross_entropy(logits, labels) * len(
                batch
            )  # a row's importance does not depend on its batch
            if not bool(torch.isfinite(loss)):
                raise DataError(
                    f"the loss over the calibration rows is {loss.item()}",
                    "mend or retrain the network first",
                )
            loss.backward()
            for place, layout in layouts.items():
                tensor = kept[place.value]
                if tensor.grad is None:
                    continue
                x, slope = (place.forward(t.detach().numpy()) for t in (tensor, tensor.grad))
                change = (slope * (x - dqa.dequantized(x, layout))).reshape(len(x), place.channels, -1)
                scores[place.value] += (change.sum(axis=2, dtype=np.float64) ** 2).sum(axis=0)
            module.zero_grad(set_to_none=True)
            done += len(batch)
            if told is not None:
                told(done / sample.count)
    return scores


def greedy(
    graph: ir.Model,
    spec: str,
    layouts: Mapping[Place, dqa.Layout],
    sample: Sample,
    told: Told | None = None,
) -> dict[str, np.ndarray]:
    """Accuracy with each channel alone left float, ``(C,) float64`` per value; DQA's ranking.

    Values are gone through in order, with those before rounded but for their best channel. What lies before a value is
    computed once, so an evaluation runs only the rest of the network.

    Args:
        graph: The float network after shape inference.
        spec: Name of its input.
        layouts: How each value is rounded while it is ranked.
        sample: The rows.
        told: Called with the fraction done.

    Raises:
        DataError: A label is beyond the network's outputs.
    """
    cuts = [_live(graph, place.value) for place in layouts]
    proto = ir.to_proto(graph)
    answer = str(graph.graph.outputs[0].name)
    states = [{spec: batch} for batch in sample.batches()]
    labels = _labels(proto, spec, answer, states, sample)
    total, done, before = sum(p.channels for p in layouts), 0, [spec]
    scores = {}
    for (place, layout), live in zip(layouts.items(), cuts, strict=True):
        states = [_run(_part(proto, before, live), state, live) for state in states]
        exact = [state[place.value] for state in states]
        rounded = [_rounded(x, place, layout) for x in exact]
        session = _part(proto, live, [answer])
        found = np.zeros(place.channels)
        for channel in range(place.channels):
            hits = 0
            for state, x, q, y in zip(states, exact, rounded, labels, strict=True):
                tried = _one_exact(q, x, channel, place)
                logits = _run(session, {**state, place.value: tried}, [answer])[answer]
                hits += int((logits.reshape(len(logits), -1).argmax(1) == y).sum())
            found[channel] = hits / sample.count
            done += 1
            if told is not None:
                told(done / total)
        best = int(found.argmax())
        for state, x, q in zip(states, exact, rounded, strict=True):
            state[place.value] = _one_exact(q, x, best, place)
        scores[place.value], before = found, live
    return scores


def random(places: Sequence[Place], seed: int) -> dict[str, np.ndarray]:
    """A number drawn for each channel."""
    rng = np.random.default_rng(seed)
    return {place.value: rng.random(place.channels) for place in places}


def top(scores: np.ndarray, fraction: float, extra: int) -> np.ndarray:
    """``extra`` for the ``int(fraction * C)`` channels of highest score, 0 for the others: ``(C,) uint8``."""
    chosen = np.argsort(-scores, kind="stable")[: int(fraction * len(scores) + 1e-9)]
    found = np.zeros(len(scores), np.uint8)
    found[chosen] = extra
    return found


def allocate(
    scores: Mapping[str, np.ndarray], sizes: Mapping[str, int], extra: int, bits: float
) -> dict[str, np.ndarray]:
    """Extra bits of each channel so that they cost at most ``bits`` per value on the mean: ``(C,) uint8`` each.

    A bit more quarters the squared error, so the k-th extra bit of a channel is worth ``0.75 * 4**(1-k)`` of its
    importance. Bits are given in order of worth per stored bit.

    Args:
        scores: Importance of each channel, from :func:`fisher`.
        sizes: Numbers per channel of each value.
        extra: Most extra bits of a channel.
        bits: What may be spent.
    """
    names = list(scores)
    value = np.concatenate([np.full(len(scores[n]), i) for i, n in enumerate(names)])
    importance = np.concatenate([scores[n] for n in names])
    cost = np.array([sizes[n] for n in names], np.float64)[value]
    worth = np.concatenate([importance * 0.75 * 4.0**-k / cost for k in range(extra)])
    channel = np.tile(np.arange(len(value)), extra)
    order = np.argsort(-worth, kind="stable")  # the k-th bit of a channel always comes after the one before
    left, given = bits * cost.sum() + 1e-6, np.zeros(len(value), np.uint8)
    for at in channel[order]:
        if cost[at] <= left:
            left -= cost[at]
            given[at] += 1
    return {name: given[value == i] for i, name in enumerate(names)}


def _live(graph: ir.Model, name: str) -> list[str]:
    """Values made up to ``name`` that are read after it: what the rest of the network needs."""
    nodes = list(graph.graph)
    made = next(i for i, n in enumerate(nodes) if any(v.name == name for v in n.outputs))
    known = {v for n in nodes[: made + 1] for v in n.outputs} | set(graph.graph.inputs)
    read = {v for n in nodes[made + 1 :] for v in n.inputs if v is not None} | set(graph.graph.outputs)
    rest = sorted(str(v.name) for v in known & read if v.name != name and v.const_value is None)
    return [name, *rest]


def _part(proto: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> Any:
    """The network from some of its values to others, ready to run; the identity where nothing lies between."""
    graph = onnx.utils.Extractor(proto).extract_model(inputs, outputs)
    return open_session(ir.from_proto(graph), outputs)


def _run(session: Any, state: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    feed = {i.name: state[i.name] for i in session.get_inputs()}
    return dict(zip(names, session.run(names, feed), strict=True))


def _labels(
    proto: onnx.ModelProto, spec: str, answer: str, states: list[dict[str, np.ndarray]], sample: Sample
) -> list[np.ndarray]:
    """Labels per batch; the network's own answers where there are none."""
    session = _part(proto, [spec], [answer])
    logits = (_run(session, s, [answer])[answer].reshape(len(s[spec]), -1) for s in states)
    if sample.labels is None:
        return [rows.argmax(1) for rows in logits]
    low, high, classes = sample.labels.min(), sample.labels.max(), next(logits).shape[1]
    if low < 0 or high >= classes:
        raise DataError(
            f"a label is {low if low < 0 else high}, the network has {classes} outputs",
            "the data set does not belong to this network",
        )
    return np.split(sample.labels, np.cumsum([len(s[spec]) for s in states])[:-1])


def _rounded(x: np.ndarray, place: Place, layout: dqa.Layout) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(dqa.dequantized(place.forward(x), layout), 1, place.axis))


def _one_exact(rounded: np.ndarray, exact: np.ndarray, channel: int, place: Place) -> np.ndarray:
    tried = rounded.copy()
    at = tuple([slice(None)] * place.axis + [channel])
    tried[at] = exact[at]
    return tried
