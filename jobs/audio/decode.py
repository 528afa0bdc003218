"""Reads audio files as what every encoder of the HuBERT family reads: mono float32 at 16 kHz.

In: a path. Out: ``wav_S`` in [-1, 1], S samples at 16 kHz, whole or in blocks. libsndfile reads
what it reads exactly from any place (WAV, FLAC, Vorbis), FFmpeg's libraries (PyAV) the rest; raw
G.722 has no header, so its file name alone says what it is. Every part of a file is read, and a
file that is cut short is unreadable, whatever its decoder makes of it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from math import ceil, gcd
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torchaudio

from jobs.audio.containers import Kind, Part, parts_of
from jobs.audio.slices import Slice
from orchestrator.errors import BackendError, OrchestratorError, os_words
from orchestrator.quantities import SAMPLE_RATE_HZ

Wave = npt.NDArray[np.float32]

_RAW_FORMATS = {".g722": "g722"}
AUDIO_SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .m4a .mp4 .aac .webm .mka .wma .amr .g722".split()
)
"""File names that are taken for audio, lower case."""

BLOCK_S = 30
"""Blocks lie on this grid from the file's beginning on, so that bytes depend on no reader."""
_MARGIN_S = 0.1
"""What a block is resampled with on either side; kernels are shorter."""
_READ_FRAMES = 1 << 16
_BUFFER_BYTES = 1 << 20
_OGG_HEAD_BYTES = 128
_LOWPASS_TAPS = 255
_MAX_RESAMPLE_RATIO_TERM = 2_000


class UnreadableAudioError(OrchestratorError):
    """A recording that cannot be decoded; ``reason`` says why, without the path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; repair the file or remove it")
        self.reason = reason


def decode(path: Path, *, lowpass_hz: float | None = None) -> Wave:
    """The whole recording as ``wav_S``. Raises what ``blocks`` does."""
    return np.concatenate(list(blocks(path, lowpass_hz=lowpass_hz)))


def blocks(path: Path, *, lowpass_hz: float | None = None) -> Iterator[Wave]:
    """The recording in blocks of ``BLOCK_S``, of which the last is shorter: memory is bounded.

    Raises UnreadableAudioError, which is a verdict on its bytes; BackendError when those cannot be
    had now.
    """
    try:
        with path.open("rb", buffering=_BUFFER_BYTES) as file:
            yield from _blocks(file, _RAW_FORMATS.get(path.suffix.lower()), lowpass_hz)
    except (soundfile.LibsndfileError, av.FFmpegError, OSError, ValueError) as error:
        _require_bytes(path)
        raise UnreadableAudioError(path, _reason(error)) from None


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


def _require_bytes(path: Path) -> None:
    """Raises BackendError when the file's bytes cannot be read, whatever they are."""
    try:
        with path.open("rb") as file:
            while file.read(_BUFFER_BYTES):
                pass
    except OSError as error:
        raise BackendError(f"{os_words(error)}; see whether its folder is mounted") from None


def _reason(error: Exception) -> str:
    """What went wrong, without the path: that differs between clusters, and tables must not."""
    if isinstance(error, soundfile.LibsndfileError):
        return str(error.error_string).removeprefix("Error : ").rstrip(".")
    return getattr(error, "strerror", None) or str(error)


def _blocks(file: BinaryIO, raw_format: str | None, lowpass_hz: float | None) -> Iterator[Wave]:
    grid: _Grid | None = None
    for wav_S, rate_hz in _pieces(file, raw_format):
        if not np.isfinite(wav_S).all():
            raise ValueError("holds samples that are no numbers")
        grid = grid or _Grid(rate_hz, lowpass_hz)
        if rate_hz != grid.rate_hz:
            raise ValueError(f"its parts have {grid.rate_hz:,} and {rate_hz:,} Hz")
        yield from grid.blocks_after(wav_S)
    if grid is None:
        raise ValueError("holds no samples")
    yield from grid.rest()


class _Grid:
    """Brings a recording to 16 kHz in blocks, each from its own surroundings alone."""

    def __init__(self, rate_hz: int, lowpass_hz: float | None) -> None:
        self.rate_hz, self._lowpass_hz = rate_hz, lowpass_hz
        from_hz = _resampled_rate(rate_hz)
        common = gcd(from_hz, SAMPLE_RATE_HZ)
        self._down, self._up = from_hz // common, SAMPLE_RATE_HZ // common
        self._resample = torchaudio.transforms.Resample(self._down, self._up)
        # Whole periods of the resampler: its kernels lie on a block as they would on the file.
        self._block = BLOCK_S * common * self._down
        self._margin = ceil(_MARGIN_S * common) * self._down
        self._held: Wave = np.zeros(0, np.float32)
        self._before = 0
        """How many of the samples held lie before the next block."""

    def blocks_after(self, wav_S: Wave) -> Iterator[Wave]:
        """The blocks that are whole with these samples at the file's own rate."""
        self._held = np.concatenate([self._held, wav_S])
        while len(self._held) >= self._before + self._block + self._margin:
            yield self._next()

    def rest(self) -> Iterator[Wave]:
        """The blocks before the file's end."""
        while len(self._held) > self._before:
            yield self._next()

    def _next(self) -> Wave:
        end = min(self._before + self._block, len(self._held))
        around = torch.from_numpy(self._held[: end + self._margin])
        wav_S: Wave = self._resample(around).numpy()
        if self._lowpass_hz is not None:
            wav_S = lowpass(wav_S, self._lowpass_hz)
        start = self._before * self._up // self._down
        length = ceil((end - self._before) * self._up / self._down)
        self._before = min(self._margin, end)
        self._held = self._held[end - self._before :]
        return wav_S[start : start + length]


def _resampled_rate(rate_hz: int) -> int:
    if rate_hz // gcd(rate_hz, SAMPLE_RATE_HZ) > _MAX_RESAMPLE_RATIO_TERM:
        # The polyphase kernel has a row per term, gigabytes for an odd rate; rounding the rate
        # shifts the pitch by less than anyone hears.
        return round(rate_hz, -2) or rate_hz
    return rate_hz


def _pieces(file: BinaryIO, raw_format: str | None) -> Iterator[tuple[Wave, int]]:
    """Consecutive stretches of the mono signal with its rate in Hz, part after part."""
    if raw_format:
        yield from _ffmpeg_pieces(file, raw_format)
        return
    for part in parts_of(file):
        stretch = io.BufferedReader(Slice(file, part.offset, part.size), _BUFFER_BYTES)
        if _is_for_sndfile(part, stretch.peek(_OGG_HEAD_BYTES)):
            yield from _sndfile_pieces(stretch)
        else:
            yield from _ffmpeg_pieces(stretch)


def _is_for_sndfile(part: Part, head: bytes) -> bool:
    """Whether libsndfile reads it exactly: it reads on in MP3 and Opus with a seek each time."""
    if part.kind == Kind.OGG:
        return b"\x01vorbis" in head[:_OGG_HEAD_BYTES]
    return part.kind in (Kind.WAV, Kind.FLAC) and part.is_length_known


def _sndfile_pieces(file: BinaryIO) -> Iterator[tuple[Wave, int]]:
    with soundfile.SoundFile(file) as sound:
        left = sound.frames
        for wav_SC in sound.blocks(_READ_FRAMES, dtype="float32", always_2d=True):
            left -= len(wav_SC)
            yield np.ascontiguousarray(wav_SC.mean(axis=1)), sound.samplerate
        if left:
            raise ValueError(f"damaged: {left:,} of its {sound.frames:,} samples are missing")


def _ffmpeg_pieces(file: BinaryIO, raw_format: str | None = None) -> Iterator[tuple[Wave, int]]:
    with av.open(file, mode="r", format=raw_format) as container:
        if not container.streams.audio:
            raise ValueError("holds no audio stream")
        to_float = av.AudioResampler(format="fltp")
        for frame in chain(container.decode(container.streams.audio[0]), [None]):
            for piece in to_float.resample(frame):
                yield piece.to_ndarray().mean(axis=0), piece.sample_rate
