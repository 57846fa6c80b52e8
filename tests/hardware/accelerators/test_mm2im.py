"""Transposed convolutions on an accelerator: model and RTL agree; what is cropped is left out, all else is not."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from dlas.hardware.accelerator import DoesNotFitError, accelerator_for
from dlas.hardware.accelerators._mm2im.baselines import Processor, iom, zero_insertion
from dlas.hardware.accelerators._mm2im.geometry import Geometry
from dlas.hardware.accelerators._mm2im.schedule import Schedule, Shape
from dlas.hardware.verification import verify
from dlas.kernels.kernel import Node, Operand
from dlas.kernels.reference.requantize import scale_sum

SMALL = "pe_count=4,uf=4,weight_kib=4,input_kib=1,sum_kib=1"
DCGAN = [(512, 5, 4, 1024, 2), (256, 5, 8, 512, 2), (128, 5, 16, 256, 2), (3, 5, 32, 128, 2)]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def scattered(node: Node, x: np.ndarray) -> np.ndarray:
    """Every contribution added by its definition, one number at a time."""
    a, weight, bias = node.attributes, node.constant(1), node.constant(2)
    assert weight is not None
    assert bias is not None
    (images, _, height, width), (_, channels, rows, columns) = x.shape, weight.shape
    (sh, sw), (top, left) = a["strides"], a["pads"][:2]
    size = node.output.shape[2:]
    sums = np.zeros((images, channels, *size), np.int64)
    for n, h, v, i, j in itertools.product(*map(range, (images, height, width, rows, columns))):
        r, c = h * sh + i - top, v * sw + j - left
        if 0 <= r < size[0] and 0 <= c < size[1]:
            sums[n, :, r, c] += (x[n, :, h, v].astype(np.int64) - a["x_zero_point"]) @ weight[:, :, i, j]
    total = (sums + bias[:, None, None]).transpose(0, 2, 3, 1)
    found = scale_sum(total, np.array(a["multipliers"]), np.array(a["shifts"]), a["rounding"])
    return (
        np.clip(found + a["y_zero_point"], a["act_min"], a["act_max"]).astype(np.int8).transpose(0, 3, 1, 2)
    )


def test_model_and_rtl_agree() -> None:
    found = verify(accelerator_for(f"mm2im:{SMALL}"))
    assert found.passed, found.failures[:5]


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice", ["mm2im", "mm2im:pe_count=2,uf=8,rounding=single,weight_kib=4,input_kib=1,sum_kib=1"]
)
def test_model_and_rtl_of_other_sizes_agree(choice: str) -> None:
    found = verify(accelerator_for(choice))
    assert found.passed, found.failures[:5]


@pytest.mark.parametrize("choice", ["mm2im", f"mm2im:{SMALL}", "mm2im:rounding=single"])
def test_results_are_those_of_a_scatter(choice: str, random: np.random.Generator) -> None:
    accelerator = accelerator_for(choice)
    for _ in range(12):
        node, x = accelerator.trial(random)
        assert accelerator.refuses(node) == ""
        layer = accelerator.layer(node)
        found, cycles = layer.run(x, "tlm")
        np.testing.assert_array_equal(found, scattered(node, x))
        assert 0 < cycles.utilisation <= 1
        spans = layer.spans()
        assert all(first <= last for _, _, first, last in spans)
        assert max(last for *_, last in spans) == cycles.total - 1


def test_bytes_without_sign(random: np.random.Generator) -> None:
    """uint8 maps are those of int8, all moved by 128."""
    accelerator = accelerator_for("mm2im")
    node, x = accelerator.trial(random)
    a = {**node.attributes}
    wanted, _ = accelerator.layer(node).run(x, "tlm")
    moved = {key: a[key] + 128 for key in ("x_zero_point", "y_zero_point", "act_min", "act_max")}
    inputs = (dataclasses.replace(node.operand(0), dtype="uint8"), *node.inputs[1:])
    outputs = (dataclasses.replace(node.output, dtype="uint8"),)
    unsigned = dataclasses.replace(node, attributes=a | moved, inputs=inputs, outputs=outputs)
    found, _ = accelerator.layer(unsigned).run(x.view(np.uint8) ^ 0x80, "tlm")
    np.testing.assert_array_equal(found, wanted.view(np.uint8) ^ 0x80)


def kept(shape: Shape) -> int:
    """Pairs of an input pixel and a tap inside the output, one at a time."""
    count = 0
    for h, v, i, j in itertools.product(*map(range, (*shape.inputs, *shape.kernel))):
        r, c = h * shape.strides[0] + i - shape.begins[0], v * shape.strides[1] + j - shape.begins[1]
        count += 0 <= r < shape.outputs[0] and 0 <= c < shape.outputs[1]
    return shape.images * count


def test_the_array_works_off_kept_taps_and_no_others(random: np.random.Generator) -> None:
    accelerator = accelerator_for("mm2im")
    for _ in range(40):
        node, _ = accelerator.trial(random)
        shape = Shape.of(node)
        assert shape.kept == kept(shape)
        s = Schedule(Geometry(pe_count=2), dataclasses.replace(shape, channels=2))
        if s.spread == 1:
            assert s.passes == kept(shape)
            assert s.cycles()["compute"] == kept(shape) * s.steps


@pytest.mark.parametrize(
    ("layer", "cropped"),
    [((8, 5, 7, 16, 2), 0.164), ((8, 5, 16, 16, 2), 0.074), ((8, 5, 4, 16, 2), 0.277), ((8, 5, 7, 16, 1), 0.313),
     ((8, 9, 7, 16, 1), 0.534), ((8, 2, 7, 16, 2), 0.0)],
)  # fmt: skip
def test_what_is_cropped(layer: tuple[int, int, int, int, int], cropped: float) -> None:
    shape = Shape.same(*layer)
    assert 1 - shape.kept / shape.taps == pytest.approx(cropped, abs=6e-4)


def test_outputs_that_no_tap_reaches_are_the_bias() -> None:
    attributes = {
        "kernel_shape": (1, 1), "strides": (3, 3), "dilations": (1, 1), "pads": (0, 0, 0, 0), "group": 1,
        "x_zero_point": 5, "y_zero_point": -7, "act_min": -128, "act_max": 127, "multipliers": (2**30,),
        "shifts": (1,), "rounding": "double",
    }  # fmt: skip
    weight, bias = np.full((4, 3, 1, 1), 2, np.int8), np.array([10, 20, 30], np.int32)
    inputs = (Operand((1, 4, 2, 2), "int8"), Operand.of(weight), Operand.of(bias))
    node = Node("QConvTranspose", "gaps", attributes, inputs, (Operand((1, 3, 6, 6), "int8"),))
    x = np.full((1, 4, 2, 2), 6, np.int8)
    found, _ = accelerator_for(f"mm2im:{SMALL}").layer(node).run(x, "tlm")
    wanted = np.broadcast_to((bias - 7)[:, None, None], (3, 6, 6)).copy()
    wanted[:, ::3, ::3] += 8
    np.testing.assert_array_equal(found[0], wanted)
    np.testing.assert_array_equal(scattered(node, x), found)


def test_few_channels_share_the_elements() -> None:
    one, eight = (Schedule(Geometry(), Shape.same(c, 9, 32, 64, 2)) for c in (1, 8))
    assert (one.spread, eight.spread) == (8, 1)
    assert eight.cycles()["compute"] > 7 * one.cycles()["compute"]


@pytest.mark.parametrize("layer", DCGAN)
def test_loading_and_storing_hide_behind_the_array(layer: tuple[int, int, int, int, int]) -> None:
    s = Schedule(Geometry(), Shape.same(*layer))
    counters = s.cycles()
    first = s.lanes * (s.filter_words + 1)
    assert counters["total"] <= counters["compute"] + first + 1000
    assert s.shape.macs / counters["total"] > 0.95 * s.geometry.multipliers


@pytest.mark.parametrize("layer", [*DCGAN, (64, 3, 64, 128, 2), (1, 9, 32, 56, 2), (16, 7, 7, 32, 1)])
def test_other_mappings_take_longer(layer: tuple[int, int, int, int, int]) -> None:
    shape = Shape.same(*layer)
    total = Schedule(Geometry(), shape).cycles()["total"]
    mapped = iom(Geometry(), shape, Processor())
    assert mapped.total > mapped.accelerator >= mapped.array
    assert mapped.array / total > 0.97 * shape.taps / shape.kept
    assert iom(Geometry(), shape, dense=False).array >= mapped.array
    assert zero_insertion(Geometry(), shape) / total > 0.97 * layer[4] ** 2


def test_what_does_not_fit_names_the_buffer() -> None:
    with pytest.raises(DoesNotFitError, match="weight buffer") as caught:
        Schedule(Geometry(weight_words=512), Shape.same(*DCGAN[0]))
    assert (caught.value.needed, caught.value.available) == (2 * 16 * 25 * 64, 16 * 512)
    with pytest.raises(DoesNotFitError, match="input buffer"):
        Schedule(Geometry(input_words=32), Shape.same(8, 1, 4, 1024, 1))
    with pytest.raises(DoesNotFitError, match="sum buffer"):
        Schedule(Geometry(sum_words=256), Shape.same(8, 5, 64, 16, 1))


def test_what_is_refused_says_why(random: np.random.Generator) -> None:
    accelerator = accelerator_for("mm2im")
    node, _ = accelerator.trial(random)

    def changed(**attributes: object) -> Node:
        return dataclasses.replace(node, attributes={**node.attributes, **attributes})

    assert accelerator.refuses(node) == ""
    assert "single" in accelerator.refuses(changed(rounding="single"))
    assert "dilation" in accelerator.refuses(changed(dilations=(2, 1)))
    assert "stride" in accelerator.refuses(changed(strides=(17, 1)))
    assert "padding" in accelerator.refuses(changed(pads=(9, 0, 0, 0)))
    assert "2**30" in accelerator.refuses(changed(shifts=(31,)))
    wide = Operand.of(np.zeros(node.operand(1).shape, np.int16))
    assert "int8" in accelerator.refuses(dataclasses.replace(node, inputs=(node.inputs[0], wide, None)))
