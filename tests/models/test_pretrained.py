from __future__ import annotations

import numpy as np
import pytest

from dlas.core.errors import UnknownNameError
from dlas.data.find import load_dataset
from dlas.data.preprocess import prepare
from dlas.graph.reference import predict
from dlas.models.pretrained import load_pretrained, pretrained_names, pretrained_path


def test_digits_cnn_is_as_good_as_its_metadata_say() -> None:
    model = load_pretrained("digits-cnn")
    data = load_dataset("digits", split="test")
    right = np.mean(predict(model, prepare(data, model)).argmax(1) == data.labels)
    assert right >= 0.97
    assert float(model.source["test_top1"]) == pytest.approx(right, abs=5e-5)
    assert int(model.source["test_rows"]) == len(data)


def test_digits_cnn_says_how_it_was_made() -> None:
    model = load_pretrained("digits-cnn")
    assert model.source["script"] == "scripts/train_digits_cnn.py"
    assert [step.action for step in model.history][:2] == ["train", "import"]
    assert "seed" in model.history[0].options
    assert {"Conv", "Relu", "Add", "MaxPool", "Gemm"} <= {node.op_type for node in model.ir.graph}


def test_files_are_small_and_free_of_local_paths() -> None:
    for name in pretrained_names():
        path = pretrained_path(name)
        assert path is not None
        content = path.read_bytes()
        assert len(content) <= 200_000
        assert b"site-packages" not in content


def test_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="digits-cnn"):
        load_pretrained("digits-cn")
