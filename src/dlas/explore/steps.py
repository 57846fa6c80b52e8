"""The steps of a study, as functions that run inside a worker process.

Each takes paths and plain values, writes its result into the folder it is given, and returns plain facts; the caller
decides what is cached (``explore.pipeline``). A step folder that holds a network has ``model.onnx`` and
``facts.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dlas.compress.checkpoint import checkpoints_in
from dlas.core.cache import kept_folder
from dlas.core.errors import DataError
from dlas.data.dataset import Dataset
from dlas.graph.model import Model
from dlas.graph.preprocessing import Preprocessing
from dlas.graph.signature import random_array


def import_network(
    path: str, folder: str, architecture: str, name: str, preprocessing: Mapping[str, Any]
) -> dict[str, Any]:
    """Read a model file of any format into ``folder/model.onnx``."""
    from dlas.graph.guard import import_model

    model = import_model(Path(path), architecture)
    if name:
        model = model.renamed(name)
    if preprocessing:
        model = replace(model, preprocessing=Preprocessing.from_dict(preprocessing))
    return write_network(model, folder)


def guess_preprocessing(network: str, folder: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Find what samples must go through for a network that does not say, and save the network with it."""
    from dlas.data.guess import with_guessed_preprocessing

    model, note = with_guessed_preprocessing(read_network(network), open_rows(data))
    return {**write_network(model, folder), "note": note}


def prepare_rows(network: str, folder: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Bring rows into the network's input form: ``x.npy``, and ``labels.npy`` where there are labels."""
    from dlas.data.preprocess import prepare

    model = read_network(network)
    rows = open_rows(data) if data["path"] else random_rows(model)
    x = prepare(rows, model) if data["path"] else np.asarray(rows.samples)
    np.save(Path(folder) / "x.npy", x)
    if rows.labels is not None:
        np.save(Path(folder) / "labels.npy", rows.labels)
    facts = {
        "name": rows.name,
        "rows": len(rows),
        "classes": list(rows.classes),
        "labelled": rows.labels is not None,
        "shape": list(x.shape[1:]),
        "dtype": x.dtype.name,
        "split_hash": rows.hash[:16],
    }
    (Path(folder) / "facts.json").write_text(json.dumps(facts))
    return facts


def compress_network(
    network: str, original: str, folder: str, method: str, options: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Apply one compression method and list what it changed against the original."""
    from dlas.compress.method import costs_for, methods
    from dlas.graph.changes import diff
    from dlas.runtime.costs import engine_costs

    member = methods.get(method)(**options)
    rows = open_rows(data) if data else None
    with checkpoints_in(kept_folder(Path(folder))):
        model = member.apply(read_network(network), rows, **costs_for(member, engine_costs))
    facts = write_network(model, folder)
    facts["notes"] = [note for step in model.history for note in step.notes]
    changes = diff(read_network(original), model)
    (Path(folder) / "changes.json").write_text(json.dumps(changes))
    (Path(folder) / "facts.json").write_text(json.dumps(facts))
    return facts


def attack_network(
    network: str, original: str, data: Mapping[str, Any], attack: Mapping[str, Any]
) -> dict[str, Any]:
    """Share of rows that a network gets right under every attack, those found on the original included.

    Returns:
        ``robust_accuracy``, a figure or None, and ``notes`` on what it may be worth or why there is none.
    """
    from dlas.verify.attack import attack_networks
    from dlas.verify.running import Subject

    places = dict.fromkeys((original, network))
    subjects = [Subject(Path(place) / "model.onnx", read_network(place)) for place in places]
    found = attack_networks(subjects, open_rows(data), **attack).models[-1]
    reasons = [f"no {r.title}: {r.reason}" for r in found.results if r.reason]
    notes = [*found.warnings, *reasons, *filter(None, [found.reason])]
    return {"robust_accuracy": found.worst.to_dict() if found.worst else None, "notes": notes}


def reference_scores(network: str, folder: str, rows: str, level: str, count: int, threads: int) -> None:
    """Answers of the reference engine on the first ``count`` prepared rows (0 for all): ``scores.npy``."""
    from dlas.graph.reference import predict

    x = np.load(Path(rows) / "x.npy", mmap_mode="r")
    scores = predict(read_network(network), x[:count] if count else x, level=level, threads=threads)
    np.save(Path(folder) / "scores.npy", scores)


def read_network(folder: str) -> Model:
    """The network a step folder holds."""
    from dlas.graph.format import load_model

    return load_model(Path(folder) / "model.onnx")


def write_network(model: Model, folder: str) -> dict[str, Any]:
    """Save a network and its facts into a step folder."""
    from dlas.graph.analysis import figures, summary

    (Path(folder) / "model.onnx").write_bytes(model.to_bytes())
    facts = {
        "hash": model.hash,
        "name": model.name,
        "kind": summary(model)["kind"],
        "source": dict(model.source),
        "inputs": [[s.name, list(s.shape), s.dtype] for s in model.inputs],
        "outputs": [[s.name, list(s.shape), s.dtype] for s in model.outputs],
        "preprocessing": json.loads(model.preprocessing.to_json()) if model.preprocessing else None,
        "figures": {name: figure.to_dict() for name, figure in figures(model).items()},
        "notes": [note for step in model.history for note in step.notes],
    }
    (Path(folder) / "facts.json").write_text(json.dumps(facts))
    return facts


def random_rows(model: Model, count: int = 32) -> Dataset:
    """Rows for a network without a data set: they show whether paths agree, not whether answers are right."""
    spec = model.inputs[0]
    x = random_array((count, *spec.bound(1)[1:]), spec.dtype, np.random.default_rng(0))
    return Dataset("random inputs", x, task="none")


def open_rows(data: Mapping[str, Any]) -> Dataset:
    """Rows of ``{path, split, rows, label_offset, part, holdout}``.

    With a ``part``, a data set that has to serve for calibration and for judging is divided by the hash of its
    samples, so the two never share one. Fewer rows than there are come as a sample balanced over the classes, drawn
    with a fixed seed.
    """
    from dlas.data.find import load_dataset
    from dlas.data.splits import sample, split

    found = load_dataset(data["path"], split=data.get("split", ""))
    if data.get("part"):
        share = data["holdout"]
        parts = {"calibration": share, "judge": 1 - share}
        found = split(found, parts, salt="calibration")[data["part"]]
    count = int(data.get("rows", 0))
    if 0 < count < len(found):
        found = sample(found, count, seed=0, balanced=found.labels is not None)
    offset = int(data.get("label_offset", 0))
    if offset:
        if found.labels is None:
            raise DataError(f"{found.name}: label_offset = {offset}, but the rows have no labels")
        found = replace(found, labels=found.labels + offset)
    return found
