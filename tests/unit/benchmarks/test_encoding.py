from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.encoders import HUBERT_BASE, noise_of, random_model
from benchmarks.encoding import LAYER, compare, compare_codebooks, some_of, wave_of


def test_audio_of_any_rate_and_format_is_heard_and_four_codebooks_have_their_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wav_S = noise_of(np.random.default_rng(0), 3)
    soundfile.write(tmp_path / "a.flac", wav_S, 44_100)
    soundfile.write(tmp_path / "b.wav", wav_S[:8_000], 16_000)
    (tmp_path / "c.mp3").write_text("no audio")
    files = some_of(tmp_path, minutes=1)
    assert [path.name for path in files] == ["a.flac"]
    assert len(wave_of(files[0])) == pytest.approx(3 * 16_000 * 16_000 / 44_100, abs=1)
    compare_codebooks(random_model(HUBERT_BASE, LAYER, small=True), files, rounds=1)
    assert "four codebooks of 500 take" in capsys.readouterr().out


def test_ours_and_its_rivals_have_their_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, seconds in enumerate((2, 1, 3)):
        wav_S = noise_of(np.random.default_rng(number), seconds)
        soundfile.write(tmp_path / f"{number}.wav", wav_S, 16_000)
    model = random_model(HUBERT_BASE, LAYER, small=True)
    compare(model, sorted(tmp_path.iterdir()), rounds=1)
    said = capsys.readouterr().out
    assert "6 s of audio in 3 files" in said
    assert "the machine's cores idled, meanwhile: " in said
    assert "297 units" in said
    assert "ours                       0 other units, 0 of them no ties" in said
