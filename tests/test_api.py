"""The Python face: what cannot be meant is refused in one line, as on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dlas


@pytest.mark.parametrize("given", [None, 42, np.zeros(3)])
def test_what_is_no_network_is_named(given) -> None:
    for verb in (dlas.load, lambda it: dlas.compress(it, "float16"), lambda it: dlas.save(it, "x.onnx")):
        with pytest.raises(dlas.OptionError, match="model = "):
            verb(given)
    with pytest.raises(dlas.OptionError, match="model = "):
        dlas.compare("digits-cnn", given)


@pytest.mark.parametrize("example", [None, "hello", (), [[1, 2]]])
def test_a_module_needs_an_example(example) -> None:
    import torch

    with pytest.raises(dlas.OptionError, match="batch axis first"):
        dlas.load(torch.nn.Flatten(), example)


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": "a"}, {"batch": 0}, {"batch": 1.5}])
def test_counts_are_whole(options) -> None:
    with pytest.raises(dlas.OptionError, match="whole number"):
        dlas.compile("digits-cnn", **options)


def test_inputs_are_a_dictionary() -> None:
    with (
        dlas.compile("digits-cnn") as executable,
        pytest.raises(dlas.ShapeError, match=r"dictionary with the arrays of \['input'\]"),
    ):
        executable.run(np.zeros((1, 1, 8, 8), np.float32))


def test_rows_are_a_data_set() -> None:
    with pytest.raises(dlas.DataError, match="ndarray"):
        dlas.compress("digits-cnn", "int8", data=np.zeros((4, 1, 8, 8), np.float32))


def test_overrides_are_text(tmp_path: Path) -> None:
    with pytest.raises(dlas.OptionError, match=r"data\.rows = 50"):
        dlas.study(overrides={"data.rows": 50}, out=tmp_path / "out")
    with pytest.raises(dlas.DlasError, match=r"^--set nope: unknown table"):
        dlas.study(overrides={"nope.x": "1"}, out=tmp_path / "out")


def test_compression_finds_out_how_to_prepare_labelled_images(tmp_path: Path) -> None:
    # A network of another format says nothing of its preprocessing; comparing and studying find it out, so does this.
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 8, 8, 1), np.uint8)
    x[:20] //= 4
    np.savez(tmp_path / "rows.npz", x=x, y=np.arange(40) // 20)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    )
    model = dlas.load(net, torch.zeros(1, 1, 8, 8))
    told = []
    small = dlas.compress(
        model, "int8", data=tmp_path / "rows.npz", progress=lambda done, text: told.append(text)
    )
    assert "preprocessing chosen by accuracy" in told[0]
    assert small.preprocessing is not None
    assert small.preprocessing.layout == "NCHW"
