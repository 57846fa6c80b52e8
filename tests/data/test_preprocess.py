from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from dlas.core.errors import DataError, OptionError
from dlas.data.dataset import Dataset
from dlas.data.preprocess import iterate, prepare, quantize
from dlas.graph.model import Model
from dlas.graph.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 6, 8, 3), np.uint8)


def encode(pixels, kind="PNG", mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def network(shape, dtype=TensorProto.FLOAT, preprocessing=None):
    x = helper.make_tensor_value_info("x", dtype, shape)
    y = helper.make_tensor_value_info("y", dtype, shape)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(proto)
    return Model.from_proto(proto, "net", preprocessing=preprocessing)


ENCODED = Dataset("encoded", [encode(p) for p in PIXELS])
ARRAYS = Dataset("arrays", PIXELS)


@pytest.mark.parametrize("data", [ENCODED, ARRAYS])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("colour", ["RGB", "BGR"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_normalising_follows_its_formula(data, layout, colour, dtype):
    steps = Preprocessing(
        6, 8, colour=colour, scale=1 / 255, mean=IMAGENET_MEAN, std=IMAGENET_STD, layout=layout, dtype=dtype
    )
    values = PIXELS[..., ::-1] if colour == "BGR" else PIXELS
    expected = (values / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    expected = expected.transpose(0, 3, 1, 2) if layout == "NCHW" else expected
    got = prepare(data, steps)
    assert got.dtype == dtype
    assert got.flags.c_contiguous
    np.testing.assert_allclose(
        got, expected, rtol=2e-7 if dtype == "float32" else 2e-3, atol=1e-3 * (dtype != "float32")
    )


@pytest.mark.parametrize(("dtype", "zero"), [("int8", -128), ("uint8", 0), ("int8", -3)])
def test_integer_inputs_are_quantised(dtype, zero):
    steps = Preprocessing(
        6,
        8,
        scale=1 / 127.5,
        mean=(1.0,),
        layout="NHWC",
        dtype=dtype,
        quant_scale=0.01,
        quant_zero_point=zero,
    )
    got = prepare(ARRAYS, steps)
    np.testing.assert_array_equal(got, quantize(PIXELS / 127.5 - 1, dtype, 0.01, zero))
    assert got.dtype == dtype


def test_rounding_is_half_away_from_zero_and_saturates():
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49, 1e9, -1e9, 0.0])
    np.testing.assert_array_equal(quantize(values, "int8", 1.0, 0), [1, 2, 3, -1, -2, -3, 0, 127, -128, 0])
    assert quantize(np.array([-1.0]), "uint8", 1.0, 0)[0] == 0


def test_short_side_then_centre_crop():
    image = RNG.integers(0, 256, (60, 90, 3), np.uint8)
    resized = Image.fromarray(image).resize((60, 40), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[4:36, 14:46]
    plain = {"layout": "NHWC", "dtype": "uint8"}
    encoded, array = Dataset("a", [encode(image)]), Dataset("a", image[None])
    for data in (encoded, array):
        np.testing.assert_array_equal(prepare(data, Preprocessing(32, 32, 40, **plain))[0], expected)
    squashed = Image.fromarray(image).resize((40, 40), Image.Resampling.BILINEAR)
    got = prepare(encoded, Preprocessing(32, 32, 40, squash=True, **plain))
    np.testing.assert_array_equal(got[0], np.asarray(squashed)[4:36, 4:36])
    straight = Image.fromarray(image).resize((45, 30), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(prepare(array, Preprocessing(30, 45, **plain))[0], np.asarray(straight))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_other_colour_modes_are_converted(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    flat = np.full((6, 8, 3), 255, np.uint8)
    data = Dataset("a", [encode(flat, kind, mode)])
    assert prepare(data, Preprocessing(6, 8)).min() > 250
    assert prepare(data, Preprocessing(6, 8, colour="L")).shape == (1, 1, 6, 8)


def test_sixteen_bits_are_scaled_not_clipped():
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    data = Dataset("a", [encode(deep)])
    np.testing.assert_array_equal(prepare(data, Preprocessing(1, 4, colour="L")).ravel(), [0, 1, 128, 255])


def test_grey_arrays_become_three_channels_and_back():
    grey = PIXELS[..., 0]
    for samples in (grey, grey[..., None]):
        got = prepare(Dataset("a", samples), Preprocessing(6, 8, layout="NHWC", dtype="uint8"))
        np.testing.assert_array_equal(got, np.repeat(grey[..., None], 3, 3))
        same = prepare(Dataset("a", samples), Preprocessing(6, 8, colour="L", dtype="uint8"))
        np.testing.assert_array_equal(same[:, 0], grey)


def test_rows_and_batches_are_the_same_samples():
    steps = Preprocessing(6, 8)
    whole = prepare(ENCODED, steps)
    np.testing.assert_array_equal(prepare(ENCODED, steps, rows=[3, 1]), whole[[3, 1]])
    for size in (1, 2, 5, 9):
        batches = list(iterate(ENCODED, steps, size))
        assert max(map(len, batches)) <= size
        np.testing.assert_array_equal(np.concatenate(batches), whole)


def test_many_chunks_make_one_array(monkeypatch):
    monkeypatch.setattr("dlas.data.preprocess._CHUNK_BYTES", 2 * 6 * 8 * 3)
    np.testing.assert_array_equal(prepare(ARRAYS, Preprocessing(6, 8, layout="NHWC", dtype="uint8")), PIXELS)


def test_prepared_rows_are_the_callers_own():
    data = Dataset("a", PIXELS.astype(np.float32))
    got = prepare(data, Preprocessing(6, 8, layout="NHWC"))
    got[:] = 0
    assert data.samples.any()


def test_ready_arrays_are_only_brought_to_the_dtype():
    ready = RNG.normal(size=(4, 3, 2, 2)).astype(np.float32)
    data = Dataset("a", ready)
    steps = Preprocessing(2, 2, scale=9.0, mean=(5.0,))
    np.testing.assert_array_equal(prepare(data, steps), ready)
    quantised = prepare(data, Preprocessing(layout="N*", dtype="int8", quant_scale=0.1, quant_zero_point=3))
    np.testing.assert_array_equal(quantised, quantize(ready, "int8", 0.1, 3))
    assert prepare(data, Preprocessing(layout="N*", dtype="float16")).dtype == np.float16
    features = Dataset("a", np.ones((4, 49), np.uint8))
    assert prepare(features, Preprocessing(layout="N*")).dtype == np.float32


def test_network_says_what_it_takes():
    model = network(["n", 3, 6, 8], preprocessing=Preprocessing(6, 8))
    assert prepare(ENCODED, model).shape == (5, 3, 6, 8)
    with pytest.raises(
        DataError, match=r"become float32\[N, 3, 6, 8\], but input 'x' of net takes float32\[1, 3, 8, 8\]"
    ):
        prepare(ENCODED, network([1, 3, 8, 8], preprocessing=Preprocessing(6, 8)))
    with pytest.raises(DataError, match="takes int8"):
        prepare(ENCODED, network([1, 3, 6, 8], TensorProto.INT8, Preprocessing(6, 8)))


def test_network_without_preprocessing_takes_ready_arrays_only():
    ready = Dataset("a", np.ones((2, 4), np.float32))
    np.testing.assert_array_equal(prepare(ready, network([1, 4])), ready.samples)
    with pytest.raises(DataError, match="does not say how to prepare"):
        prepare(ENCODED, network([1, 3, 6, 8]))
    with pytest.raises(DataError, match="takes float32"):
        prepare(ready, network([1, 5]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_broken_images_name_their_row(kind):
    sound = encode(RNG.integers(0, 256, (32, 32, 3), np.uint8), kind)
    data = Dataset("a", [sound, sound, sound[: len(sound) // 2]]).take([1, 2])
    with pytest.raises(DataError, match="a: row 2 cannot be decoded"):
        prepare(data, Preprocessing(32, 32))


@pytest.mark.parametrize(
    "content", [b"\x00", b"RIFF....WAVEfmt ", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image_is_refused(content):
    with pytest.raises(DataError, match="row 0 cannot be decoded"):
        prepare(Dataset("a", [content]), Preprocessing(4, 4))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_flipped_bytes_never_give_another_error(kind):
    sound = encode(RNG.integers(0, 256, (16, 16, 3), np.uint8), kind)
    for _ in range(40):
        bad = bytearray(sound)
        for at in RNG.integers(0, len(bad), 3):
            bad[at] = RNG.integers(256)
        try:
            got = prepare(Dataset("a", [bytes(bad)]), Preprocessing(8, 8))
        except DataError:
            continue
        assert got.shape == (1, 3, 8, 8)


def test_too_many_pixels_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 47)
    with pytest.raises(DataError, match="8 x 6 pixels; at most 47"):
        prepare(ENCODED, Preprocessing(6, 8))


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ({"height": 32, "width": 32, "resize": 30}, "resize = 30"),
        ({"height": 4, "width": 4, "mean": (1.0, 2.0)}, "mean = .* 1 or 3 numbers"),
        ({"height": 4, "width": 4, "colour": "L", "std": (1.0, 2.0, 3.0)}, "std = .* 1 or 1 numbers"),
    ],
)
def test_contradictions_are_refused(steps, text):
    with pytest.raises(OptionError, match=text):
        prepare(ENCODED, Preprocessing(**steps))


def test_samples_that_are_not_images():
    with pytest.raises(DataError, match="no image size"):
        prepare(ENCODED, Preprocessing(layout="N*"))
    with pytest.raises(DataError, match="not images"):
        prepare(Dataset("a", np.zeros((2, 3), np.uint8)), Preprocessing(4, 4))
    with pytest.raises(DataError, match="not images"):
        prepare(Dataset("a", np.zeros((2, 3, 3, 7), np.uint8)), Preprocessing(4, 4))
