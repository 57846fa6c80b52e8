"""A trained ResNet-20 on 4 x 8 bits: its sums stay within 16 bits."""

from __future__ import annotations

from dlas.data.find import load_dataset
from dlas.data.preprocess import prepare
from dlas.graph.format import load_model
from dlas.kernels.asymmetric.survey import SurveyOptions, survey


def test_resnet20_hardly_ever_overflows(data_folder):
    model = load_model(data_folder / "models" / "cifar-resnet" / "resnet20.th")
    x = prepare(load_dataset(data_folder / "cifar10-test.parquet").head(20), model)
    layers = survey(model, {model.inputs[0].name: x}, SurveyOptions(rows=400, spills=(None, 256, 64, 32)))
    assert len(layers) == 20  # 19 convolutions and the classifier
    assert max(layer.depth for layer in layers) == 576
    total = {s: sum(layer.stats[s].overflows for layer in layers) for s in (None, 256, 64, 32)}
    updates = sum(layer.stats[None].updates for layer in layers)
    assert total[None] <= 0.0005 * updates
    assert total[32] == 0  # weights within -7 .. 7: 32 products of int8 always fit, of uint8 in this network
    assert 8_000 < max(layer.stats[None].largest for layer in layers) < 32_768
