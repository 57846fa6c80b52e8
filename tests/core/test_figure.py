from __future__ import annotations

import json

import pytest

from dlas.core.figure import Figure, Outcome, Record, Source


def test_figure_survives_json_without_empty_fields():
    figure = Figure(1.5, "ms", Source.MEASURED, low=1.0, n=30)
    fields = json.loads(json.dumps(figure.to_dict()))
    assert fields == {"value": 1.5, "unit": "ms", "source": "measured", "low": 1.0, "n": 30}
    assert Figure.from_dict(fields) == figure
    assert Figure.from_dict({**fields, "low": 0.0}).to_dict()["low"] == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figure_is_finite(value):
    with pytest.raises(ValueError, match="finite"):
        Figure(value, "ms", Source.MEASURED)


def test_figure_has_a_known_source():
    with pytest.raises(ValueError, match="guessed"):
        Figure(1.0, "ms", "guessed")


def test_record_survives_json():
    record = Record(
        Outcome.WRONG, "labels differ", {"latency_ms": Figure(1, "ms", Source.MEASURED)}, {"k": [1]}
    )
    assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_record_that_is_not_ok_says_why():
    with pytest.raises(ValueError, match="needs a reason"):
        Record(Outcome.CRASH)
    assert Record(Outcome.OK).reason == ""
