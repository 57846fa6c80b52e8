"""Decoded images are kept and never mistaken for others."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlas.core.cache import Cache
from dlas.core.errors import DataError
from dlas.data import pixel_cache, preprocess
from dlas.data.dataset import Dataset
from dlas.data.preprocess import iterate, prepare
from dlas.graph.preprocessing import Preprocessing

STEPS = Preprocessing(8, 8, scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2,))


def pictures(count: int = 300, seed: int = 0) -> Dataset:
    random = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (10, 12, 3), np.uint8)).save(file, "JPEG")
        samples.append(file.getvalue())
    return Dataset("pictures", samples, np.zeros(count, np.int64))


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pixel_cache.forget()


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per decoded image."""
    found: list[int] = []
    one = preprocess._one

    def counted(*given):
        found.append(1)
        return one(*given)

    monkeypatch.setattr(preprocess, "_one", counted)
    return found


def test_the_second_method_decodes_nothing_and_gets_the_same(decodings: list[int]) -> None:
    data = pictures()
    first = prepare(data, STEPS)
    assert len(decodings) == 300
    np.testing.assert_array_equal(prepare(data, STEPS), first)
    np.testing.assert_array_equal(first, np.concatenate(list(iterate(data, STEPS, 70))))
    del decodings[:]
    other = prepare(data, replace(STEPS, mean=(0.0,), std=(1.0,), layout="NHWC"))
    assert not decodings
    np.testing.assert_allclose(
        other.transpose(0, 3, 1, 2), first * 0.2 + [[[[0.4]], [[0.5]], [[0.6]]]], atol=1e-5
    )


def test_other_rows_sizes_and_colours_are_others(decodings: list[int]) -> None:
    data = pictures()
    seen = {prepare(data, STEPS).tobytes()}
    for given, steps in (
        (data.take(np.arange(300)[::-1]), STEPS),
        (pictures(seed=1), STEPS),
        (data, replace(STEPS, height=9)),
        (data, replace(STEPS, colour="BGR", mean=(0.5,))),
        (data, replace(STEPS, resize=9)),
    ):
        del decodings[:]
        seen.add(prepare(given, steps).tobytes())
        assert len(decodings) == 300
    assert len(seen) == 6


def test_what_a_caller_does_to_its_rows_stays_with_it() -> None:
    data = pictures()
    first = prepare(data, STEPS)
    before = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(prepare(data, STEPS), before)


def test_the_disk_serves_the_next_process(decodings: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_cache, "WORTH_S", 0.0)
    data = pictures()
    first = prepare(data, STEPS)
    pixel_cache.forget()
    np.testing.assert_array_equal(prepare(data, STEPS), first)
    assert len(decodings) == 300
    (entry,) = Cache().root.rglob("pixels.npy")
    entry.write_bytes(entry.read_bytes()[:-10] + b"0123456789")
    pixel_cache.forget()
    np.testing.assert_array_equal(prepare(data, STEPS), first)
    assert len(decodings) == 600


def test_quick_decoding_stays_off_the_disk_and_few_rows_out_of_memory(decodings: list[int]) -> None:
    few = pictures(40)
    prepare(few, STEPS)
    prepare(few, STEPS)
    assert len(decodings) == 80
    prepare(pictures(), STEPS)
    assert not list(Cache().root.rglob("pixels.npy"))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, decodings: list[int]) -> None:
    monkeypatch.setattr(pixel_cache, "MEMORY_BYTES", 2 * 300 * 8 * 8 * 3)
    sets = [pictures(seed=seed) for seed in range(3)]
    for data in sets:
        prepare(data, STEPS)
    del decodings[:]
    prepare(sets[2], STEPS)
    prepare(sets[1], STEPS)
    assert not decodings
    prepare(sets[0], STEPS)
    assert len(decodings) == 300


def test_a_cache_that_cannot_be_written_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pixel_cache, "WORTH_S", 0.0)
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("DLAS_CACHE", str(blocked))
    assert len(prepare(pictures(), STEPS)) == 300
    assert "not kept" in caplog.text


def test_a_user_without_a_home_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_cache, "WORTH_S", 0.0)
    for name in ("DLAS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr(Path, "home", homeless)
    assert len(prepare(pictures(), STEPS)) == 300


@pytest.mark.parametrize("what", ["code_hash", "_decoder"])
def test_pixels_of_other_code_are_not_taken(
    what: str, decodings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_cache, "WORTH_S", 0.0)
    prepare(pictures(), STEPS)
    pixel_cache.forget()
    monkeypatch.setattr(pixel_cache, what, lambda: "another")
    prepare(pictures(), STEPS)
    assert len(decodings) == 600


def test_a_broken_picture_is_named_and_nothing_is_kept(decodings: list[int]) -> None:
    good = pictures()
    broken = replace(good, samples=[*good.samples[:250], b"no picture", *good.samples[251:]])
    for _ in range(2):
        with pytest.raises(DataError, match="row 250"):
            prepare(broken, STEPS)
