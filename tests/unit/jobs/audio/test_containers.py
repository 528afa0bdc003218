"""Files that are joined, cut short or written to a pipe; the parts go by what containers say."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jobs.audio.containers import CutShortError, Kind, parts_of
from jobs.audio.decode import UnreadableAudioError, decode
from orchestrator.quantities import SAMPLE_RATE_HZ
from tests import sounds

SECONDS = 2


NAMES = [
    "pcm.wav",
    "a.flac",
    "vorbis.ogg",
    "opus.ogg",
    "lame.mp3",
    "ffmpeg.mp3",
    "ffmpeg.flac",
    "flac.oga",
    "ffmpeg.opus",
    "aac.m4a",
    "opus.webm",
    "aac.mka",
    "adts.aac",
]
JOINED = NAMES[:9]


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """One file of each container, by suffix and who wrote it."""
    return {name: sounds.whole(name) for name in NAMES}


def seconds(folder: Path, name: str, data: bytes) -> float:
    (folder / name).write_bytes(data)
    return len(decode(folder / name)) / SAMPLE_RATE_HZ


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_file_is_read_to_its_end(whole, tmp_path: Path, name: str) -> None:
    # An encoder may fill its last frame; AAC also has a delay before the first.
    assert seconds(tmp_path, name, whole[name]) == pytest.approx(SECONDS, abs=0.13)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_what_is_cut_short_is_never_taken_for_whole(
    whole, tmp_path: Path, name: str, share: float
) -> None:
    with pytest.raises(UnreadableAudioError) as error:
        seconds(tmp_path, name, whole[name][: int(share * len(whole[name]))])
    assert error.value.reason


@pytest.mark.parametrize("name", JOINED)
def test_files_joined_end_to_end_are_read_whole(whole, tmp_path: Path, name: str) -> None:
    once = seconds(tmp_path, name, whole[name])
    assert seconds(tmp_path, name, whole[name] * 3) == pytest.approx(3 * once, abs=1e-9)


@pytest.mark.parametrize("name", JOINED)
def test_a_file_joined_with_half_of_one_is_cut_short(whole, tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableAudioError):
        seconds(tmp_path, name, whole[name] + whole[name][: len(whole[name]) // 2])


@pytest.mark.parametrize("name", NAMES[:-1])
def test_bytes_after_the_audio_are_no_audio(whole, tmp_path: Path, name: str) -> None:
    trailing = np.random.default_rng(1).bytes(3_000)
    once = seconds(tmp_path, name, whole[name])
    assert seconds(tmp_path, name, whole[name] + trailing) == once


@pytest.mark.parametrize("tag", ["before", "after", "between"])
def test_tags_stand_anywhere_in_an_mp3(whole, tmp_path: Path, tag: str) -> None:
    id3 = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)
    id3v1 = b"TAG" + b"title".ljust(125, b"\0")
    mp3 = whole["lame.mp3"]
    once = seconds(tmp_path, "a.mp3", mp3)
    data = {"before": id3 + mp3, "after": mp3 + id3v1, "between": mp3 + id3v1 + id3 + mp3}[tag]
    assert seconds(tmp_path, "a.mp3", data) == (2 if tag == "between" else 1) * once


@pytest.mark.parametrize("size", [0, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
def test_a_wav_that_went_through_a_pipe_does_not_know_its_size(whole, tmp_path, size: int) -> None:
    wav = bytearray(whole["pcm.wav"])
    wav[4:8] = wav[40:44] = struct.pack("<I", size)
    (part,) = parts_of(io.BytesIO(wav))
    assert not part.is_length_known
    assert seconds(tmp_path, "a.wav", bytes(wav)) == SECONDS


def test_a_flac_that_went_through_a_pipe_does_not_know_its_length(whole, tmp_path: Path) -> None:
    flac = bytearray(whole["a.flac"])
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    assert seconds(tmp_path, "a.flac", bytes(flac)) == SECONDS


def test_rf64_is_a_wav_with_a_large_size(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sounds.speech(), SAMPLE_RATE_HZ, format="RF64")
    data = (tmp_path / "a.wav").read_bytes()
    assert data.startswith(b"RF64")
    assert seconds(tmp_path, "a.wav", data) == SECONDS
    with pytest.raises(UnreadableAudioError, match="cut short"):
        seconds(tmp_path, "a.wav", data[:-4_000])


def test_a_missing_page_is_a_hole(whole, tmp_path: Path) -> None:
    ogg = whole["vorbis.ogg"]
    third, fourth = [i for i in range(len(ogg)) if ogg.startswith(b"OggS", i)][2:4]
    with pytest.raises(UnreadableAudioError, match="a page is missing before byte"):
        seconds(tmp_path, "a.ogg", ogg[:third] + ogg[fourth:])


def test_a_page_that_is_not_what_was_written_is_a_hole(whole, tmp_path: Path) -> None:
    ogg = bytearray(whole["vorbis.ogg"])
    ogg[len(ogg) // 2] ^= 1
    with pytest.raises(UnreadableAudioError, match="is not what was written"):
        seconds(tmp_path, "a.ogg", bytes(ogg))


def test_parts_of_other_rates_are_no_recording(whole, tmp_path: Path) -> None:
    file = io.BytesIO()
    soundfile.write(file, sounds.speech(), 8_000, format="WAV")
    with pytest.raises(UnreadableAudioError, match=r"its parts have 16,000 and 8,000 Hz"):
        seconds(tmp_path, "a.wav", whole["pcm.wav"] + file.getvalue())


def test_the_kind_goes_by_content(whole, tmp_path: Path) -> None:
    assert seconds(tmp_path, "a.wav", whole["ffmpeg.opus"]) == SECONDS
    assert parts_of(io.BytesIO(whole["a.flac"]))[0].kind == Kind.FLAC


@pytest.mark.parametrize("name", ["pcm.wav", "a.flac", "vorbis.ogg", "lame.mp3"])
def test_headers_alone_are_cut_short(whole, name: str) -> None:
    with pytest.raises(CutShortError):
        parts_of(io.BytesIO(whole[name][:30]))


def test_frames_that_a_tag_counts_and_that_are_not_there_are_missed(whole, tmp_path: Path) -> None:
    for name in ("lame.mp3", "ffmpeg.mp3"):
        mp3 = whole[name]
        middle = len(mp3) // 2
        with pytest.raises(UnreadableAudioError, match="of its frames are not there"):
            seconds(tmp_path, "a.mp3", mp3[:middle] + bytes(2_000) + mp3[middle + 2_000 :])


def test_a_wma_cut_short_by_some_bytes_is_not_whole(tmp_path: Path) -> None:
    wma = sounds.by_ffmpeg("asf", "wmav2", 16_000, 24_000)
    assert seconds(tmp_path, "a.wma", wma) == pytest.approx(SECONDS, abs=0.13)
    with pytest.raises(UnreadableAudioError, match="cut short"):
        seconds(tmp_path, "a.wma", wma[:-6])


@pytest.mark.parametrize("name", [*NAMES, "ds64.wav", "large.m4a", "wma.asf"])
def test_whatever_a_file_ends_with_is_understood_or_an_error_of_the_file(whole, name: str) -> None:
    heads = {
        "ds64.wav": b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<IQQQI", 28, 0, 9, 9, 0),
        "large.m4a": struct.pack(">I4s8xI4sQ", 16, b"ftyp", 1, b"mdat", 99),
        "wma.asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + struct.pack("<Q", 99),
    }
    data = {**whole, **heads}[name]
    ends = [data[:size] for size in range(min(len(data), 300))]
    for end in ends + [data + bytes([byte]) * n for byte in (0, 10, 255) for n in (1, 2, 3, 9)]:
        with suppress(ValueError):
            assert parts_of(io.BytesIO(end))


PLAIN = ["a.aiff", "a.au", "a.caf", "a.w64", "a.sph", "little.aifc", "other order.wav", "mp3.wav"]


@pytest.mark.parametrize("name", [*PLAIN, "broadcast.wav", "alac.caf", "ulaw.sph"])
def test_samples_that_a_header_counts_are_all_there(tmp_path: Path, name: str) -> None:
    data = sounds.whole(name)
    assert seconds(tmp_path, "a.wav", data) == pytest.approx(SECONDS, abs=0.13)
    assert seconds(tmp_path, "a.wav", data + b"junk" * 99) == pytest.approx(SECONDS, abs=0.13)
    for share in (0.02, 0.5, 0.999):
        with pytest.raises(UnreadableAudioError):
            seconds(tmp_path, "a.wav", data[: int(share * len(data))])


W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")


@pytest.mark.parametrize(
    ("name", "offset", "unknown"),
    [
        ("a.aiff", b"SSND", struct.pack(">I", 0x7F00_0008)),
        ("a.au", b"\0\0\0\x18", b"\xff" * 4),
        ("a.caf", b"data", b"\xff" * 8),
        ("a.w64", W64_DATA, bytes(8)),
        ("a.w64", W64_DATA, b"\xff" * 8),
    ],
)
def test_sizes_that_nobody_knew_are_none(name: str, offset: bytes, unknown: bytes) -> None:
    data = bytearray(sounds.whole(name))
    at = data.index(offset) + len(offset)
    data[at : at + len(unknown)] = unknown
    assert parts_of(io.BytesIO(data[:-1000]))


def test_shortened_sphere_is_told_by_its_coding(tmp_path: Path) -> None:
    sphere = sounds.whole("a.sph").replace(
        b"sample_coding -s3 pcm\n", b"sample_coding -s26 pcm,embedded-shorten-v2.00\n"
    )
    with pytest.raises(UnreadableAudioError, match=r"coded as pcm,embedded-shorten-v2\.00"):
        seconds(tmp_path, "a.sph", sphere)


def ape_tag(items: bytes) -> bytes:
    """With a header and a footer."""
    ends = [
        struct.pack("<8sIIII8x", b"APETAGEX", 2000, len(items) + 32, 1, f)
        for f in (0xA0 << 24, 0x80 << 24)
    ]
    return ends[0] + items + ends[1]


FRAMES_IN_A_COVER = b"\xff\xfb\x90\x00" * 9_000


@pytest.mark.parametrize("items", [bytes(100), FRAMES_IN_A_COVER, bytes(2_000_000)])
def test_ape_tags_are_no_frames(whole, tmp_path: Path, items: bytes) -> None:
    mp3, tag = whole["lame.mp3"], ape_tag(items)
    once = seconds(tmp_path, "a.mp3", mp3)
    for data, times in ((tag + mp3, 1), (mp3 + tag, 1), (mp3 + tag + mp3 + tag, 2)):
        assert seconds(tmp_path, "a.mp3", data) == times * once


@pytest.mark.parametrize("begin", [bytes(2_000), bytes(100_000), b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_mp3_may_begin_with_something_else(whole, tmp_path: Path, begin: bytes) -> None:
    mp3 = whole["lame.mp3"]
    assert seconds(tmp_path, "a.mp3", begin + mp3) == seconds(tmp_path, "b.mp3", mp3)
    for end in (len(mp3) // 2, len(mp3) - 1):
        with pytest.raises(UnreadableAudioError, match=r"cut short|are not there"):
            seconds(tmp_path, "a.mp3", begin + mp3[:end])


@pytest.mark.parametrize("end", [b"\0", b"\n", b"\xff\xff"])
def test_some_bytes_after_the_last_frame_are_nothing(whole, tmp_path: Path, end: bytes) -> None:
    data = whole["lame.mp3"]
    assert seconds(tmp_path, "a.mp3", data + end) == seconds(tmp_path, "b.mp3", data)
