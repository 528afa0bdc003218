"""Tells silence by what happens in a wave, not by its highest sample.

In: ``wav_S``. Out: whether there is anything to hear. A click or an offset has a high peak and is
silence; speech recorded far too low has a low one and is none. Measured is the level between
``BAND_HZ`` in frames of 25 ms: mains hum and offsets are below that band, a click is in one frame.
Something is heard where the level stays above the background long enough for a sound of speech, or
where the background itself is loud: what is steady and loud may be anything, and is kept.

Shapes: S samples at 16 kHz, T frames.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.quantities import SAMPLE_RATE_HZ

Wave = npt.NDArray[np.float32]
Levels = npt.NDArray[np.float64]

FRAME_S = 0.025
BAND_HZ = (250, 4_000)
"""Where most of speech is, and little of mains hum."""
RISE_DB = 6.0
"""By how much a frame that is active exceeds the background."""
FAINTEST_DB = -80.0
"""Below this, in dB of full scale, nothing is active: 16 bits rounded are noise at -98 dB."""
STEADY_DB = -50.0
"""A background that is louder than this is kept, whatever it is."""
SHORTEST_S = 0.1
"""How long something is active at the least where there is speech; clicks are shorter."""
_BACKGROUND_PERCENTILE = 10
_NOTHING_DB = -200.0
_FRAME_SAMPLES = round(FRAME_S * SAMPLE_RATE_HZ)
_SHORTEST_FRAMES = round(SHORTEST_S / FRAME_S)


def is_silent(wav_S: Wave) -> bool:
    """Whether nothing can be heard in the wave: hum, an offset, faint noise and clicks are nothing.

    Some 6 ms for 30 s. A pure function of the samples.
    """
    levels_T = levels_db(wav_S)
    background = np.percentile(levels_T, _BACKGROUND_PERCENTILE)
    if background > STEADY_DB:
        return False
    is_active_T = levels_T > max(background + RISE_DB, FAINTEST_DB)
    return longest_run(is_active_T) < _SHORTEST_FRAMES


def levels_db(wav_S: Wave) -> Levels:
    """``L_T``: the level of each frame within ``BAND_HZ``, in dB of full scale (a square wave's).

    A frame that is not full counts only where there is no other.
    """
    num_frames = max(len(wav_S) // _FRAME_SAMPLES, 1)
    padded_S = np.zeros(num_frames * _FRAME_SAMPLES, np.float32)
    padded_S[: len(wav_S)] = wav_S[: len(padded_S)]
    window = np.hanning(_FRAME_SAMPLES + 1)[:-1].astype(np.float32)
    spectrum_TF = np.fft.rfft(padded_S.reshape(num_frames, _FRAME_SAMPLES) * window)
    low, high = (round(hz * FRAME_S) for hz in BAND_HZ)
    power_TF = np.square(np.abs(spectrum_TF[:, low:high]), dtype=np.float64)
    power_T = 2 * power_TF.sum(axis=1) / (_FRAME_SAMPLES * np.square(window).sum())
    with np.errstate(divide="ignore"):
        return np.asarray(np.maximum(10 * np.log10(power_T), _NOTHING_DB))


def longest_run(is_active_T: npt.NDArray[np.bool_]) -> int:
    """How many neighbours are true at most."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_active_T, [False]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))
