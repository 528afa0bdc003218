"""Where files in rare containers end by what they say, as their decoders stop wherever they end.

In: a seekable binary file that `containers` does not know. What has no length anywhere cannot be
told to be cut: raw samples, IRCAM, PVF, PAF, and frames that break off between two of them.

Sources: libsndfile and SoX (AVR), Creative Voice File, 8SVX and 16SV in EA IFF 85, SoX's own
format, CRI's ADX, TTA1, WavPack 4 and 5, Monkey's Audio 3.98, Sony DSF, ETSI TS 102 366 (AC-3 and
E-AC-3), RealMedia, Adobe FLV 10.1, AVI with OpenDML, ISO/IEC 13818-1 (transport streams).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import BinaryIO

from jobs.audio.containers import CutShortError, chunks, read_at, unpacked

_HEAD_BYTES = 400
_UNKNOWN = 0
"""For an end that a file does not say."""


def require_whole(file: BinaryIO, start: int = 0) -> None:
    """Raises CutShortError where the file ends before it says that it does.

    ValueError for what decoders would take for something else.
    """
    size = file.seek(0, 2)
    head = read_at(file, start, _HEAD_BYTES)
    end_of = next((end_of for begin, end_of in _ENDS.items() if begin.match(head)), None)
    end = _UNKNOWN if end_of is None else end_of(file, start, size)
    if end > size:
        raise CutShortError(f"{size - start:,} of its {end - start:,} bytes are there")


def _avr(file: BinaryIO, start: int, _: int) -> int:
    channels, bits, num_frames = unpacked(file, start + 12, ">HH10xI")
    return start + 128 + int(num_frames) * (2 if channels else 1) * (int(bits) // 8)


def _voc(file: BinaryIO, start: int, size: int) -> int:
    """Blocks up to one that says that it is the last; some encoders leave that out."""
    (length,) = unpacked(file, start + 20, "<H")
    at = start + int(length)
    while at < size:
        kind, low, high = unpacked(file, at, "<BHB") if at + 4 <= size else (0, 0, 0)
        if kind == 0:
            return at + 1
        at += 4 + (int(low) | int(high) << 16)
    return at


def _iff(file: BinaryIO, start: int, size: int) -> int:
    for name, begin, claimed in chunks(file, start + 12, size, ">"):
        if name == b"BODY":
            return begin + int(claimed)
    raise CutShortError("it ends before its samples")


def _sox(file: BinaryIO, start: int, _: int) -> int:
    order = "<" if read_at(file, start, 1) == b"." else ">"
    length, num_samples = unpacked(file, start + 4, order + "IQ")
    return start + 4 + int(length) + 4 * int(num_samples)


def _adx(file: BinaryIO, start: int, _: int) -> int:
    begin, block, bits, channels, num_frames = unpacked(file, start + 2, ">HxBBB4xI")
    in_block = max((int(block) - 2) * 8 // max(int(bits), 1), 1)
    return start + 4 + int(begin) + -(-int(num_frames) // in_block) * int(block) * int(channels)


def _tta(file: BinaryIO, start: int, _: int) -> int:
    """A table of the sizes of its frames follows the header."""
    rate_hz, num_frames = unpacked(file, start + 10, "<II")
    num = -(-num_frames // max(256 * rate_hz // 245, 1))
    sizes = unpacked(file, start + 22, f"<{num}I")
    return start + 22 + 4 * int(num) + 4 + sum(map(int, sizes))


def _wavpack(file: BinaryIO, start: int, size: int) -> int:
    """Blocks, each with the number of samples of the file and which of them it holds."""
    at, passed, total = start, 0, 0
    while at + 32 <= size and read_at(file, at, 4) == b"wvpk":
        length, high, low_total, low_first, num = unpacked(file, at + 4, "<I3xB3I")
        if at == start:
            total = 0 if low_total == 0xFFFF_FFFF else low_total | high << 32
        passed = max(passed, low_first + num)
        at += 8 + int(length)
    if at <= size and passed < total:
        raise CutShortError(f"{passed:,} of its {total:,} samples are there")
    return at


def _ape(file: BinaryIO, start: int, _: int) -> int:
    (version,) = unpacked(file, start + 4, "<H")
    if version < 3_980:
        return _UNKNOWN
    *parts, high, last = unpacked(file, start + 8, "<7I")
    return start + sum(map(int, parts)) + (int(high) << 32) + int(last)


def _dsf(file: BinaryIO, start: int, _: int) -> int:
    (length,) = unpacked(file, start + 12, "<Q")
    return start + int(length)


_AC3_KBITS = (
    *(32, 40, 48, 56, 64, 80, 96, 112, 128, 160),
    *(192, 224, 256, 320, 384, 448, 512, 576, 640),
)


def _ac3(file: BinaryIO, start: int, size: int) -> int:
    at = start
    while at < size and (length := _ac3_bytes(read_at(file, at, 6))):
        at += length
    return at


def _ac3_bytes(head: bytes) -> int:
    """How long the frame of AC-3 or E-AC-3 is that begins so; 0 when none does."""
    if head[:2] != b"\x0b\x77":
        return 0
    if len(head) < 6:
        raise CutShortError("its last frame is incomplete")
    if head[5] >> 3 > 10:  # E-AC-3
        return 2 * (1 + (int.from_bytes(head[2:4]) & 0x7FF))
    rate, code = head[4] >> 6, head[4] & 0x3F
    if rate == 3 or code // 2 >= len(_AC3_KBITS):
        return 0
    kbits = _AC3_KBITS[code // 2]
    return (4 * kbits, 2 * (kbits * 320 // 147 + code % 2), 6 * kbits)[rate]


_REAL_MEDIA_HEAD_BYTES = 10
"""Of a chunk; FFmpeg counts that of the samples twice."""


def _real_media(file: BinaryIO, start: int, size: int) -> int:
    at = start
    while at + 8 <= size:
        (length,) = unpacked(file, at + 4, ">I")
        if length < 8:  # of an encoder that could not know
            return _UNKNOWN
        at += int(length)
    return at - _REAL_MEDIA_HEAD_BYTES


def _flv(file: BinaryIO, start: int, size: int) -> int:
    (length,) = unpacked(file, start + 5, ">I")
    at = start + int(length) + 4
    while at < size:
        at += 15 + int.from_bytes(read_at(file, at + 1, 3))
    return at


def _avi(file: BinaryIO, start: int, size: int) -> int:
    """Several RIFFs where it is large."""
    for name, begin, claimed in chunks(file, start, size):
        if name != b"RIFF" or not claimed:
            break
        if begin + claimed > size:
            return begin + int(claimed)
    return _UNKNOWN


_PACKET_BYTES = 188


def _transport(_file: BinaryIO, start: int, size: int) -> int:
    return start + -(-(size - start) // _PACKET_BYTES) * _PACKET_BYTES


def _sample_dump(_file: BinaryIO, _start: int, _size: int) -> int:
    raise ValueError("is a dump of samples for MIDI, which nothing here reads")


_ENDS: dict[re.Pattern[bytes], Callable[[BinaryIO, int, int], int]] = {
    re.compile(begin, re.DOTALL): end_of
    for begin, end_of in (
        (rb"2BIT", _avr),
        (rb"Creative Voice File\x1a", _voc),
        (rb"FORM....(8SVX|16SV)", _iff),
        (rb"\.SoX|XoS\.", _sox),
        (rb"\x80\x00..[\x02-\x05]\x12\x04", _adx),
        (rb"TTA1", _tta),
        (rb"wvpk", _wavpack),
        (rb"MAC ", _ape),
        (rb"DSD ", _dsf),
        (rb"\x0b\x77", _ac3),
        (rb"\.RMF", _real_media),
        (rb"FLV\x01", _flv),
        (rb"RIFF....AVI ", _avi),
        (rb"\xf0\x7e.\x01", _sample_dump),
        (rb"\x47.{187}\x47.{187}\x47", _transport),
    )
}
"""How a file begins, and what says where it ends."""
