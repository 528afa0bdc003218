from __future__ import annotations

import numpy as np
import pytest

from jobs.audio.activity import FRAME_S, is_silent, levels_db, longest_run
from orchestrator.quantities import SAMPLE_RATE_HZ

SECONDS = 8
RNG = np.random.default_rng(0)
TIME_S = np.arange(SECONDS * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ


def amplitude(db: float) -> float:
    return float(10 ** (db / 20))


def noise(db: float) -> np.ndarray:
    return RNG.normal(0, amplitude(db), len(TIME_S))


def hum(db: float, hz: int = 50) -> np.ndarray:
    """Mains hum with harmonics, each half of the one before."""
    parts = [np.sin(2 * np.pi * hz * n * TIME_S) / 2**n for n in range(1, 8)]
    return amplitude(db) * np.sum(parts, axis=0)


def clicks(per_s: float) -> np.ndarray:
    wav_S = np.zeros(len(TIME_S))
    wav_S[RNG.integers(0, len(wav_S), int(per_s * SECONDS))] = 0.9
    return wav_S


def speech(peak_db: float) -> np.ndarray:
    """Syllables: a pulse train through two resonances, 0.2 s on, 0.15 s off, in two phrases."""
    pulses = (np.arange(len(TIME_S)) % 133 == 0).astype(float)
    kernel_s = np.arange(400) / SAMPLE_RATE_HZ
    voice = sum(
        np.convolve(pulses, np.exp(-80 * kernel_s) * np.sin(2 * np.pi * hz * kernel_s))
        for hz in (600, 1_700)
    )[: len(TIME_S)]
    wav_S = voice * (TIME_S % 0.35 < 0.2) * ((TIME_S > 2) & (TIME_S < 4) | (TIME_S > 6))
    return np.asarray(wav_S / np.abs(wav_S).max() * amplitude(peak_db))


SILENCES = {
    "digital silence": np.zeros(len(TIME_S)),
    "nothing at all": np.zeros(0),
    "an offset": np.full(len(TIME_S), 0.4),
    "an offset that drifts": 0.3 + 0.2 * TIME_S / SECONDS,
    "hum of 50 Hz": hum(-35),
    "hum of 60 Hz": hum(-35, 60),
    "hum and an offset": hum(-35) - 0.2,
    "one click": clicks(1 / SECONDS),
    "clicks": clicks(2) + noise(-80),
    "noise of a preamplifier": noise(-65),
    "the last bit": np.round(noise(-90) * 32_768) / 32_768,
}
SOUNDS = {
    "speech": speech(-6),
    "speech at -55 dB": speech(-55),
    "speech at -55 dB in 16 bits": np.round((speech(-55) + noise(-98)) * 32_768) / 32_768,
    "speech at -45 dB in noise": speech(-45) + noise(-70),
    "speech over hum and an offset": speech(-40) + hum(-35) + 0.2,
    "speech among clicks": speech(-40) + clicks(2),
    "speech in loud noise": speech(-10) + noise(-25),
    "loud noise": noise(-30),
    "a tone": 0.1 * np.sin(2 * np.pi * 500 * TIME_S),
}


@pytest.mark.parametrize("name", SILENCES)
def test_what_nobody_hears_is_silent_whatever_its_peak(name: str) -> None:
    assert is_silent(SILENCES[name].astype(np.float32))


@pytest.mark.parametrize("name", SOUNDS)
def test_what_is_heard_is_no_silence_however_faint(name: str) -> None:
    assert not is_silent(SOUNDS[name].astype(np.float32))


def test_one_word_in_a_long_silence_is_heard() -> None:
    wav_S = noise(-75)
    wav_S[: int(0.2 * SAMPLE_RATE_HZ)] += speech(-50)[-int(0.2 * SAMPLE_RATE_HZ) :]
    assert not is_silent(wav_S.astype(np.float32))


def test_a_wave_shorter_than_a_frame_is_judged_too() -> None:
    assert is_silent(np.zeros(100, np.float32))
    assert not is_silent(np.sin(np.arange(300)).astype(np.float32))


def test_levels_are_in_db_of_full_scale() -> None:
    tone = np.sin(2 * np.pi * 1_000 * TIME_S).astype(np.float32)
    levels_T = levels_db(tone)
    assert len(levels_T) == SECONDS / FRAME_S
    assert levels_T == pytest.approx(-3.01, abs=0.05)
    assert levels_db(0.001 * tone) == pytest.approx(-63.01, abs=0.05)


def test_longest_run() -> None:
    assert longest_run(np.array([True, True, False, True])) == 2
    assert longest_run(np.ones(3, bool)) == 3
    assert longest_run(np.zeros(3, bool)) == 0
