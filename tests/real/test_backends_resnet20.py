"""The CIFAR-10 ResNet-20 checkpoint on every back end."""

from __future__ import annotations

import numpy as np
import pytest

from dlas.graph.format import load_model
from dlas.graph.reference import Reference
from dlas.hardware.target import target_for
from dlas.runtime.backend import backend_for, backends
from dlas.testing.backends import sqnr_db


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)


# What these two compile takes long; tests/runtime/test_backends.py tries them on small networks in every run.
SLOW = {"executorch", "iree"}
NAMES = [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in backends.names()]


@pytest.mark.parametrize("name", NAMES)
def test_resnet20_answers_as_the_reference_does(data_folder, images, name, tmp_path):
    if backends.get(name).missing():
        pytest.skip(backends.get(name).missing())
    model = load_model(data_folder / "models" / "cifar-resnet" / "resnet20.th")
    key = model.inputs[0].name
    with Reference(model) as reference:
        expected = reference.run({key: images})["logits"]
    engine = backend_for(name)
    engine.build(model, target_for("host"), tmp_path)
    with engine.load(tmp_path, target_for("host")) as loaded:
        found = np.concatenate([loaded.run({key: images[i : i + 1]})["logits"] for i in range(4)])
    assert sqnr_db(expected, found) > 100
    np.testing.assert_array_equal(expected.argmax(1), found.argmax(1))
