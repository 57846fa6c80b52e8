from __future__ import annotations

import numpy as np
import pytest
import torch

from dlas.core.errors import OptionError, UnknownNameError
from dlas.models.architecture import architecture_for, architectures


@pytest.mark.parametrize("name", architectures.names())
def test_every_architecture_builds_what_it_declares(name: str) -> None:
    architecture = architecture_for(name)
    module = architecture.build()
    assert not module.training
    with torch.no_grad():
        assert module(torch.zeros(2, *architecture.input_shape)).shape == (2, architecture.classes)
    fields = architecture.preprocessing
    assert (fields.height, fields.width) == architecture.input_shape[1:]


def parameters(spelled: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in architecture_for(spelled).build().parameters())


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameter_counts_are_those_of_the_paper(depth: int, millions: float) -> None:
    """Table 6 of He et al. 2016."""
    assert parameters(f"cifar-resnet:depth={depth}") / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize(
    ("spelled", "millions"),
    [
        ("wide-resnet:depth=40,width=2", 2.2),
        ("wide-resnet:depth=16,width=8", 11.0),
        ("resnet:depth=18", 11.69),
        ("resnet:depth=34", 21.80),
        ("mobilenet-v2", 3.50),
        ("mobilenet-v2:width=1.4", 6.1),
        ("resnet8", 0.078),  # Banbury et al. 2021, MLPerf Tiny
    ],
)
def test_parameter_counts_of_the_others(spelled: str, millions: float) -> None:
    """Tables of the papers: WRN table 4; ResNet and MobileNetV2 as published with 1000 classes."""
    assert parameters(spelled) / 1e6 == pytest.approx(millions, rel=0.03)


def test_groups_divide_the_weights_of_the_stages() -> None:
    assert parameters("wide-resnet:groups=16") < 0.15 * parameters("wide-resnet")


def test_mobilenet_for_small_images_shrinks_less_and_weighs_the_same() -> None:
    whole = parameters("mobilenet-v2:size=32")
    for reduction in (32, 16, 8):
        module = architecture_for(f"mobilenet-v2:size=32,reduction={reduction}").build()
        assert module.features(torch.zeros(1, 3, 32, 32)).shape[2:] == (32 // reduction,) * 2
        assert sum(p.numel() for p in module.parameters()) == whole


def test_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    module = architecture_for("cifar-resnet").build()
    x = torch.randn(1, 16, 6, 6)
    y = module.layer2[0].shortcut(x)
    assert y.shape == (1, 32, 3, 3)
    torch.testing.assert_close(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_seed_decides_the_weights() -> None:
    built = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        built.append(architecture_for("digits-cnn").build().conv2.weight.detach().numpy())
    np.testing.assert_array_equal(built[0], built[1])
    assert not np.array_equal(built[0], built[2])


def test_bad_choices_are_named() -> None:
    with pytest.raises(OptionError, match="depth = 21"):
        architecture_for("cifar-resnet:depth=21")
    with pytest.raises(UnknownNameError, match="cifar-resnet"):
        architecture_for("cifar-resnett")


def test_vit_has_the_weights_of_the_paper() -> None:
    """12 width^2 per block for the products, and what the stem, positions, norms and head add."""
    width, depth = 96, 6
    block = 12 * width**2 + 13 * width
    rest = 48 * width + width + 64 * width + 2 * width + 10 * width + 10
    assert parameters("vit") == depth * block + rest


def test_vit_reads_its_options_off_the_weights() -> None:
    spelled = "vit:depth=2,width=16,heads=4,patch=8,expansion=2,stem=conv,classes=7"
    shapes = {n: tuple(t.shape) for n, t in architecture_for(spelled).build().state_dict().items()}
    assert architectures.get("vit").options_from(shapes) == {
        "depth": 2, "width": 16, "patch": 8, "expansion": 2, "stem": "conv", "classes": 7,
    }  # fmt: skip
    assert architectures.get("vit").options_from({"conv1.weight": (16, 3, 3, 3)}) == {}


def test_vit_attends_to_all_tokens_and_knows_their_places() -> None:
    module = architecture_for("vit:depth=1,width=8,heads=2").build()
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    module(x)[0, 0].backward()
    assert x.grad is not None
    assert (x.grad.abs().amax((0, 1)) > 0).all()
    torch.nn.init.normal_(module.position)
    flipped = torch.flip(x.detach(), [3])
    assert not torch.allclose(module(flipped), module(x.detach()), atol=1e-5)


def test_vit_heads_share_the_width_evenly() -> None:
    with pytest.raises(OptionError, match="multiple of the number of heads"):
        architecture_for("vit:width=10,heads=3")
