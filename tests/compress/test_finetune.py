"""Training as a method of its own."""

from __future__ import annotations

import pytest

from dlas import api
from dlas.compress.distill.finetune import Finetune
from dlas.compress.method import compress_model
from dlas.core.errors import DataError
from dlas.data.find import load_dataset
from dlas.data.preprocess import prepare
from dlas.graph.reference import predict


def right(model, rows) -> float:
    return float((predict(model, prepare(rows, model)).argmax(1) == rows.labels).mean())


def test_an_untrained_architecture_learns_digits_and_says_how():
    rows, held = load_dataset("digits", split="train").head(600), load_dataset("digits", split="test")
    model = api.untrained("digits-cnn")
    before = right(model, held)
    trained = compress_model(model, "finetune:epochs=4,lr=0.1,batch_size=32,augment=none,rows=400", rows)
    assert before < 0.4
    assert right(trained, held) > 0.8
    step = trained.history[-1]
    assert step.options["rows"] == 400
    assert (step.options["epochs"], step.options["lr"], step.options["seed"]) == (4, 0.1, 0)


def test_zeros_stay_where_asked():
    rows = load_dataset("digits", split="train").head(128)
    pruned = compress_model(api.load("digits-cnn"), "magnitude:sparsity=0.6")
    zeros = {n: w == 0 for n, w in pruned.initializers.items() if w.ndim > 1}

    def kept(**options) -> bool:
        trained = Finetune(epochs=1, lr=0.05, augment="none", **options).apply(pruned, rows)
        return all(not trained.initializers[n][z].any() for n, z in zeros.items())

    assert kept(keep_zeros=True)
    assert not kept()


def test_the_plan_names_what_is_trained_and_rows_are_needed():
    model = api.load("digits-cnn")
    plan = Finetune().plan(model)
    assert {c.layer for c in plan.changes} <= set(model.initializers)
    assert len(plan.changes) > 3
    with pytest.raises(DataError, match="training rows"):
        Finetune().apply(model)
