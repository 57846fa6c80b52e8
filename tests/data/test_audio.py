"""Recordings: decoding, features by another formula, preparation, groups, and what is refused."""

from __future__ import annotations

import io
import wave

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import fft, signal
from wavs import tone, wav

from dlas.core.errors import DataError, OptionError, UnknownNameError
from dlas.data.audio.features import features, fitted, mel_weights
from dlas.data.audio.wav import Recording, is_wav, read_wav
from dlas.data.dataset import Dataset
from dlas.data.details import described
from dlas.data.find import load_dataset
from dlas.data.guess import guess_preprocessing
from dlas.data.preprocess import iterate, prepare
from dlas.data.splits import select
from dlas.graph.preprocessing import Preprocessing

RNG = np.random.default_rng(0)
MFCC = Preprocessing(49, 10, features="mfcc", sample_rate=8000)
VOICES = [wav(tone(200 + 40 * i) + RNG.integers(-500, 500, 3200)) for i in range(6)]
SPOKEN = Dataset(
    "spoken",
    VOICES,
    np.arange(6) % 2,
    ("low", "high"),
    groups={"speaker": np.array(["ann", "ann", "bob", "bob", "cyd", "cyd"])},
)


@pytest.mark.parametrize(
    ("bits", "kind", "stored", "expected"),
    [
        (8, 1, [0, 128, 255], [-1, 0, 127 / 128]),
        (16, 1, [-32768, 0, 32767], [-1, 0, 32767 / 32768]),
        (24, 1, [-(2**23), 1, 2**23 - 1], [-1, 2**-23, 1 - 2**-23]),
        (32, 1, [-(2**31), 0, 2**30], [-1, 0, 0.5]),
        (32, 3, [-1.0, 0.25, 1.0], [-1, 0.25, 1]),
    ],
)
def test_every_width_comes_out_between_minus_one_and_one(bits, kind, stored, expected):
    found = read_wav(wav(stored, rate=11025, bits=bits, kind=kind), "a")
    assert found.rate == 11025
    np.testing.assert_array_equal(found.samples, expected)


def test_the_standard_library_reads_the_same():
    stored = RNG.integers(-(2**15), 2**15, 500)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(stored.astype("<i2").tobytes())
    found = read_wav(buffer.getvalue(), "a")
    np.testing.assert_allclose(found.samples, stored.reshape(-1, 2).mean(1) / 2**15, rtol=1e-12)
    assert found.seconds == 250 / 16000


def test_the_extensible_header_says_the_encoding_further_on():
    extra = (22).to_bytes(2, "little") + bytes(6) + (1).to_bytes(2, "little") + bytes(14)
    assert read_wav(wav([16384], kind=0xFFFE, extra=extra), "a").samples[0] == 0.5


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no WAV|not a WAV"),
        (b"RIFF....WAVE", "without description"),
        (VOICES[0][:60], "cut off: "),
        (VOICES[0][:30], "cut off in its header"),
        (VOICES[0][:36], "without samples"),
        (wav([]), "holds 0 samples"),
        (wav([1], kind=85), "encoding 85 in 16 bits"),
        (wav([np.nan], bits=32, kind=3), "NaN"),
        (wav([1], rate=0), "contradict each other"),
        (wav([1], channels=0), "contradict each other"),
    ],
)
def test_broken_recordings_are_one_line(data, text):
    with pytest.raises(DataError, match=text) as caught:
        read_wav(data, "spoken: row 3")
    assert caught.value.message.startswith("spoken: row 3")
    assert "\n" not in str(caught.value)


def test_damaged_bytes_never_give_another_error():
    refused = 0
    for _ in range(300):
        bad = bytearray(VOICES[0])
        bad[RNG.integers(12, 60)] = RNG.integers(0, 256)
        try:
            read_wav(bytes(bad), "a")
        except DataError:
            refused += 1
    assert 0 < refused < 300


def another_mfcc(recording, frames, count):
    """The same by scipy's short-time transform and DCT, and triangles drawn with interp."""
    rate, window, stride = recording.rate, round(0.04 * recording.rate), round(0.02 * recording.rate)
    x = np.zeros(window + (frames - 1) * stride)
    cut = recording.samples[: len(x)]
    x[: len(cut)] = cut / np.abs(cut).max()
    length = 2 ** int(np.ceil(np.log2(window)))
    _, _, z = signal.stft(
        x, window=signal.get_window("hann", window), nperseg=window, noverlap=window - stride,
        nfft=length, boundary=None, padded=False, scaling="spectrum",
    )  # fmt: skip
    spectrum = np.abs(z.T) * signal.get_window("hann", window).sum()

    def scale(f):
        return 2595 * np.log10(1 + f / 700)

    edges = np.linspace(scale(20.0), scale(min(4000.0, rate / 2)), 42)
    at = scale(np.arange(length // 2 + 1) * rate / length)
    triangles = np.stack([np.interp(at, edges[i : i + 3], [0, 1, 0]) for i in range(40)], 1)
    triangles[0] = 0
    log_mel = np.log(spectrum @ triangles + 1e-6)
    return log_mel, fft.dct(log_mel, type=2, norm=None)[:, :count] / np.sqrt(80)


@pytest.mark.parametrize(("rate", "seconds"), [(8000, 0.4), (16000, 1.0), (11025, 1.3)])
def test_features_equal_another_formula(rate, seconds):
    sound = tone(440, seconds, rate) / 32768 + RNG.normal(0, 0.01, int(seconds * rate))
    recording = Recording(rate, sound)
    wave_ = fitted(recording, 49)[None]
    log_mel, mfcc = another_mfcc(recording, 49, 10)
    # The two scales differ in their fourth digit (1127 against 2595 log10), the triangles hence a little.
    np.testing.assert_allclose(features(wave_, "log-mel", rate, 40)[0], log_mel, atol=2e-3)
    np.testing.assert_allclose(features(wave_, "mfcc", rate, 10)[0], mfcc, atol=2e-3)


def test_silence_is_the_floor_and_a_tone_is_in_its_band():
    silent = features(fitted(Recording(8000, np.zeros(5)), 3)[None], "mfcc", 8000, 10)
    np.testing.assert_allclose(silent[0, :, 0], np.sqrt(2 / 40) * 40 * np.log(1e-6))
    np.testing.assert_allclose(silent[0, :, 1:], 0, atol=1e-10)
    heard = features(fitted(Recording(8000, tone(1000, 1.0) / 32768), 49)[None], "log-mel", 8000, 40)
    centres = mel_weights(40, 257, 8000).argmax(0) * 8000 / 512
    assert np.abs(centres[heard[0].mean(0).argmax()] - 1000) < 60


def test_loudness_and_what_lies_behind_the_last_frame_do_not_matter():
    sound = tone(300, 1.2)
    both = [Recording(8000, sound * f / 32768) for f in (1.0, 0.1)]
    np.testing.assert_allclose(fitted(both[0], 49), fitted(both[1], 49), atol=1e-12)
    assert fitted(both[0], 49).shape == (8000,)


def test_prepare_normalises_and_lays_out():
    raw = prepare(SPOKEN, MFCC)
    assert (raw.shape, raw.dtype) == ((6, 1, 49, 10), np.float32)
    mean, std = tuple(range(10)), tuple(range(1, 11))
    steps = Preprocessing(49, 10, layout="NHWC", mean=mean, std=std, features="mfcc", sample_rate=8000)
    found = prepare(SPOKEN, steps)
    np.testing.assert_allclose(found[..., 0], (raw[:, 0] - mean) / std, rtol=1e-5, atol=1e-5)
    whole = prepare(
        SPOKEN,
        Preprocessing(
            49, 10, dtype="int8", quant_scale=0.5847, quant_zero_point=83, features="mfcc", sample_rate=8000
        ),
    )
    np.testing.assert_allclose((whole.astype(float) - 83) * 0.5847, np.clip(raw, -123.4, 25.8), atol=0.3)
    np.testing.assert_array_equal(np.concatenate(list(iterate(SPOKEN, MFCC, 4))), raw)


def test_features_already_made_pass_as_they_are():
    ready = Dataset("ready", prepare(SPOKEN, MFCC), SPOKEN.labels)
    np.testing.assert_array_equal(prepare(ready, MFCC), ready.samples)


@pytest.mark.parametrize(
    ("samples", "steps", "text"),
    [
        ([VOICES[0], wav(tone(100, rate=16000), rate=16000)], MFCC, "row 1 has 16000 samples per second"),
        ([b"\xff\xd8jpeg"], MFCC, "row 0 is not a WAV recording"),
        (np.zeros((2, 49, 10), np.uint8), MFCC, "holds arrays of uint8"),
        (VOICES[:1], Preprocessing(8, 8), "row 0 cannot be decoded as an image: it is a WAV recording"),
    ],
)
def test_what_does_not_fit_is_named(samples, steps, text):
    with pytest.raises(DataError, match=text):
        prepare(Dataset("odd", samples), steps)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"features": "plp"}, "features = 'plp' .* mfcc, log-mel"),
        ({"features": "mfcc", "height": 49, "width": 10}, "sample_rate = 0"),
        ({"features": "mfcc", "height": 49, "width": 41, "sample_rate": 8000}, "width = 41"),
        ({"features": "mfcc", "width": 10, "sample_rate": 8000}, "height = 0"),
        ({"features": "mfcc", "height": 4, "width": 4, "sample_rate": 8000, "layout": "N*"}, "layout"),
    ],
)
def test_contradictory_features_are_refused(fields, text):
    with pytest.raises(OptionError, match=text):
        Preprocessing.from_dict(fields)


def test_a_mean_per_feature_or_one():
    with pytest.raises(OptionError, match="1 or 10 numbers"):
        prepare(SPOKEN, Preprocessing(49, 10, mean=(1.0, 2.0), features="mfcc", sample_rate=8000))


def test_features_are_guessed_from_the_shape_of_the_input():
    found, note = guess_preprocessing(["N", 49, 10, 1], "float32", SPOKEN, lambda _: 0.0)
    assert (found.features, found.layout, found.sample_rate) == ("mfcc", "NHWC", 8000)
    assert "49 frames of 10 mfcc" in note
    found, _ = guess_preprocessing(["N", 1, 98, 40], "float32", SPOKEN, lambda _: 0.0)
    assert (found.features, found.layout, found.width) == ("log-mel", "NCHW", 40)
    with pytest.raises(DataError, match="say nothing about the features"):
        guess_preprocessing(["N", 3, 32, 32], "float32", SPOKEN, lambda _: 0.0)


def test_speakers_are_taken_and_left_out():
    assert set(select(SPOKEN, "speaker=ann+cyd").groups["speaker"]) == {"ann", "cyd"}
    rest, one = select(SPOKEN, "speaker!=bob"), select(SPOKEN, "speaker=bob")
    assert sorted([*rest.rows, *one.rows]) == list(range(6))
    assert not set(rest.samples) & set(one.samples)


@pytest.mark.parametrize(
    ("wanted", "kind", "text"),
    [
        ("speaker=bop", UnknownNameError, "did you mean 'bob'"),
        ("voice=bob", UnknownNameError, "unknown group of spoken 'voice'.*speaker"),
        ("speaker=", OptionError, "GROUP=NAME"),
        ("=bob", OptionError, "GROUP=NAME"),
        ("speaker!=ann+bob+cyd", DataError, "no samples"),
    ],
)
def test_bad_selections_are_named(wanted, kind, text):
    with pytest.raises(kind, match=text):
        select(SPOKEN, wanted)


def test_groups_need_one_name_per_sample():
    with pytest.raises(DataError, match="2 samples but 1 of speaker"):
        Dataset("a", VOICES[:2], groups={"speaker": np.array(["ann"])})


def write(path, voices=VOICES, speakers=("ann", "ann", "bob", "bob", "cyd", "cyd")):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "audio": pa.array([{"bytes": v, "path": "a.wav"} for v in voices], kind),
        "label": pa.array([i % 2 for i in range(len(voices))]),
        "speaker": pa.array(speakers),
    }
    pq.write_table(pa.table(columns), path)
    return path


def test_a_table_of_recordings_is_read_described_and_split_by_speaker(tmp_path):
    path = write(tmp_path / "voices.parquet")
    data = load_dataset(path, split="speaker!=cyd")
    assert (len(data), set(data.groups["speaker"])) == (4, {"ann", "bob"})
    assert prepare(data, MFCC).shape == (4, 1, 49, 10)
    found = described(path)
    assert found is not None
    assert found.samples == "WAV recordings, 0.40 to 0.40 s at 8000 Hz"
    assert found.groups == {"speaker": {"ann": 2, "bob": 2, "cyd": 2}}


def test_recordings_without_a_speaker_are_refused(tmp_path):
    path = write(tmp_path / "voices.parquet", speakers=("ann", None, "bob", "bob", "cyd", "cyd"))
    with pytest.raises(DataError, match="1 rows have no speaker"):
        load_dataset(path)


def test_only_riff_wave_is_a_recording():
    assert is_wav(VOICES[0])
    assert not is_wav(b"RIFF\0\0\0\0WEBP")
    assert not is_wav(np.zeros(3))
