"""Log-mel spectra and mel-frequency cepstral coefficients (MFCC) of a recording.

The formulas are those of ``tf.signal``, which the keyword spotting task of MLPerf Tiny uses (Banbury et al. 2021), with
the windows of Zhang et al. 2017, "Hello Edge": 40 ms long, every 20 ms.

1. The recording is cut, or filled up with zeros at its end, to ``window + (frames - 1) * stride`` samples and divided
   by its largest absolute sample.
2. Frame ``k`` begins at ``k * stride``. It is multiplied by a periodic Hann window and filled up with zeros to the next
   power of two; the absolute values of its discrete Fourier transform are taken.
3. Forty triangles, equally wide on the mel scale ``1127 ln(1 + f / 700)`` from 20 Hz to 4 kHz (or to half the rate, if
   that is lower), weigh and add the bins. The bin at 0 Hz belongs to none.
4. ``log(energy + 1e-6)``: log-mel.
5. ``c_j = sqrt(2 / n) * sum_i logmel_i * cos(pi / n * j * (i + 1/2))``: MFCC, of which the first are kept.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from dlas.data.audio.wav import Recording

WINDOW_S = 0.040
STRIDE_S = 0.020
LOWEST_HZ, HIGHEST_HZ = 20.0, 4000.0
MEL_BANDS = 40
FLOOR = 1e-6


def features(waves: np.ndarray, kind: str, rate: int, count: int) -> np.ndarray:
    """Features of recordings of one length, as :func:`fitted` gives them.

    Args:
        waves: ``(N, samples) float64``.
        kind: ``mfcc`` or ``log-mel``.
        rate: Samples per second.
        count: Coefficients that are kept (``mfcc``, at most 40), or mel bands (``log-mel``).

    Returns:
        ``(N, frames, count) float64``.
    """
    window, stride = window_and_stride(rate)
    frames = np.lib.stride_tricks.sliding_window_view(waves, window, axis=1)[:, ::stride]
    length = 1 << (window - 1).bit_length()
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectra = np.abs(np.fft.rfft(frames * hann, length))
    bands = count if kind == "log-mel" else MEL_BANDS
    log_mel = np.log(spectra @ mel_weights(bands, spectra.shape[-1], rate) + FLOOR)
    return log_mel if kind == "log-mel" else log_mel @ _cosines(bands)[:, :count]


def fitted(recording: Recording, frames: int) -> np.ndarray:
    """The samples of exactly ``frames`` frames, with 1 as the largest absolute value; see step 1."""
    window, stride = window_and_stride(recording.rate)
    wanted = window + (frames - 1) * stride
    samples = recording.samples[:wanted]
    peak = np.abs(samples).max()
    samples = samples / peak if peak > 0 else samples
    return np.pad(samples, (0, wanted - len(samples)))


def window_and_stride(rate: int) -> tuple[int, int]:
    """Both in samples, at least one."""
    return max(1, round(WINDOW_S * rate)), max(1, round(STRIDE_S * rate))


def mel(hertz: np.ndarray | float) -> np.ndarray:
    """Frequency on the mel scale."""
    return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)


@cache
def mel_weights(bands: int, bins: int, rate: int) -> np.ndarray:
    """What each bin of a spectrum adds to each band: ``(bins, bands) float64``."""
    edges = np.linspace(mel(LOWEST_HZ), mel(min(HIGHEST_HZ, rate / 2)), bands + 2)
    at = mel(np.linspace(0, rate / 2, bins))[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    weights = np.maximum(0, np.minimum((at - low) / (centre - low), (high - at) / (high - centre)))
    weights[0] = 0
    weights.setflags(write=False)
    return weights


@cache
def _cosines(bands: int) -> np.ndarray:
    turns = np.outer(np.arange(bands) + 0.5, np.arange(bands)) / bands
    found = np.sqrt(2 / bands) * np.cos(np.pi * turns)
    found.setflags(write=False)
    return found
