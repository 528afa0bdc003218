"""Lengths and channels by headers alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from jobs.audio.headers import as_blocks, by_size, header
from jobs.audio.place import Place
from orchestrator.errors import BackendError
from tests import sounds

SECONDS = 4


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.opus"])
@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_the_header_says_how_long(tmp_path: Path, name: str, rate_hz: int) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, SECONDS * rate_hz)
    about = {"format": "OGG", "subtype": "OPUS"} if name.endswith("opus") else {}
    soundfile.write(tmp_path / name, wave, rate_hz, **about)
    found = header(Place.of(tmp_path / name))
    assert found.num_samples == pytest.approx(SECONDS * 16_000, rel=0.03)
    assert found.num_channels == 1
    soundfile.write(tmp_path / name, np.stack([wave, wave], axis=1), rate_hz, **about)
    assert header(Place.of(tmp_path / name)) == (found.num_samples, 2)


def test_what_has_no_header_is_judged_by_its_size(tmp_path: Path) -> None:
    for name, data in (("a.wav", b"no"), ("b.mp3", b""), ("c.ogg", b"OggS" + bytes(3_996))):
        (tmp_path / name).write_bytes(data)
        where = Place.of(tmp_path / name)
        assert header(where) == by_size(where) == (len(data) * 4, 1)
    (tmp_path / "d.g722").write_bytes(bytes(8_000))
    assert header(Place.of(tmp_path / "d.g722")) == (16_000, 1)


def test_what_cannot_be_had_now_is_no_length(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"gone\.wav"):
        list(as_blocks(tmp_path / "gone.wav"))


def test_a_header_is_one_block(tmp_path: Path) -> None:
    """Which is not given again when a decoder is asked for those after it."""
    soundfile.write(tmp_path / "a.wav", [0.0] * 800, 16_000)
    counts = [len(list(as_blocks(tmp_path / "a.wav", first=first))) for first in (0, 1)]
    assert counts == [1, 0]


@pytest.mark.parametrize("name", ["opus.webm", "aac.mka"])
def test_a_codec_that_nobody_knows_has_a_length_all_the_same(tmp_path: Path, name: str) -> None:
    data = sounds.whole(name).replace(b"A_OPUS", b"A_NONE").replace(b"A_AAC", b"A_XYZ")
    (tmp_path / name).write_bytes(data)
    assert header(Place.of(tmp_path / name)).num_samples == pytest.approx(2 * 16_000, rel=0.05)
