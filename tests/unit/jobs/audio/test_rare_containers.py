"""Rare containers that are cut short are no shorter recordings."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest

from jobs.audio.containers import CutShortError
from jobs.audio.decode import UnreadableAudioError, decode
from jobs.audio.rare_containers import require_whole
from tests.sounds import by_ffmpeg, by_sndfile

WHOLE: dict[str, Callable[[], bytes]] = {
    "voc": partial(by_sndfile, "voc"),
    "avr": partial(by_sndfile, "avr"),
    "svx": partial(by_sndfile, "svx"),
    "8svx": partial(by_sndfile, "svx", subtype="PCM_S8"),
    "voc of ffmpeg": partial(by_ffmpeg, "voc", "pcm_u8"),
    "sox": partial(by_ffmpeg, "sox", "pcm_s32le"),
    "adx": partial(by_ffmpeg, "adx", "adpcm_adx"),
    "tta": partial(by_ffmpeg, "tta", "tta"),
    "wavpack": partial(by_ffmpeg, "wv", "wavpack"),
    "ac3": partial(by_ffmpeg, "ac3", "ac3", 48_000),
    "ac3 at 44.1 kHz": partial(by_ffmpeg, "ac3", "ac3", 44_100),
    "ac3 at 32 kHz": partial(by_ffmpeg, "ac3", "ac3", 32_000),
    "eac3": partial(by_ffmpeg, "eac3", "eac3", 48_000),
    "real media": partial(by_ffmpeg, "rm", "real_144", 8_000),
    "flv": partial(by_ffmpeg, "flv", "libmp3lame", 44_100),
    "avi": partial(by_ffmpeg, "avi", "libmp3lame"),
    "transport stream": partial(by_ffmpeg, "mpegts", "mp2", 48_000),
}


@cache
def whole(name: str) -> bytes:
    return WHOLE[name]()


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.wav").write_bytes(whole(name))
    assert len(decode(tmp_path / "a.wav")) / 16_000 == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("share", [0.03, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_is_cut_is_not(tmp_path: Path, name: str, share: float) -> None:
    data = whole(name)
    (tmp_path / "a.wav").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnreadableAudioError, match="cut short"):
        decode(tmp_path / "a.wav")


def block_of_wavpack(first: int, num: int, total: int) -> bytes:
    return struct.pack("<4sIHBB3I16x", b"wvpk", 32, 0x407, 0, 0, total, first, num)


APE = struct.pack("<4sHH7I", b"MAC ", 3_990, 0, 52, 24, 8, 0, 1_000, 0, 0)
DSF = struct.pack("<4sQQQ", b"DSD ", 28, 2_000, 0)


@pytest.mark.parametrize(
    ("head", "num_bytes"),
    [
        (block_of_wavpack(0, 10, 20) + block_of_wavpack(10, 10, 20), 80),
        (APE, 1_084),
        (DSF, 2_000),
    ],
)
def test_the_end_is_where_the_header_says(head: bytes, num_bytes: int) -> None:
    require_whole(io.BytesIO(head.ljust(num_bytes, b"\0")))
    for short in (num_bytes - 1, len(head) // 2):
        with pytest.raises(CutShortError):
            require_whole(io.BytesIO(head.ljust(num_bytes, b"\0")[:short]))


def test_what_says_no_end_may_end_anywhere() -> None:
    for data in (b"", b"words", by_sndfile("ircam")[:40_000], by_sndfile("pvf")[:40_000]):
        require_whole(io.BytesIO(data))


def test_a_dump_of_samples_is_taken_for_nothing_else(tmp_path: Path) -> None:
    data = by_sndfile("sds")
    for size in (len(data), len(data) // 30):
        (tmp_path / "a.wav").write_bytes(data[:size])
        with pytest.raises(UnreadableAudioError, match="a dump of samples for MIDI"):
            decode(tmp_path / "a.wav")
