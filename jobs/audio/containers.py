"""What an audio file's container says of it: its kind, its parts, and whether its end is there.

In: a seekable binary file. Out: the parts that the file is made of, which are whole audio files
joined end to end, mostly one. A decoder stops at the end of the first; read part by part nothing is
passed over. A part that goes on where the file ends is cut short; decoders pass over that too. The
kind goes by content, never by name.

Sources: EBU Tech 3306 (WAV and RF64), RFC 9639 (FLAC), RFC 3533 (Ogg), ISO/IEC 11172-3 and 13818-3
(frames of MP3), ID3v2.4, RFC 8794 (EBML).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from enum import StrEnum
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
    OTHER = "other"


class Part(NamedTuple):
    """A whole audio file within a file."""

    kind: Kind
    offset: int
    size: int
    """Bytes."""
    is_length_known: bool = True
    """Whether its header says how long it is; an encoder that wrote to a pipe could not know."""


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
    walk = _WALKERS[_kind(_read(file, start, _HEAD_BYTES))]
    return list(walk(file, start, size))


_HEAD_BYTES = 12


def _kind(head: bytes) -> Kind:
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return Kind.WAV
    if head.startswith(b"fLaC"):
        return Kind.FLAC
    if head.startswith(b"OggS"):
        return Kind.OGG
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return Kind.MATROSKA
    if head[4:8] == b"ftyp":
        return Kind.MP4
    if head.startswith(_ASF[:_HEAD_BYTES]):
        return Kind.ASF
    return Kind.MP3 if _frame_bytes(head) else Kind.OTHER


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _unpacked(file: BinaryIO, offset: int, layout: str) -> Any:
    """The values that lie there. Raises CutShortError."""
    data = _read(file, offset, struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise CutShortError(_WITHIN_HEADER)
    return struct.unpack(layout, data)


def _after_tags(file: BinaryIO, at: int) -> int:
    """Where what follows ID3v2 tags begins."""
    while (head := _read(file, at, 10))[:3] == b"ID3" and len(head) == 10:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        at += 10 + size + (10 if head[5] & 0x10 else 0)
    return at


def _whole(_: BinaryIO, start: int, size: int) -> Iterator[Part]:
    yield Part(Kind.OTHER, start, size - start)


# WAV: chunks, of which ``data`` holds the samples.
_PIPE_SIZES = (0, range(0x7FFF_F000, 0x8000_0100), range(0xFFFF_F000, 0x1_0000_0000))
"""What encoders write for a size that they cannot know."""
_LARGEST_WAV = 1 << 32


def _wav_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    while start < size:
        begin, claimed = _samples_of_wav(file, start, size)
        end = begin + claimed
        if _is_pipe_size(claimed) or size - end >= _LARGEST_WAV - (1 << 20):
            yield Part(Kind.WAV, start, size - start, is_length_known=False)
            return
        if end > size:
            raise CutShortError(f"it holds {size - begin:,} of its {claimed:,} bytes of samples")
        following = _next_wav(file, end, size)
        yield Part(Kind.WAV, start, following - start)
        start = following


def _is_pipe_size(claimed: int) -> bool:
    zero, half, full = _PIPE_SIZES
    return claimed == zero or claimed in half or claimed in full


def _chunks(file: BinaryIO, at: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, beginning and size of each chunk."""
    while at + 8 <= size:
        name, claimed = _unpacked(file, at, "<4sI")
        yield name, at + 8, claimed
        at += 8 + claimed + claimed % 2


def _samples_of_wav(file: BinaryIO, start: int, size: int) -> tuple[int, int]:
    """Where the samples begin, and how many bytes they take by what the header says."""
    large = 0
    for name, begin, claimed in _chunks(file, start + _HEAD_BYTES, size):
        if name == b"ds64":
            (large,) = _unpacked(file, begin, "<8xQ")
        if name == b"data":
            return begin, large or claimed
    raise CutShortError("it ends before its samples")


def _next_wav(file: BinaryIO, at: int, size: int) -> int:
    """Where another file begins after samples that end at ``at``; ``size`` where none does."""
    for _, begin, _ in _chunks(file, at + at % 2, size):
        if _kind(_read(file, begin - 8, _HEAD_BYTES)) == Kind.WAV:
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
        info = _read(file, begin + _FLAC_START_BYTES, _STREAMINFO_BYTES)
        if len(info) < _STREAMINFO_BYTES:
            raise CutShortError(_WITHIN_HEADER)
        num_samples = int.from_bytes(info[13:18]) & 0xF_FFFF_FFFF
        yield Part(Kind.FLAC, begin, end - begin, is_length_known=num_samples > 0)


def _flac_starts(file: BinaryIO, start: int, size: int) -> Iterator[int]:
    for at in range(start, size, _WINDOW_BYTES):
        window = _read(file, at, _WINDOW_BYTES + _FLAC_START_BYTES - 1)
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
    while (head := _read(file, at, _OGG_HEADER.size)).startswith(b"OggS"):
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
    form = _format(_read(file, start, _MP3_HEAD_BYTES))
    num_left = 0
    while at < size:
        head = _read(file, at, _MP3_HEAD_BYTES)
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
        window = _read(file, start, _WINDOW_BYTES + 3)
        for found in _SYNC.finditer(window):
            candidate = start + found.start()
            length = _frame_bytes(window[found.start() : found.start() + 4])
            if length and _frame_bytes(_read(file, candidate + length, 4)):
                return candidate
    return size


# Matroska and WebM: a header, then one segment.
_SEGMENT = 0x18538067


def _matroska_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    at = start
    while at < size:
        head = _read(file, at, 12)
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
    yield from _whole(file, start, size)


def _vint_bytes(first: int) -> int:
    """How many bytes an EBML number takes that begins with this one."""
    return 9 - first.bit_length()


# MP4 and its kin: boxes.
def _mp4_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    at = start
    while at + 8 <= size:
        claimed, name = _unpacked(file, at, ">I4s")
        if claimed == 1:
            (claimed,) = _unpacked(file, at + 8, ">Q")
        if claimed < 8 or not name.isalnum():
            break
        at += claimed
        if at > size:
            raise CutShortError(f"its box {name.decode()} is incomplete")
    yield from _whole(file, start, size)


# ASF, as WMA is in it: objects, each with a name of 16 bytes and its size.
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


def _asf_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    at = start
    while at + 24 <= size:
        (claimed,) = _unpacked(file, at + 16, "<Q")
        if claimed < 24:  # of a broadcast, which did not know
            break
        at += claimed
        if at > size:
            raise CutShortError("its data are incomplete")
    yield from _whole(file, start, size)


_WALKERS: dict[Kind, Callable[[BinaryIO, int, int], Iterator[Part]]] = {
    Kind.WAV: _wav_parts,
    Kind.FLAC: _flac_parts,
    Kind.OGG: _ogg_parts,
    Kind.MP3: _mp3_parts,
    Kind.MATROSKA: _matroska_parts,
    Kind.MP4: _mp4_parts,
    Kind.ASF: _asf_parts,
    Kind.OTHER: _whole,
}
