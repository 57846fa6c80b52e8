"""How suspicious each convolution of the target is: do its errors differ between images that agree and that do not?

Louloudakis, Gibson, Cano and Rajan, "Fault localization for buggy deep learning framework conversions in image
recognition" (ASE 2023): signed differences of activations, compared element by element with the test of Kruskal and
Wallis (1952).
"""

from __future__ import annotations

import warnings

import numpy as np
import onnx_ir as ir

from dlas.core.errors import DlasError
from dlas.graph.model import Model
from dlas.graph.passes import infer_shapes
from dlas.graph.reference import answers
from dlas.verify.localize.alignment import orders
from dlas.verify.repair.job import Job
from dlas.verify.repair.strategies._matching import Pairing

_IMAGES = 15  # of each kind in one draw
_DRAWS = 3
_SIGNIFICANT = 0.05
_ELEMENTS = 10_000  # of one layer: of larger ones, evenly spread
_CHUNK = 8  # rows whose activations are held at once


def ranking(job: Job, pairing: Pairing, dissimilar: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Convolutions of the target by name, the most suspicious first; in the order of execution where nothing is known.

    Args:
        job: Rows and their count of runs.
        pairing: Both graphs.
        dissimilar: Which rows get another label, ``(rows,) bool``.
        rng: Draws the images.
    """
    layers = [str(n.name) for n in pairing.target.graph if n.op_type == "Conv"]
    pairs = {name: pairing.of_target[name] for name in layers if name in pairing.of_target}
    bad, good = np.flatnonzero(dissimilar), np.flatnonzero(~dissimilar)
    if not pairs or len(bad) < 2 or len(good) < 2:
        return layers
    bad = np.sort(rng.permutation(bad)[:_IMAGES])
    draws = [np.sort(rng.permutation(good)[:_IMAGES]) for _ in range(_DRAWS)]
    rows = np.unique(np.concatenate([bad, *draws]))
    try:
        differences = _differences(job, pairing, pairs, rows)
    except DlasError:
        return layers
    ranks = dict.fromkeys(layers, 0)
    for draw in draws:
        one, other = np.searchsorted(rows, bad), np.searchsorted(rows, draw)
        scores = {name: share_different(d[one], d[other]) for name, d in differences.items()}
        for rank, name in enumerate(sorted(layers, key=lambda n: -scores.get(n, 0.0))):
            ranks[name] += rank
    return sorted(layers, key=lambda n: ranks[n])


def share_different(dissimilar: np.ndarray, similar: np.ndarray) -> float:
    """Share of elements whose signed differences are not distributed alike in both groups of images.

    Args:
        dissimilar: ``(images, elements)``.
        similar: The same for images whose labels agree.
    """
    from scipy.stats import kruskal

    different = (np.ptp(similar, axis=0) == 0) & (np.ptp(dissimilar, axis=0) != 0)
    tested = ~different
    if tested.any():
        with warnings.catch_warnings():
            # Where all numbers are alike there is no statistic, and no difference either.
            warnings.simplefilter("ignore", RuntimeWarning)
            found = kruskal(dissimilar[:, tested], similar[:, tested], axis=0).pvalue
        different[tested] = np.nan_to_num(found, nan=1.0) < _SIGNIFICANT
    return float(different.mean()) if different.size else 0.0


def _differences(
    job: Job, pairing: Pairing, pairs: dict[str, ir.Node], rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Target minus source of every convolution, ``(rows, elements)``; those of other sizes are left out."""
    ours = {str(n.name): str(n.outputs[0].name) for n in pairing.target.graph if n.name in pairs}
    theirs = {name: str(node.outputs[0].name) for name, node in pairs.items()}
    parts: dict[str, list[np.ndarray]] = {}
    for chunk in np.array_split(rows, -(-len(rows) // _CHUNK)):
        a = _activations(job, pairing.source, list(theirs.values()), chunk)
        b = _activations(job, pairing.target, list(ours.values()), chunk)
        for name in pairs:
            x, y = a[theirs[name]], b[ours[name]]
            order = next(orders(x.shape[1:], y.shape[1:]), None)
            if order is None:
                continue
            difference = (y - x.transpose(0, *(i + 1 for i in order))).reshape(len(chunk), -1)
            step = -(-difference.shape[1] // _ELEMENTS)
            parts.setdefault(name, []).append(difference[:, ::step].astype(np.float32))
    return {name: np.nan_to_num(np.concatenate(p)) for name, p in parts.items()}


def _activations(job: Job, graph: ir.Model, names: list[str], rows: np.ndarray) -> dict[str, np.ndarray]:
    opened = graph.clone()
    infer_shapes(opened)
    present = {v.name for v in opened.graph.outputs}
    for value in [v for node in opened.graph for v in node.outputs]:
        if value.name in names and value.name not in present:
            opened.graph.outputs.append(value)
    job.count(len(rows))
    model = Model(opened)
    return answers(model, job.fed(graph, rows), level="disable", outputs=names)
