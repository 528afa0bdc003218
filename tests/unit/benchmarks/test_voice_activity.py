from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.unit_quality import SENTENCES, VOICES, Spoken, load_spoken, speak
from benchmarks.voice_activity import FRAME_S, Known, as_frames, assemble, detect, noisy, score
from jobs.audio.alignments import Phone
from jobs.audio.voice_activity import Silero, Stretch
from orchestrator.spec.recipe import VoiceActivity

SECOND = np.ones(16_000, np.float32)


def test_scores_by_hand() -> None:
    known = Known(np.zeros(16_000 * 10, np.float32), [Stretch(2.0, 4.0), Stretch(6.0, 8.0)])
    found = score([Stretch(1.9, 3.0), Stretch(3.1, 4.3)], known)
    assert found.precision == pytest.approx(1.9 / 2.3)
    assert found.recall == pytest.approx(1.9 / 4)
    assert found.precision_collar == pytest.approx(2.2 / 2.3, abs=0.01)
    assert found.recall_collar == pytest.approx(2 / 4, abs=0.01)
    assert found.onset_ms == pytest.approx([-100])
    assert found.offset_ms == pytest.approx([300])


def test_a_recording_says_when_its_speech_is() -> None:
    times_s = (0.0, 0.2, 0.5, 0.6, 0.7, 1.0)
    phones = [Phone(*at) for at in zip(times_s, times_s[1:], ("", "a", "", "b", ""), strict=False)]
    known = assemble([Spoken(SECOND, phones)], 30.0, min_pause_s=0.3, seed=0)
    assert all(b - a == pytest.approx(0.5) for a, b in known.stretches)
    split = assemble([Spoken(SECOND, phones)], 30.0, min_pause_s=0.05, seed=0)
    assert len(split.stretches) == 2 * len(known.stretches)


@pytest.mark.skipif(not shutil.which("festival"), reason="needs festival")
@pytest.mark.parametrize("ratio_db", [40.0, 10.0])
def test_speech_of_known_times_is_found(tmp_path: Path, ratio_db: float) -> None:
    speak(tmp_path, VOICES, SENTENCES[:3])
    rule = VoiceActivity()
    known = assemble(load_spoken(tmp_path, None), 180.0, rule.min_pause_s, seed=0)
    found = score(detect(noisy(known, ratio_db, seed=0), Silero(), rule)[0], known)
    assert found.precision > 0.9
    assert found.recall > 0.98
    assert min(found.precision_collar, found.recall_collar) > 0.97
    assert np.abs(found.onset_ms).max() < 200
    assert np.abs(found.offset_ms).max() < 500
    count = round(len(known.wav_S) / 16_000 / FRAME_S)
    noise = noisy(known, ratio_db, seed=1) - known.wav_S
    assert not as_frames(detect(noise, Silero(), rule)[0], count).any()
