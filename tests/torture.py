"""A folder of everything that is known to break readers of speech, and what becomes of each file.

``CASES`` is the table: the file, how it is made, and its fate. Nothing is kept in the repository;
all of it is made of one sweep of two seconds. Links, sockets and what lies beside them are made by
`make_tree`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.sounds import WHOLE, by_sndfile, speech, video, whole

RATE_HZ = 16_000


class Fate(StrEnum):
    """What becomes of a file."""

    USED = "used"
    LEFT_OUT = "left out"
    QUARANTINED = "quarantined"
    NOT_LISTED = "not listed"


class Case(NamedTuple):
    """A file."""

    path: str
    """Below the folder of its language; bytes that are no UTF-8 as the interpreter has them."""
    make: Callable[[], bytes] | None
    """Its bytes; None for what `make_tree` knows how to make."""
    fate: Fate
    seconds: float = 0.0
    """That are used."""
    within_s: float = 0.0
    """How much more or less an encoder's own padding may make of it."""
    reason: str = ""
    """What the reason must match."""


CODEC_S = 0.13
"""What encoders of this sound may put before or after it."""


def used(path: str, make: Callable[[], bytes] | None, seconds: float, within_s: float = 0) -> Case:
    """A file that is used."""
    return Case(path, make, Fate.USED, seconds, within_s)


def left_out(path: str, make: Callable[[], bytes] | None, reason: str) -> Case:
    """A file that is fine, and of no use."""
    return Case(path, make, Fate.LEFT_OUT, reason=reason)


def quarantined(path: str, make: Callable[[], bytes] | None, reason: str) -> Case:
    """A file that cannot be read."""
    return Case(path, make, Fate.QUARANTINED, reason=reason)


def not_listed(path: str, make: Callable[[], bytes] | None) -> Case:
    """A file that is none of the corpus."""
    return Case(path, make, Fate.NOT_LISTED)


@cache
def wav() -> bytes:
    """The plain file of which others are made; 44 bytes of header."""
    return by_sndfile("wav", subtype="PCM_16")


def pcm(wave: np.ndarray, rate_hz: int = RATE_HZ, subtype: str = "PCM_16") -> bytes:
    """A WAV of a wave, S or SxC."""
    return by_sndfile("wav", wave, rate_hz, subtype=subtype)


def at_rate(rate_hz: int) -> bytes:
    """Two seconds at another rate."""
    return pcm(speech(2, rate_hz), rate_hz)


def with_sizes(riff: int | None, data: int | None) -> bytes:
    """A WAV whose header says other sizes."""
    changed = bytearray(wav())
    if riff is not None:
        struct.pack_into("<I", changed, 4, riff)
    if data is not None:
        struct.pack_into("<I", changed, 40, data)
    return bytes(changed)


def with_rate(rate_hz: int) -> bytes:
    """A WAV whose header says another rate than was recorded."""
    changed = bytearray(wav())
    struct.pack_into("<I", changed, 24, rate_hz)
    return bytes(changed)


def unknown_length_flac(share: float = 1.0) -> bytes:
    """A FLAC that was written to a pipe, or the beginning of it."""
    changed = bytearray(whole("a.flac"))
    changed[21] &= 0xF0
    changed[22:26] = bytes(4)
    return bytes(changed[: int(share * len(changed))])


def flipped(name: str) -> bytes:
    """A file with a bit in its middle that is another."""
    changed = bytearray(whole(name))
    changed[len(changed) // 2] ^= 0x10
    return bytes(changed)


def zeroed(name: str) -> bytes:
    """A file with a hole of zeros in its middle, as a lost block of a disk leaves it."""
    changed = bytearray(whole(name))
    middle = len(changed) // 2
    changed[middle : middle + 4096] = bytes(len(changed[middle : middle + 4096]))
    return bytes(changed)


def sample_of(value: float) -> bytes:
    """A float WAV with one sample that is no sound."""
    wave = speech()
    wave[777] = value
    return pcm(wave, subtype="FLOAT")


def clicks() -> bytes:
    """Five seconds of nothing but some samples."""
    wave = np.zeros(5 * RATE_HZ, np.float32)
    wave[:: RATE_HZ // 2] = 0.9
    return pcm(wave)


def ends_before_last_page() -> bytes:
    """An Ogg cut exactly between two pages."""
    data = whole("vorbis.ogg")
    return data[: data.rindex(b"OggS")]


def without_a_page() -> bytes:
    """An Ogg from whose middle a page is gone."""
    data = whole("vorbis.ogg")
    pages = [i for i in range(len(data)) if data.startswith(b"OggS", i)]
    return data[: pages[2]] + data[pages[3] :]


def seeded(num_bytes: int, seed: int = 1) -> bytes:
    """Bytes without meaning."""
    return np.random.default_rng(seed).bytes(num_bytes)


ID3V1 = b"TAG" + b"title".ljust(125, b"\0")
ID3V2 = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)
LARGE_TAG = b"ID3\x03\x00\x00\x01\x1c\x36\x00" + b"\xff\xfb\x90\x00" * 640_704
"""2.5 MB of a cover that looks like frames."""
ID3V2_BEYOND = b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f"


def _formats() -> Iterator[Case]:
    subtypes = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
    for subtype in subtypes:
        yield used(f"formats/{subtype}.wav", lambda s=subtype: pcm(speech(), subtype=s), 2)
    for subtype in ("IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32"):
        yield used(f"formats/{subtype}.wav", lambda s=subtype: pcm(speech(), subtype=s), 2, CODEC_S)
    for form in ("wavex", "w64", "aiff", "au", "caf", "nist", "voc", "ircam", "pvf", "avr"):
        yield used(f"formats/{form} by another name.wav", lambda f=form: by_sndfile(f), 2)
    for name in WHOLE:
        yield used(f"formats/{name}", lambda n=name: whole(n), 2, CODEC_S)
    yield used("formats/video with sound.mp4", lambda: video(sound=True), 2, CODEC_S)
    yield quarantined("formats/video alone.mp4", lambda: video(sound=False), "no audio stream")
    yield used("formats/opus called wav.wav", lambda: whole("opus.ogg"), 2, CODEC_S)
    yield used("formats/SHOUTING.WAV", wav, 2)


def _rates() -> Iterator[Case]:
    for rate_hz in (1_000, 7_350, 15_999, 352_800, 384_000):
        yield used(f"rates/{rate_hz}.wav", lambda r=rate_hz: at_rate(r), 2, 1 / 50)
    for count in (3, 16, 32):
        channels = f"rates/{count} channels.wav"
        yield used(channels, lambda c=count: pcm(np.stack([speech()] * c, 1)), 2)
    yield left_out("rates/7.wav", lambda: at_rate(7), "silent")
    for rate_hz in (4_000, 8_000, 11_025, 44_100, 44_101, 48_000, 96_000, 192_000):
        yield used(f"rates/{rate_hz}.wav", lambda r=rate_hz: at_rate(r), 2, 1 / 50)
    yield quarantined("rates/0.wav", lambda: with_rate(0), ".")
    yield quarantined("rates/4294967295.wav", lambda: with_rate(0xFFFF_FFFF), ".")
    yield quarantined("rates/2147483647.wav", lambda: with_rate(0x7FFF_FFFF), ".")
    yield left_out("rates/655350.wav", lambda: with_rate(655_350), "shorter")
    yield used("rates/six channels.wav", lambda: pcm(np.stack([speech()] * 6, 1)), 2)
    yield used("rates/opposite phase.wav", lambda: pcm(np.stack([speech(), -speech()], 1)), 2)


def _cut_short() -> Iterator[Case]:
    for name in WHOLE:
        for share in (0.03, 0.5, 0.999):
            yield quarantined(
                f"cut/{share} {name}",
                lambda n=name, s=share: whole(n)[: int(s * len(whole(n)))],
                ".",
            )
        cut_off = f"cut/half {name} by another name.wav"
        yield quarantined(cut_off, lambda n=name: whole(n)[: len(whole(n)) // 2], ".")
    yield quarantined("cut/none.wav", lambda: b"", "holds no bytes")
    yield quarantined("cut/one byte.wav", lambda: b"R", ".")
    yield quarantined("cut/header.wav", lambda: wav()[:43], "ends before its samples")
    yield quarantined("cut/header alone.wav", lambda: wav()[:44], ".")
    yield quarantined("cut/between pages.ogg", ends_before_last_page, "cut short")
    yield quarantined("cut/without a page.ogg", without_a_page, "a page is missing")
    yield quarantined("cut/pipe.flac", lambda: unknown_length_flac(0.5), ".")


def _damaged() -> Iterator[Case]:
    yield used("damaged/bit.wav", lambda: flipped("pcm.wav"), 2)
    for name in ("a.flac", "vorbis.ogg", "opus.ogg", "flac.oga", "ffmpeg.opus"):
        yield quarantined(f"damaged/bit {name}", lambda n=name: flipped(n), ".")
    for name in ("a.flac", "vorbis.ogg", "lame.mp3", "aac.m4a", "adts.aac", "aac.mka"):
        yield quarantined(f"damaged/hole {name}", lambda n=name: zeroed(n), ".")
    yield quarantined("damaged/nan.wav", lambda: sample_of(np.nan), "no numbers")
    yield quarantined("damaged/inf.wav", lambda: sample_of(np.inf), "no numbers")
    text = b"This is a text about sound, and no sound.\n" * 40
    for suffix in ("mp3", "wav", "flac", "ogg", "m4a", "webm", "amr"):
        yield quarantined(f"damaged/text.{suffix}", lambda: text, ".")
        yield quarantined(f"damaged/noise.{suffix}", lambda: seeded(20_000), ".")
    yield quarantined("damaged/zeros.mp3", lambda: bytes(20_000), ".")
    for suffix in ("mp3", "m4a"):
        playlist = b"#EXTM3U\n#EXTINF:2,\nfine.wav\n#EXT-X-ENDLIST\n"
        yield quarantined(f"damaged/playlist.{suffix}", lambda p=playlist: p, ".")
    concat = b"ffconcat version 1.0\nfile fine.wav\n"
    yield quarantined("damaged/concat.mp3", lambda: concat, ".")


def _sizes() -> Iterator[Case]:
    for size in (0, 0x7FFF_FFFF, 0xFFFF_FFFF):
        yield used(f"sizes/{size}.wav", lambda s=size: with_sizes(s, s), 2)
    yield used("sizes/riff 0.wav", lambda: with_sizes(0, None), 2)
    yield used("sizes/riff too large.wav", lambda: with_sizes(10**6, None), 2)
    yield used("sizes/data 0.wav", lambda: with_sizes(None, 0), 2)
    yield quarantined("sizes/beyond.wav", lambda: with_sizes(None, 10**6), "cut short")
    yield used("sizes/pipe.flac", unknown_length_flac, 2)


def _joined() -> Iterator[Case]:
    for name in ("pcm.wav", "a.flac", "vorbis.ogg", "opus.ogg", "ffmpeg.opus", "lame.mp3"):
        yield used(f"joined/twice {name}", lambda n=name: whole(n) * 2, 4, 2 * CODEC_S)
    for name in ("pcm.wav", "a.flac", "vorbis.ogg", "ffmpeg.opus", "lame.mp3", "aac.m4a"):
        yield used(
            f"joined/garbage after {name}", lambda n=name: whole(n) + seeded(3_000), 2, CODEC_S
        )
    yield used("joined/tag before.mp3", lambda: ID3V2 + whole("lame.mp3"), 2, CODEC_S)
    yield used("joined/tag after.mp3", lambda: whole("lame.mp3") + ID3V1, 2, CODEC_S)
    yield used(
        "joined/tags between.mp3",
        lambda: whole("lame.mp3") + ID3V1 + ID3V2 + whole("lame.mp3"),
        4,
        2 * CODEC_S,
    )
    yield used(
        "joined/garbage between.mp3",
        lambda: whole("lame.mp3") + seeded(999) + whole("lame.mp3"),
        4,
        2 * CODEC_S,
    )
    for name, begin in (("zeros", bytes(100_000)), ("page", b"HTTP/1.1 200 OK\r\n\r\n")):
        yield used(f"joined/{name} before.mp3", lambda b=begin: b + whole("lame.mp3"), 2, CODEC_S)
        yield quarantined(
            f"joined/{name} before half.mp3",
            lambda b=begin: b + whole("lame.mp3")[:5_000],
            "cut short",
        )
    yield used("joined/large tag before.mp3", lambda: LARGE_TAG + whole("lame.mp3"), 2, CODEC_S)
    yield used("joined/chain of opus.opus", lambda: whole("ffmpeg.opus") * 3, 6, 3 * CODEC_S)
    yield quarantined("joined/garbage before.mp3", lambda: seeded(999) + whole("lame.mp3"), ".")
    yield used("joined/tag before.flac", lambda: ID3V2 + whole("a.flac"), 2)
    yield quarantined("joined/tag beyond.mp3", lambda: ID3V2_BEYOND + whole("lame.mp3"), ".")
    yield quarantined(
        "joined/other rate.wav",
        lambda: wav() + at_rate(8_000),
        "its parts have 16,000 and 8,000 Hz",
    )


def _contents() -> Iterator[Case]:
    yield left_out("contents/silence.wav", lambda: pcm(np.zeros(5 * RATE_HZ)), "silent")
    yield left_out("contents/offset.wav", lambda: pcm(np.full(5 * RATE_HZ, 0.4)), "silent")
    yield left_out("contents/clicks.wav", clicks, "silent")
    yield left_out(
        "contents/below any level.wav", lambda: pcm(speech() * 1e-30, subtype="FLOAT"), "silent"
    )
    yield left_out("contents/one sample.wav", lambda: pcm(speech()[:1]), "shorter")
    yield left_out("contents/a tenth.flac", lambda: by_sndfile("flac", speech(0.1)), "shorter")
    yield quarantined("contents/no sample.wav", lambda: pcm(speech()[:0]), "no samples")
    yield quarantined("contents/no sample.flac", lambda: by_sndfile("flac", speech()[:0]), ".")
    yield used("contents/clipped.wav", lambda: pcm(np.clip(speech() * 100, -1, 1)), 2)
    yield used("contents/windows.flac", lambda: by_sndfile("flac", speech(61.5)), 61.5)
    yield used("contents/loud.wav", lambda: pcm(speech() * 2.0**31, subtype="FLOAT"), 2)
    for beyond in (1e12, 1e30, 3e38):
        loud = speech() * np.float32(beyond)
        name = f"contents/{beyond} loud.wav"
        yield quarantined(name, lambda w=loud: pcm(w, subtype="FLOAT"), "beyond any sound")


def _names() -> Iterator[Case]:
    names = ["a\nb", "a\tb", '"quoted"', "it's", "ünï", "\U0001f50a", "-rf", "a@b", "a#b", "a%20b"]
    names += [" ", "a\\b", "*?[x]", "$(x)", "a:b", "a,b", "x" * 251, "e\u0301", "\u00e9", "..a"[2:]]
    for name in dict.fromkeys(names):
        yield used(f"names/{name}.wav", wav, 2)
    yield used(os.fsdecode(b"names/caf\xe9.wav"), wav, 2)
    yield used("names/caf\\xe9.wav", wav, 2)
    for name in ("same.wav", "same.flac", "same.wav.flac", "Same.wav", "same.WAV"):
        yield used(f"names/{name}", lambda n=name: by_sndfile(n[-4:].strip("."), speech()), 2)
    yield used("names/long.wav", lambda: pcm(speech(20)), 20)
    yield used("names/long@0.wav", wav, 2)
    yield used("names/long@128000.wav", wav, 2)
    yield used("names/folder.wav/inside.wav", wav, 2)
    yield not_listed("names/notes.txt", lambda: b"words")
    yield not_listed("names/.hidden.wav", wav)
    yield not_listed("names/.ipynb_checkpoints/good.wav", wav)
    yield not_listed("names/no suffix", wav)


def _links() -> Iterator[Case]:
    yield quarantined("links/dead.wav", None, "a dead link")
    yield quarantined("links/loop.wav", None, "a link to itself")
    yield quarantined("links/pipe.wav", None, "no regular file")
    yield quarantined("links/socket.wav", None, "no regular file")
    yield not_listed("links/README.txt", None)
    yield used("links/alive.wav", None, 2)
    yield used("links/folder/fine.wav", None, 2)
    yield left_out("links/sparse.wav", None, "silent")


CASES = tuple(
    case
    for group in (
        *(_formats, _rates, _cut_short, _damaged, _sizes),
        *(_joined, _contents, _names, _links),
    )
    for case in group()
)
SPARSE_S = 20
"""Of 384 kHz and eight channels of 64 bits: half a GB that takes no place on a disk."""


def make_tree(root: Path) -> None:
    """All files, below the folder of their language."""
    folder = root / "en"
    for case in CASES:
        if case.make:
            path = folder / case.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(case.make())
    (folder / "damaged" / "fine.wav").write_bytes(wav())
    _make_links(folder)


def _make_links(folder: Path) -> None:
    links = folder / "links"
    links.mkdir()
    (links / "dead.wav").symlink_to("/nowhere/x.wav")
    (links / "README.txt").symlink_to("/nowhere/README")
    (links / "loop.wav").symlink_to("loop.wav")
    (links / "alive.wav").symlink_to(folder / "damaged" / "fine.wav")
    os.mkfifo(links / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(links / "socket.wav"))
    (root := folder.parent / ".elsewhere").mkdir()
    (root / "fine.wav").write_bytes(wav())
    (links / "folder").symlink_to(root)
    (links / "within").symlink_to(links)
    make_sparse(links / "sparse.wav")


def make_sparse(path: Path, seconds: int = SPARSE_S) -> None:
    """A WAV of zeros that are not on the disk."""
    header = bytearray(pcm(np.zeros((1, 8)), 384_000, "DOUBLE"))
    size = seconds * 384_000 * 8 * 8
    data = header.index(b"data")
    struct.pack_into("<I", header, 4, data + size)
    struct.pack_into("<I", header, data + 4, size)
    path.write_bytes(header[: data + 8])
    os.truncate(path, data + 8 + size)
