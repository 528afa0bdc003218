"""Reads audio files as what every encoder of the HuBERT family reads: mono float32 at 16 kHz.

In: a place, and which of its channels. Out: ``wav_S`` in [-1, 1], S samples at 16 kHz, whole or in
blocks. libsndfile reads what it reads exactly from any place (WAV, FLAC, Vorbis), FFmpeg's
libraries (PyAV) the rest; raw G.722 has no header, so its file name alone says what it is. Every
part of a file is read, and a file that is cut short is unreadable, whatever its decoder makes of
it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from math import ceil, gcd
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

import av
import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torchaudio

from jobs.audio.channels import Channels, Mono, mono, widened
from jobs.audio.containers import Kind, Part, frames_of, parts_of
from jobs.audio.place import Place
from jobs.audio.rare_containers import require_whole
from jobs.audio.slices import Slice, Watched
from orchestrator.errors import BackendError, OrchestratorError, os_words
from orchestrator.quantities import SAMPLE_RATE_HZ

Wave = npt.NDArray[np.float32]

RAW_FORMATS = {".g722": "g722"}
"""Suffix of what has no header to FFmpeg's name of it."""
_NAMES = """
wav flac ogg oga opus mp3 mp2 m4a m4b mp4 mov 3gp aac webm weba mka mkv wma amr awb spx sph aif aiff
aifc au caf w64
"""
AUDIO_SUFFIXES = frozenset(f".{name}" for name in _NAMES.split()) | frozenset(RAW_FORMATS)
"""File names that are taken for audio, lower case."""

BLOCK_S = 30
"""Blocks lie on this grid from the file's beginning on, so that bytes depend on no reader."""
_MARGIN_S = 0.1
"""What a block is resampled with on either side; kernels are shorter."""
_READ_FRAMES = 1 << 16
_BUFFER_BYTES = 1 << 20
_OGG_HEAD_BYTES = 128
_LOWPASS_TAPS = 255
_LOUDEST = 1e10
"""Integers of 32 bits that were written as floats are below; squares of what is above overflow."""
_OUT_OF_MEMORY = re.compile("Cannot allocate memory|malloc failed")
_MAX_RESAMPLE_RATIO_TERM = 2_000


class UnreadableAudioError(OrchestratorError):
    """A recording that cannot be decoded; ``reason`` says why, without the path."""

    def __init__(self, where: Path | Place, reason: str) -> None:
        super().__init__(f"{where}: {reason}; repair the file or remove it")
        self.reason = reason


class Notice(NamedTuple):
    """What happens while a recording is decoded, besides its blocks."""

    what: Literal["cancels", "passed over"]
    """The mix of a block cancels itself; or all before it had to be decoded, to get there."""
    block: int


def decode(
    where: Path | Place, *, lowpass_hz: float | None = None, channels: Channels | int = "mix"
) -> Wave:
    """The whole recording as ``wav_S``. Raises what ``blocks`` does."""
    return np.concatenate(list(blocks(where, lowpass_hz=lowpass_hz, channels=channels)))


def blocks(
    where: Path | Place,
    *,
    lowpass_hz: float | None = None,
    channels: Channels | int = "mix",
    first: int = 0,
    on_notice: Callable[[Notice], object] = bool,
) -> Iterator[Wave]:
    """The recording from its block ``first`` on, in blocks of ``BLOCK_S``; the last is shorter.

    One signal is made of its channels as `channels.mono` says, block by block; ``on_notice`` is
    told of each block whose mix cancels itself, before the block comes.

    Memory is bounded by a block. WAV, FLAC and Vorbis are entered there, others decoded from their
    beginning, which ``on_notice`` is told; the bytes are the same. Raises UnreadableAudioError,
    which is a verdict on the file's bytes; BackendError when those cannot be had now; MemoryError.
    """
    place = where if isinstance(where, Place) else Place.of(where)
    try:
        with reading(place, _BUFFER_BYTES) as file:
            source = _open(file, RAW_FORMATS.get(place.suffix), first)
            if first and not source.is_entered:
                on_notice(Notice("passed over", first))
            wanted = _Wanted(lowpass_hz, channels, first)
            for number, (wav_S, is_cancelled) in enumerate(_blocks(source, wanted), first):
                if is_cancelled:
                    on_notice(Notice("cancels", number))
                yield wav_S
    except (soundfile.LibsndfileError, av.FFmpegError, OSError, ValueError) as error:
        if _OUT_OF_MEMORY.search(str(error)):
            raise MemoryError from None
        require_bytes(place)
        raise UnreadableAudioError(place, _reason(error)) from None


def lowpass(wav_S: Wave, cutoff_hz: float) -> Wave:
    """The wave without what lies above ``cutoff_hz``: a linear-phase FIR, same length."""
    if cutoff_hz >= SAMPLE_RATE_HZ / 2:
        return wav_S
    filtered = np.convolve(wav_S, _lowpass_kernel(cutoff_hz))
    start = _LOWPASS_TAPS // 2
    return filtered[start : start + len(wav_S)].astype(np.float32)


@lru_cache(maxsize=8)
def _lowpass_kernel(cutoff_hz: float) -> Wave:
    """Windowed sinc (Blackman), unit gain at 0 Hz."""
    offset = np.arange(_LOWPASS_TAPS) - _LOWPASS_TAPS // 2
    kernel = np.sinc(2 * cutoff_hz / SAMPLE_RATE_HZ * offset) * np.blackman(_LOWPASS_TAPS)
    unit_gain: Wave = (kernel / kernel.sum()).astype(np.float32)
    return unit_gain


@contextmanager
def reading(place: Place, buffering: int = -1) -> Iterator[BinaryIO]:
    """Its bytes. Raises BackendError where a read failed, whatever a library made of that."""
    with place.open(buffering) as file:
        watched = Watched(file)
        try:
            yield cast(BinaryIO, watched)
        finally:
            if watched.error:
                raise _unread(watched.error) from None


def require_bytes(place: Place) -> None:
    """Raises BackendError when the bytes cannot be read, whatever they are."""
    try:
        with place.open() as file:
            while file.read(_BUFFER_BYTES):
                pass
    except OSError as error:
        raise _unread(error) from None


def _unread(error: OSError) -> BackendError:
    return BackendError(f"{os_words(error)}; see whether its folder is mounted")


def _reason(error: Exception) -> str:
    """What went wrong, without the path: that differs between clusters, and tables must not."""
    if isinstance(error, soundfile.LibsndfileError):
        return str(error.error_string).removeprefix("Error : ").rstrip(".")
    return getattr(error, "strerror", None) or str(error)


class _Wanted(NamedTuple):
    """What of a recording is asked for."""

    lowpass_hz: float | None
    channels: Channels | int
    first: int
    """Block."""


class _Source(NamedTuple):
    """A file being decoded."""

    pieces: Iterator[tuple[Wave, int]]
    """Consecutive stretches of all channels, ``wav_CS``, each with its rate in Hz."""
    is_entered: bool
    """Whether they begin with what the block asked for needs, rather than with the file."""


def _blocks(source: _Source, wanted: _Wanted) -> Iterator[Mono]:
    grid: _Grid | None = None
    for wav_CS, rate_hz in source.pieces:
        _require_sound(wav_CS)
        grid = grid or _Grid(rate_hz, wanted, is_entered=source.is_entered)
        if rate_hz != grid.rate_hz:
            raise ValueError(f"its parts have {grid.rate_hz:,} and {rate_hz:,} Hz")
        yield from grid.blocks_after(wav_CS)
    if grid is not None:
        yield from grid.rest()
    elif not wanted.first:
        raise ValueError("holds no samples")


def _require_sound(wav_CS: Wave) -> None:
    """Raises ValueError."""
    if np.abs(wav_CS).max(initial=0) <= _LOUDEST:  # which no NaN is
        return
    if np.isfinite(wav_CS).all():
        raise ValueError(f"holds samples beyond any sound (full scale is 1, not {_LOUDEST:g})")
    raise ValueError("holds samples that are no numbers")


class _Periods(NamedTuple):
    """A block in samples at a file's own rate: whole periods of the resampler.

    Its kernels lie on a block as they would on the whole file.
    """

    down: int
    up: int
    block: int
    margin: int

    @classmethod
    def at(cls, rate_hz: int) -> _Periods:
        from_hz = _resampled_rate(rate_hz)
        common = gcd(from_hz, SAMPLE_RATE_HZ)
        down, up = from_hz // common, SAMPLE_RATE_HZ // common
        return cls(down, up, BLOCK_S * common * down, ceil(_MARGIN_S * common) * down)

    def entry(self, block: int) -> int:
        """From which sample on the file is needed for this block and those after it."""
        return max(self.block * block - self.margin, 0)


class _Grid:
    """Brings a recording to 16 kHz in blocks, each from its own surroundings alone."""

    def __init__(self, rate_hz: int, wanted: _Wanted, *, is_entered: bool) -> None:
        self.rate_hz, self._wanted = rate_hz, wanted
        self._periods = _Periods.at(rate_hz)
        self._resample = torchaudio.transforms.Resample(self._periods.down, self._periods.up)
        self._held: list[Wave] = []
        """Pieces of all channels, put together when a block is whole: a codec gives many."""
        self._num_held = 0
        self._unneeded = 0 if is_entered else self._periods.entry(wanted.first)
        """How many samples are still to come that no block needs."""
        self._before = self._periods.block * wanted.first - self._periods.entry(wanted.first)
        """How many of the samples held lie before the next block."""

    def blocks_after(self, wav_CS: Wave) -> Iterator[Mono]:
        """The blocks that are whole with these samples at the file's own rate."""
        needed_CS = wav_CS[:, self._unneeded :]
        self._unneeded -= wav_CS.shape[1] - needed_CS.shape[1]
        if num_needed := needed_CS.shape[1]:
            self._held.append(needed_CS)
            self._num_held += num_needed
        while self._num_held >= self._before + self._periods.block + self._periods.margin:
            yield self._next()

    def rest(self) -> Iterator[Mono]:
        """The blocks before the file's end."""
        while self._num_held > self._before:
            yield self._next()

    def _next(self) -> Mono:
        down, up, block, margin = self._periods
        end = min(self._before + block, self._num_held)
        held_CS = _joined(self._held)
        made = mono(held_CS[:, : end + margin], self._wanted.channels)
        wav_S: Wave = self._resample(torch.from_numpy(made.wav_S)).numpy()
        if self._wanted.lowpass_hz is not None:
            wav_S = lowpass(wav_S, self._wanted.lowpass_hz)
        start = self._before * up // down
        length = ceil((end - self._before) * up / down)
        self._before = min(margin, end)
        self._held = [held_CS[:, end - self._before :]]
        self._num_held -= end - self._before
        return Mono(wav_S[start : start + length], made.cancelled)


def _joined(pieces: Sequence[Wave]) -> Wave:
    """Consecutive stretches as one; parts of a file may differ in their channels."""
    most = max(len(wav_CS) for wav_CS in pieces)
    return np.concatenate([widened(wav_CS, most) for wav_CS in pieces], axis=1)


def _resampled_rate(rate_hz: int) -> int:
    if rate_hz // gcd(rate_hz, SAMPLE_RATE_HZ) > _MAX_RESAMPLE_RATIO_TERM:
        # The polyphase kernel has a row per term, gigabytes for an odd rate; rounding the rate
        # shifts the pitch by less than anyone hears.
        return round(rate_hz, -2) or rate_hz
    return rate_hz


def _open(file: BinaryIO, raw_format: str | None, first: int) -> _Source:
    """What the file holds; from block ``first`` on where libsndfile can enter it exactly."""
    if raw_format:
        return _Source(_ffmpeg_pieces(file, raw_format), is_entered=False)
    if not file.read(1):
        raise ValueError("holds no bytes")
    file.seek(0)
    parts = _parts(file)
    stretches = [io.BufferedReader(Slice(file, p.offset, p.size), _BUFFER_BYTES) for p in parts]
    readers = [
        _sndfile_pieces if _is_for_sndfile(part, stretch.peek(_OGG_HEAD_BYTES)) else _ffmpeg_pieces
        for part, stretch in zip(parts, stretches, strict=True)
    ]
    if readers == [_sndfile_pieces]:
        return _Source(_sndfile_pieces(stretches[0], first), is_entered=True)
    pieces = (read(stretch) for read, stretch in zip(readers, stretches, strict=True))
    return _Source(chain.from_iterable(pieces), is_entered=False)


def _parts(file: BinaryIO) -> list[Part]:
    """What the file is made of; an MP3 may begin with bytes that are none of it."""
    parts = parts_of(file)
    if parts and parts[0].kind == Kind.OTHER:
        require_whole(file, parts[0].offset)
        with av.open(Slice(file, parts[0].offset, parts[0].size), mode="r") as container:
            is_mp3 = container.format.name == "mp3"
        return (is_mp3 and frames_of(file)) or parts
    return parts


def _is_for_sndfile(part: Part, head: bytes) -> bool:
    """Whether libsndfile reads it exactly: between two reads of MP3 and Opus it loses its place."""
    if part.kind == Kind.OGG:
        return b"\x01vorbis" in head[:_OGG_HEAD_BYTES]
    # FFmpeg drops the end of ALAC in a CAF.
    return part.kind in (Kind.WAV, Kind.FLAC, Kind.CAF) and part.is_length_known


def _sndfile_pieces(file: BinaryIO, first: int = 0) -> Iterator[tuple[Wave, int]]:
    with soundfile.SoundFile(file) as sound:
        start = min(_Periods.at(sound.samplerate).entry(first), sound.frames)
        _pass_over(sound, start)
        left = sound.frames - start
        # Not in the library's own blocks: they are as long as they should be, whatever was read.
        while len(wav_SC := _read(sound, min(left, _READ_FRAMES))):
            left -= len(wav_SC)
            yield np.ascontiguousarray(wav_SC.T), sound.samplerate
        if left:
            raise ValueError(f"damaged: {left:,} of its {sound.frames:,} samples are missing")


def _read(sound: soundfile.SoundFile, num_frames: int) -> Wave:
    wav_SC: Wave = sound.read(num_frames, dtype="float32", always_2d=True)
    return wav_SC


def _pass_over(sound: soundfile.SoundFile, num_frames: int) -> None:
    """Go to a sample; GSM and G.721 in a WAV are read up to there."""
    if sound.seekable():
        sound.seek(num_frames)
        return
    for start in range(0, num_frames, _READ_FRAMES):
        _read(sound, min(_READ_FRAMES, num_frames - start))


def _ffmpeg_pieces(file: BinaryIO, raw_format: str | None = None) -> Iterator[tuple[Wave, int]]:
    with av.open(file, mode="r", format=raw_format) as container:
        if not container.streams.audio:
            raise ValueError("holds no audio stream")
        to_float = av.AudioResampler(format="fltp")
        for frame in chain(container.decode(container.streams.audio[0]), [None]):
            for piece in to_float.resample(frame):
                yield piece.to_ndarray().astype(np.float32, copy=False), piece.sample_rate
