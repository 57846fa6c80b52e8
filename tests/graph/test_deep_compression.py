"""The Deep Compression bitstream: decoded as written, refused when a byte is off."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from dlas.core.errors import ModelError
from dlas.graph.format import format_for, load_model
from dlas.graph.formats.deep_compression import LAYERS, DeepCompression, decoded

LAST = LAYERS[-1]


def encoded(codes: np.ndarray) -> tuple[bytes, bytes, int]:
    """Codes of one layer, flat, 0 for no weight -> stored codes, packed positions, number of entries."""
    entries: list[tuple[int, int]] = []
    before = -1
    for place in np.flatnonzero(codes):
        while place - before > 16:
            before += 16
            entries.append((0, 15))
        entries.append((int(codes[place]), place - before - 1))
        before = place
    nibbles = [gap for _, gap in entries] + [0] * (len(entries) % 2)
    packed = bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))
    return bytes(code for code, _ in entries), packed, len(entries)


def network(seed: int = 0, density: float = 0.05) -> tuple[bytes, dict[str, np.ndarray]]:
    """A whole file with random weights, and what must come out of it."""
    rng = np.random.default_rng(seed)
    counts, body, wanted = [], b"", {}
    for conv in LAYERS:
        codebook = rng.standard_normal(256).astype("<f4") / 8
        codebook[0] = 0
        bias = rng.standard_normal(conv.shape[0]).astype("<f4") / 8
        codes = np.where(rng.random(conv.size) < density, rng.integers(1, 256, conv.size), 0)
        stored, packed, count = encoded(codes)
        counts.append(count)
        body += codebook.tobytes() + bias.tobytes() + stored + packed
        wanted[f"{conv.name}.weight"] = codebook[codes].reshape(conv.shape)
        wanted[f"{conv.name}.bias"] = bias
    return struct.pack("<26I", *counts) + body, wanted


@pytest.fixture(scope="module")
def sound() -> tuple[bytes, dict[str, np.ndarray]]:
    return network()


@pytest.mark.parametrize("density", [0.0, 0.02, 0.6, 1.0])
def test_what_was_encoded_is_decoded(density: float) -> None:
    data, wanted = network(seed=3, density=density)
    found = dict(decoded(data, "net"))
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.float32


def torch_squeezenet(weights: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """SqueezeNet v1.0 once more, by PyTorch and from the paper's table."""
    import torch
    from torch.nn import functional as f

    def conv(name: str, x: torch.Tensor, **how: int) -> torch.Tensor:
        weight, bias = (torch.tensor(weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return f.relu(f.conv2d(x, weight, bias, **how))

    def pool(x: torch.Tensor) -> torch.Tensor:
        return f.max_pool2d(x, 3, 2, ceil_mode=True)

    x = pool(conv("conv1", torch.tensor(image), stride=2))
    for number in range(2, 10):
        squeezed = conv(f"fire{number}_squeeze1x1", x)
        wide = conv(f"fire{number}_expand3x3", squeezed, padding=1)
        x = torch.cat([conv(f"fire{number}_expand1x1", squeezed), wide], 1)
        x = pool(x) if number in (4, 8) else x
    return conv("conv10", x).mean((2, 3)).numpy()


def test_the_network_around_the_weights(sound: tuple[bytes, dict[str, np.ndarray]], tmp_path: Path) -> None:
    from dlas.graph.reference import Reference
    from dlas.testing.backends import sqnr_db

    path = tmp_path / "squeezenet.net"
    path.write_bytes(sound[0])
    assert format_for(path) is DeepCompression
    model = load_model(path)
    assert [(s.name, s.shape) for s in model.inputs] == [("image", (1, 3, 227, 227))]
    assert [(s.name, s.shape) for s in model.outputs] == [("logits", (1, 1000))]
    assert model.preprocessing is not None
    assert model.preprocessing.mean == (104, 117, 123)
    image = np.random.default_rng(0).standard_normal((1, 3, 227, 227)).astype(np.float32) * 50
    with Reference(model) as reference:
        found = reference.run({"image": image})["logits"]
    assert sqnr_db(torch_squeezenet(sound[1], image), found) > 110
    size = sum(conv.size for conv in LAYERS)
    nonzero = sum(np.count_nonzero(a) for n, a in sound[1].items() if n.endswith("weight"))
    notes = " ".join(model.history[-1].notes)
    assert f"{nonzero / size:.1%} are not zero" in notes
    assert f"{8 * len(sound[0]) / size:.2f} bits per weight" in notes


def changed(data: bytes, place: int, raw: bytes) -> bytes:
    return data[:place] + raw + data[place + len(raw) :]


def last_layer(data: bytes) -> int:
    """First byte of the last layer."""
    return len(data) - LAST.nbytes(struct.unpack_from("<26I", data)[-1])


@pytest.mark.parametrize("kept", [0, 3, 50, 104, 2000, -1])
def test_a_truncated_file_is_one_line(
    sound: tuple[bytes, dict[str, np.ndarray]], tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "cut.net"
    path.write_bytes(sound[0][:kept])
    with pytest.raises(ModelError, match=r"truncated|empty|holds no") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_hostile_files_are_one_line(sound: tuple[bytes, dict[str, np.ndarray]], tmp_path: Path) -> None:
    data = sound[0]
    start, count = last_layer(data), struct.unpack_from("<26I", data)[-1]
    nan, infinity = struct.pack("<f", np.nan), struct.pack("<f", -np.inf)
    positions = start + 4 * 256 + 4 * LAST.shape[0] + count
    cases = {
        "left over": data + b"\0",
        "left over too": data + b"\0" * 10**7,
        "codebook of fire2_squeeze1x1 holds NaN": changed(
            data, 104 + LAYERS[0].nbytes(struct.unpack_from("<I", data)[0]) + 8, nan
        ),
        "codebook of conv10 holds NaN": changed(data, start + 1020, infinity),
        "bias of conv10 holds NaN": changed(data, start + 1024, nan),
        "starts with 1 instead of 0": changed(data, start, struct.pack("<f", 1.0)),
        "weight at place": changed(data, positions, b"\xff" * ((count + 1) // 2)),
        "claims 4294967295 stored": changed(data, 100, b"\xff" * 4),
        "truncated": changed(data, 100, struct.pack("<I", LAST.size)),
        "holds no deep-compression": changed(data, 0, b"\xff" * 4),
    }
    for message, content in cases.items():
        path = tmp_path / "hostile.net"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=message.removesuffix(" too")) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)


def test_random_bytes_are_refused_or_read(sound: tuple[bytes, dict[str, np.ndarray]]) -> None:
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(40):
        broken = bytearray(sound[0])
        for place in rng.integers(0, len(broken), 3):
            broken[place] = rng.integers(0, 256)
        if rng.random() < 0.3:
            broken[rng.integers(0, 104)] = 255
        try:
            found = dict(decoded(bytes(broken), "net"))
            outcomes.add(all(np.isfinite(a).all() for a in found.values()))
        except ModelError:
            outcomes.add("refused")
    assert outcomes == {True, "refused"}
