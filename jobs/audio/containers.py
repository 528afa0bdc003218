"""What an audio file's container says of it: its kind, its parts, and whether its end is there.

In: a seekable binary file. Out: the parts that the file is made of, which are whole audio files
joined end to end, mostly one. A decoder stops at the end of the first; read part by part nothing is
passed over. A part that goes on where the file ends is cut short; decoders pass over that too. The
kind goes by content, never by name.

Sources: EBU Tech 3306 (WAV and RF64), ITU-R BS.2088 (BW64), RFC 2361 (codecs in WAV), RFC 9639
(FLAC), RFC 3533 (Ogg), ISO/IEC 11172-3 and 13818-3 (frames of MP3), ID3v2.4, APEv2, RFC 8794
(EBML), AIFF-C of 1991, Core Audio Format 1.0, Sony Wave64, NIST SPHERE.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from math import prod
from typing import Any, BinaryIO, NamedTuple


class Kind(StrEnum):
    """Containers that are told apart here; FFmpeg's libraries tell the others apart."""

    WAV = "WAV"
    FLAC = "FLAC"
    OGG = "Ogg"
    MP3 = "MP3"
    MATROSKA = "Matroska"
    MP4 = "MP4"
    ASF = "ASF"
    AIFF = "AIFF"
    AU = "AU"
    CAF = "CAF"
    W64 = "W64"
    SPHERE = "SPHERE"
    OTHER = "other"


class Part(NamedTuple):
    """A whole audio file within a file."""

    kind: Kind
    offset: int
    size: int
    """Bytes."""
    is_length_known: bool = True
    """Whether its header says exactly how long it is: of what is compressed mostly it does not, and
    an encoder that wrote to a pipe could not know."""


class CutShortError(ValueError):
    """The file ends where its container says that it goes on."""

    def __init__(self, what: str) -> None:
        super().__init__(f"cut short: {what}")


_WITHIN_HEADER = "it ends within its header"


def parts_of(file: BinaryIO) -> list[Part]:
    """The parts of a file, in order.

    Raises CutShortError for a file that ends within a part, ValueError for one with a hole.
    """
    size = file.seek(0, 2)
    start = _after_tags(file, 0)
    walk = _WALKERS[_kind(read_at(file, start, _HEAD_BYTES))]
    return list(walk(file, start, size))


def frames_of(file: BinaryIO) -> list[Part]:
    """The parts of an MP3 before whose first frame is something else. Raises what `parts_of` does.

    None where there are no frames.
    """
    size = file.seek(0, 2)
    start = _next_frame(file, _after_tags(file, 0), size)
    return list(_mp3_parts(file, start, size)) if start < size else []


_HEAD_BYTES = 12
_WAVES = (b"RIFF", b"RIFX", b"RF64", b"BW64")


def _kind(head: bytes) -> Kind:
    if head[:4] in _WAVES and head[8:12] == b"WAVE":
        return Kind.WAV
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return Kind.AIFF
    if head[4:8] == b"ftyp":
        return Kind.MP4
    for begin, kind in _BEGINNINGS.items():
        if head.startswith(begin):
            return kind
    return Kind.MP3 if _frame_bytes(head) else Kind.OTHER


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Bytes from an offset on, as far as there are any."""
    file.seek(offset)
    return file.read(size)


def unpacked(file: BinaryIO, offset: int, layout: str) -> Any:
    """The values that lie there. Raises CutShortError."""
    data = read_at(file, offset, struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise CutShortError(_WITHIN_HEADER)
    return struct.unpack(layout, data)


_APE_BYTES = 32


def _after_tags(file: BinaryIO, at: int) -> int:
    """Where what follows ID3v2 and APE tags begins."""
    while size := _tag_bytes(read_at(file, at, _APE_BYTES)):
        at += size
    return at


def _tag_bytes(head: bytes) -> int:
    """How long the tag is that begins so; 0 when none does."""
    if head[:3] == b"ID3" and len(head) >= 10:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        return 10 + size + (10 if head[5] & 0x10 else 0)
    if head[:8] == b"APETAGEX" and len(head) == _APE_BYTES:
        size, is_header = int.from_bytes(head[12:16], "little"), head[23] & 0x20
        return _APE_BYTES + (size if is_header else 0)
    return 0


def _whole(_: BinaryIO, start: int, size: int) -> Iterator[Part]:
    yield Part(Kind.OTHER, start, size - start)


# WAV: chunks, of which ``data`` holds the samples.
_PIPE_SIZES = (0, range(0x7FFF_F000, 0x8000_0100), range(0xFFFF_F000, 0x1_0000_0000))
"""What encoders write for a size that they cannot know."""
_LARGEST_WAV = 1 << 32


_UNKNOWN_LARGE = (1 << 64) - 1
_PLAIN_CODECS = frozenset((1, 2, 3, 6, 7, 0x11, 0x31, 0x38, 0x40, 0xFFFE))
"""PCM, ADPCM, floats, A-law, mu-law, GSM and G.721: what libsndfile reads to its last sample."""


class _Samples(NamedTuple):
    """Those of a WAV, by what its header says."""

    begin: int
    num_bytes: int
    is_plain: bool


def _wav_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    while start < size:
        begin, claimed, is_plain = _samples_of_wav(file, start, size)
        end = begin + claimed
        if _is_pipe_size(claimed) or size - end >= _LARGEST_WAV - (1 << 20):
            yield Part(Kind.WAV, start, size - start, is_length_known=False)
            return
        _require_samples(begin, claimed, size)
        following = _next_wav(file, end, size)
        yield Part(Kind.WAV, start, following - start, is_plain)
        start = following


def _require_samples(begin: int, claimed: int, size: int) -> None:
    """Raises CutShortError unless so many bytes of samples are there."""
    if begin + claimed > size:
        there = max(size - begin, 0)
        raise CutShortError(f"it holds {there:,} of its {claimed:,} bytes of samples")


def _is_pipe_size(claimed: int) -> bool:
    zero, half, full = _PIPE_SIZES
    return claimed in (zero, _UNKNOWN_LARGE) or claimed in half or claimed in full


def chunks(
    file: BinaryIO, at: int, size: int, order: str = "<"
) -> Iterator[tuple[bytes, int, int]]:
    """Name, beginning and size of each chunk; ``order``: of the bytes in a number."""
    while at + 8 <= size:
        name, claimed = unpacked(file, at, order + "4sI")
        yield name, at + 8, claimed
        at += 8 + claimed + claimed % 2


def _samples_of_wav(file: BinaryIO, start: int, size: int) -> _Samples:
    form, large, codec = read_at(file, start, 4), 0, 0
    order = ">" if form == b"RIFX" else "<"
    for name, begin, claimed in chunks(file, start + _HEAD_BYTES, size, order):
        if name == b"ds64":
            (large,) = unpacked(file, begin, "<8xQ")
        if name == b"fmt ":
            (codec,) = unpacked(file, begin, order + "H")
        if name == b"data":
            is_plain = codec in _PLAIN_CODECS and form != b"BW64"
            return _Samples(begin, large or claimed, is_plain)
    raise CutShortError("it ends before its samples")


def _next_wav(file: BinaryIO, at: int, size: int) -> int:
    """Where another file begins after samples that end at ``at``; ``size`` where none does."""
    for _, begin, _ in chunks(file, at + at % 2, size):
        if _kind(read_at(file, begin - 8, _HEAD_BYTES)) == Kind.WAV:
            return begin - 8
    return size


# FLAC: a marker and STREAMINFO, then frames.
_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_FLAC_START_BYTES = 8
_STREAMINFO_BYTES = 34
_WINDOW_BYTES = 1 << 20


def _flac_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    starts = list(_flac_starts(file, start, size)) or [start]
    for begin, end in zip(starts, [*starts[1:], size], strict=True):
        info = read_at(file, begin + _FLAC_START_BYTES, _STREAMINFO_BYTES)
        if len(info) < _STREAMINFO_BYTES:
            raise CutShortError(_WITHIN_HEADER)
        num_samples = int.from_bytes(info[13:18]) & 0xF_FFFF_FFFF
        yield Part(Kind.FLAC, begin, end - begin, is_length_known=num_samples > 0)


def _flac_starts(file: BinaryIO, start: int, size: int) -> Iterator[int]:
    for at in range(start, size, _WINDOW_BYTES):
        window = read_at(file, at, _WINDOW_BYTES + _FLAC_START_BYTES - 1)
        yield from (at + found.start() for found in _FLAC_START.finditer(window))


# Ogg: pages of logical streams, each from a first to a last page.
_OGG_HEADER = struct.Struct("<4sBBqIIIB")
_FIRST_PAGE, _LAST_PAGE = 0x02, 0x04


class _Page(NamedTuple):
    offset: int
    flags: int
    stream: int
    number: int


def _ogg_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    """A part begins with the first pages of its streams; each of them has a last page."""
    begin, expected, is_beginning = start, dict[int, int](), True
    for page in _ogg_pages(file, start):
        is_first = bool(page.flags & _FIRST_PAGE)
        if is_first and not is_beginning:
            _require_ended(expected)
            yield Part(Kind.OGG, begin, page.offset - begin)
            begin, expected = page.offset, {}
        is_beginning = is_first
        if not is_first and expected.get(page.stream) != page.number:
            raise ValueError(f"damaged: a page is missing before byte {page.offset:,}")
        expected[page.stream] = page.number + 1
        if page.flags & _LAST_PAGE:
            del expected[page.stream]
    _require_ended(expected)
    yield Part(Kind.OGG, begin, size - begin)


def _ogg_pages(file: BinaryIO, at: int) -> Iterator[_Page]:
    """Pages from ``at`` on. A decoder passes over one whose checksum is wrong."""
    while (head := read_at(file, at, _OGG_HEADER.size)).startswith(b"OggS"):
        lengths = file.read(head[-1])
        body = file.read(sum(lengths))
        if len(head) < _OGG_HEADER.size or len(lengths) < head[-1] or len(body) < sum(lengths):
            raise CutShortError("its last page is incomplete")
        _, _, flags, _, stream, number, checksum, _ = _OGG_HEADER.unpack(head)
        if _ogg_checksum(head[:22] + bytes(4) + head[26:] + lengths + body) != checksum:
            raise ValueError(f"damaged: the page at byte {at:,} is not what was written")
        yield _Page(at, flags, stream, number)
        at += len(head) + len(lengths) + len(body)


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> int:
    """Ogg's CRC-32 is zlib's with all bits the other way round, and none inverted."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{crc:032b}"[::-1], 2)


def _require_ended(expected: dict[int, int]) -> None:
    if expected:
        raise CutShortError("its last page is not there")


# MP3: frames, before and between which tags may stand.
_BITRATES = {  # kbit/s by (MPEG 1?, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44_100, 48_000, 32_000)
_DIVISORS = {3: 1, 2: 2, 0: 4}
"""MPEG 1, 2 and 2.5 by the header's two bits."""
_SYNC = re.compile(rb"\xff[\xe0-\xff]")
_MP3_HEAD_BYTES = 64
_LENGTH_TAGS = {b"Xing": 8, b"Info": 8, b"VBRI": 14}
"""A first frame with one of them counts the frames of its file, in four bytes so far behind."""


def _frame_bytes(head: bytes) -> int:
    """How long the MP3 frame is that begins so; 0 when none does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version not in _DIVISORS or layer == 4 or bitrate in (0, 15) or rate == 3:
        return 0
    bits_per_s = _BITRATES[version == 3, layer][bitrate - 1] * 1000
    rate_hz = _RATES[rate] // _DIVISORS[version]
    if layer == 1:
        return (12 * bits_per_s // rate_hz + padding) * 4
    samples = 576 if layer == 3 and version != 3 else 1152
    return samples // 8 * bits_per_s // rate_hz + padding


def _mp3_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    """A part begins with a tag, or with a frame that counts those which follow."""
    begin = end = at = start
    form = _format(read_at(file, start, _MP3_HEAD_BYTES))
    num_left = 0
    while at < size:
        head = read_at(file, at, _MP3_HEAD_BYTES)
        # Frames of one part agree in all but bitrate and padding.
        length = _frame_bytes(head)
        if length and at <= end and _format(head) != form:
            length = 0
        following = at + length if length else _next_frame(file, at, size)
        if following > size:
            raise CutShortError("its last frame is incomplete")
        counted = _num_frames(head[:length])
        if length and at > begin and (at > end or counted is not None):
            yield Part(Kind.MP3, begin, end - begin)
            begin = at
        if length:
            # Of the whole file: what was spliced into another may have a count of its own.
            num_left += -1 if counted is None else counted
            form, end = _format(head), following
        at = following
    if num_left > 1:  # encoders differ in whether the first frame counts itself
        raise CutShortError(f"{num_left:,} of its frames are not there")
    yield Part(Kind.MP3, begin, end - begin)


def _format(head: bytes) -> tuple[int, int]:
    """Version, layer and sample rate of a frame."""
    return head[1] & 0x1E, head[2] & 0x0C


def _num_frames(head: bytes) -> int | None:
    """How many frames follow by what a first frame says, 0 where it does not; None for others."""
    for tag, offset in _LENGTH_TAGS.items():
        if (at := head.find(tag)) >= 0:
            is_said = tag == b"VBRI" or int.from_bytes(head[at + 4 : at + 8]) & 1
            return int.from_bytes(head[at + offset : at + offset + 4]) if is_said else 0
    return None


def _next_frame(file: BinaryIO, at: int, size: int) -> int:
    """Where frames go on after what is none; ``size`` where they do not."""
    after = _after_tags(file, at)
    if after > at:
        return min(after, size)
    for start in range(at, size, _WINDOW_BYTES):
        window = read_at(file, start, _WINDOW_BYTES + 3)
        for found in _SYNC.finditer(window):
            candidate = start + found.start()
            length = _frame_bytes(window[found.start() : found.start() + 4])
            if length and _frame_bytes(read_at(file, candidate + length, 4)):
                return candidate
    return size


# Matroska and WebM: a header, then one segment.
_SEGMENT = 0x18538067


def _matroska_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    at = start
    while at < size:
        head = read_at(file, at, 12)
        id_bytes = _vint_bytes(head[0])
        if len(head) <= id_bytes:
            raise CutShortError(_WITHIN_HEADER)
        num_bytes = _vint_bytes(head[id_bytes])
        claimed = int.from_bytes(head[id_bytes : id_bytes + num_bytes]) & (1 << 7 * num_bytes) - 1
        is_unknown = claimed == (1 << 7 * num_bytes) - 1
        end = at + id_bytes + num_bytes + claimed
        if int.from_bytes(head[:id_bytes]) == _SEGMENT:
            if not is_unknown and end > size:
                raise CutShortError(f"{size - at:,} of {end - at:,} bytes of its segment are there")
            break
        at = end
    yield Part(Kind.MATROSKA, start, size - start)


def _vint_bytes(first: int) -> int:
    """How many bytes an EBML number takes that begins with this one."""
    return 9 - first.bit_length()


# MP4 and its kin: boxes.
def _mp4_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    at = start
    while at + 8 <= size:
        claimed, name = unpacked(file, at, ">I4s")
        if claimed == 1:
            (claimed,) = unpacked(file, at + 8, ">Q")
        if claimed < 8 or not name.isalnum():
            break
        at += claimed
        if at > size:
            raise CutShortError(f"its box {name.decode()} is incomplete")
    yield Part(Kind.MP4, start, size - start)


# ASF, as WMA is in it: objects, each with a name of 16 bytes and its size.
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


def _asf_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    at = start
    while at + 24 <= size:
        (claimed,) = unpacked(file, at + 16, "<Q")
        if claimed < 24:  # of a broadcast, which did not know
            break
        at += claimed
        if at > size:
            raise CutShortError("its data are incomplete")
    yield Part(Kind.ASF, start, size - start)


# AIFF, AU, CAF, Wave64 and SPHERE: one stretch of samples, whose size stands before it.
_LARGEST_AIFF = 0x7F00_0000
"""From here on sizes are what encoders write that cannot know them."""


def _aiff_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    for name, begin, claimed in chunks(file, start + _HEAD_BYTES, size, ">"):
        if name == b"SSND" and claimed < _LARGEST_AIFF:
            _require_samples(begin, claimed, size)
    yield Part(Kind.AIFF, start, size - start)


def _au_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    begin, claimed = unpacked(file, start + 4, ">II")
    if claimed != 0xFFFF_FFFF:
        _require_samples(start + begin, claimed, size)
    yield Part(Kind.AU, start, size - start)


def _caf_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    at, codec = start + 8, b""
    while at + _HEAD_BYTES <= size:
        name, claimed = unpacked(file, at, ">4sq")
        at += _HEAD_BYTES
        if claimed < 0:  # up to the end
            break
        if name in (b"data", b"pakt"):
            _require_samples(at, claimed, size)
        if name == b"desc":
            (codec,) = unpacked(file, at + 8, "4s")
        at += claimed
    yield Part(Kind.CAF, start, size - start, is_length_known=codec == b"alac")


_W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_W64_HEADER = 24


def _w64_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    at = start + _W64_HEADER + len(_W64)
    while at + _W64_HEADER <= size:
        name, claimed = unpacked(file, at, "<16sQ")
        if claimed < _W64_HEADER:  # of an encoder that wrote to a pipe
            break
        if name == _W64_DATA and claimed != _UNKNOWN_LARGE:
            _require_samples(at + _W64_HEADER, claimed - _W64_HEADER, size)
        at += claimed + -claimed % 8
    yield Part(Kind.W64, start, size - start)


_SPHERE_FIELD = re.compile(rb"^(\w+) -(?:i|s\d+) (\S+)", re.MULTILINE)
_SPHERE_SIZES = (b"sample_count", b"channel_count", b"sample_n_bytes")


def _sphere_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    about = read_at(file, start, 16)[8:].strip()
    length = int(about) if about.isdigit() else 0
    fields = dict(_SPHERE_FIELD.findall(read_at(file, start, length)))
    coding = fields.get(b"sample_coding", b"pcm").decode(errors="replace")
    if "," in coding:
        raise ValueError(f"its samples are coded as {coding}, which nothing here reads")
    known = [fields.get(name, b"") for name in _SPHERE_SIZES]
    if all(number.isdigit() for number in known):
        _require_samples(start + length, prod(map(int, known)), size)
    yield Part(Kind.SPHERE, start, size - start)


_BEGINNINGS = {
    b"fLaC": Kind.FLAC,
    b"OggS": Kind.OGG,
    b"\x1a\x45\xdf\xa3": Kind.MATROSKA,
    _ASF[:_HEAD_BYTES]: Kind.ASF,
    b".snd": Kind.AU,
    b"caff": Kind.CAF,
    _W64[:_HEAD_BYTES]: Kind.W64,
    b"NIST_1A": Kind.SPHERE,
}

_WALKERS: dict[Kind, Callable[[BinaryIO, int, int], Iterator[Part]]] = {
    Kind.WAV: _wav_parts,
    Kind.FLAC: _flac_parts,
    Kind.OGG: _ogg_parts,
    Kind.MP3: _mp3_parts,
    Kind.MATROSKA: _matroska_parts,
    Kind.MP4: _mp4_parts,
    Kind.ASF: _asf_parts,
    Kind.AIFF: _aiff_parts,
    Kind.AU: _au_parts,
    Kind.CAF: _caf_parts,
    Kind.W64: _w64_parts,
    Kind.SPHERE: _sphere_parts,
    Kind.OTHER: _whole,
}
