"""Reads an audio file as what every encoder of the HuBERT family reads: mono float32 at 16 kHz.

In: a path. Out: ``wav_S`` in [-1, 1], S samples at 16 kHz. libsndfile reads what it knows, FFmpeg's
libraries (PyAV) the rest; raw G.722 has no header, so its file name alone says what it is.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torchaudio

from orchestrator.errors import BackendError, OrchestratorError, os_words
from orchestrator.quantities import SAMPLE_RATE_HZ

Wave = npt.NDArray[np.float32]

_SNDFILE_SUFFIXES = frozenset((".wav", ".flac", ".ogg", ".opus", ".mp3"))
_FFMPEG_SUFFIXES = frozenset((".g722", ".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr"))
AUDIO_SUFFIXES = _SNDFILE_SUFFIXES | _FFMPEG_SUFFIXES
"""File names that are taken for audio, lower case."""
_RAW_FORMATS = {".g722": "g722"}
_CHUNK_BYTES = 1 << 20
_LOWPASS_TAPS = 255
_MAX_RESAMPLE_RATIO_TERM = 2_000


class UnreadableAudioError(OrchestratorError):
    """A recording that cannot be decoded; ``reason`` says why, without the path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; repair the file or remove it")
        self.reason = reason


def decode(path: Path, *, lowpass_hz: float | None = None) -> Wave:
    """The whole recording as ``wav_S``.

    Raises UnreadableAudioError, which is a verdict on its bytes; BackendError when those cannot be
    had now.
    """
    wav_S, rate_hz = _read(path)
    if not wav_S.size:
        raise UnreadableAudioError(path, "holds no samples")
    if not np.isfinite(wav_S).all():
        raise UnreadableAudioError(path, "holds samples that are no numbers")
    wav_S = _resample(wav_S, rate_hz)
    return wav_S if lowpass_hz is None else lowpass(wav_S, lowpass_hz)


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


def _read(path: Path) -> tuple[Wave, int]:
    try:
        if path.suffix.lower() in _SNDFILE_SUFFIXES:
            wav_SC, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
            return np.ascontiguousarray(wav_SC.mean(axis=1)), rate_hz
        return _read_ffmpeg(path)
    except (soundfile.LibsndfileError, av.FFmpegError, OSError, ValueError) as error:
        _require_bytes(path)
        raise UnreadableAudioError(path, _reason(error)) from None


def _require_bytes(path: Path) -> None:
    """Raises BackendError when the file's bytes cannot be read, whatever they are."""
    try:
        with path.open("rb") as file:
            while file.read(_CHUNK_BYTES):
                pass
    except OSError as error:
        raise BackendError(f"{os_words(error)}; see whether its folder is mounted") from None


def _reason(error: Exception) -> str:
    """What went wrong, without the path: that differs between clusters, and tables must not."""
    if isinstance(error, soundfile.LibsndfileError):
        return str(error.error_string).rstrip(".")
    return getattr(error, "strerror", None) or str(error)


def _read_ffmpeg(path: Path) -> tuple[Wave, int]:
    with av.open(str(path), format=_RAW_FORMATS.get(path.suffix.lower())) as container:
        if not container.streams.audio:
            raise ValueError("holds no audio stream")
        stream = container.streams.audio[0]
        to_float = av.AudioResampler(format="flt", layout="mono")
        frames = [f for frame in container.decode(stream) for f in to_float.resample(frame)]
        frames += to_float.resample(None)
    if not frames:
        return np.zeros(0, np.float32), SAMPLE_RATE_HZ
    return np.concatenate([f.to_ndarray().reshape(-1) for f in frames]), frames[0].sample_rate


def _resample(wav_S: Wave, rate_hz: int) -> Wave:
    if rate_hz == SAMPLE_RATE_HZ:
        return wav_S
    if rate_hz // gcd(rate_hz, SAMPLE_RATE_HZ) > _MAX_RESAMPLE_RATIO_TERM:
        # The polyphase kernel has a row per term, gigabytes for an odd rate; rounding the rate
        # shifts the pitch by less than anyone hears.
        rate_hz = round(rate_hz, -2) or rate_hz
    wave: torch.Tensor = torch.from_numpy(wav_S)
    resampled_S: Wave = torchaudio.functional.resample(wave, rate_hz, SAMPLE_RATE_HZ).numpy()
    return resampled_S
