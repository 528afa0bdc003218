from __future__ import annotations

import numpy as np
import pytest

from jobs.audio.channels import Channels, mono, widened

RNG = np.random.default_rng(0)
VOICE_S = RNG.normal(0, 0.1, 16_000).astype(np.float32)
OTHER_S = RNG.normal(0, 0.1, 16_000).astype(np.float32)
HISS_S = RNG.normal(0, 0.001, 16_000).astype(np.float32)


@pytest.mark.parametrize(
    ("channels_CS", "cancelled"),
    [
        ([VOICE_S], False),
        ([VOICE_S, VOICE_S], False),
        ([VOICE_S, OTHER_S], False),
        ([VOICE_S, 0 * VOICE_S], False),
        ([VOICE_S] + [0 * VOICE_S] * 5, False),
        ([0 * VOICE_S, 0 * VOICE_S], False),
        ([VOICE_S, OTHER_S - 0.5 * VOICE_S], False),
        ([VOICE_S, -VOICE_S], True),
        ([0.8 * VOICE_S, -VOICE_S], True),
        ([VOICE_S + HISS_S, HISS_S - VOICE_S], True),
        ([VOICE_S + 0.3, 0.3 - VOICE_S], True),
        ([VOICE_S, -VOICE_S, OTHER_S, -OTHER_S], True),
    ],
)
def test_a_mix_is_the_mean_unless_it_cancels_itself(
    channels_CS: list[np.ndarray], cancelled: bool
) -> None:
    wav_CS = np.stack(channels_CS).astype(np.float32)
    made = mono(wav_CS, "mix")
    assert made.cancelled == cancelled
    expected = mono(wav_CS, "loudest").wav_S if cancelled else wav_CS.mean(axis=0)
    assert made.wav_S.tobytes() == expected.tobytes()
    assert made.wav_S.dtype == np.float32


@pytest.mark.parametrize(
    ("channels", "number"), [("first", 0), ("loudest", 1), (0, 0), (1, 1), (2, 2)]
)
def test_one_channel_is_taken_as_it_is(channels: Channels | int, number: int) -> None:
    wav_CS = np.stack([VOICE_S, 2 * OTHER_S, HISS_S + 0.9])
    made = mono(wav_CS, channels)
    assert not made.cancelled
    assert made.wav_S.tobytes() == wav_CS[number].tobytes()


def test_a_channel_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="has no channel 1, only 1"):
        mono(VOICE_S[None], 1)


def test_a_widened_signal_has_the_same_mix() -> None:
    wide_CS = widened(np.stack([VOICE_S, OTHER_S]), 6)
    assert wide_CS.shape == (6, len(VOICE_S))
    assert np.allclose(wide_CS.mean(axis=0), (VOICE_S + OTHER_S) / 2, atol=1e-7)
    assert widened(wide_CS, 2) is wide_CS
