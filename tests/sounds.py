"""Audio files made in this process: the bytes of one sound in any format."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial

import av
import numpy as np
import soundfile

from orchestrator.quantities import SAMPLE_RATE_HZ


def speech(seconds: float = 2, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """A voice-like sweep, mono."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    sweep = np.sin(2 * np.pi * (200 + 40 * np.sin(4 * np.pi * t)) * t)
    return (0.3 * sweep + 0.02 * np.random.default_rng(0).normal(size=t.size)).astype(np.float32)


def by_sndfile(
    form: str, wave: np.ndarray | None = None, rate_hz: int = SAMPLE_RATE_HZ, **how: str
) -> bytes:
    """As libsndfile writes it; ``wave`` as S or SxC."""
    file = io.BytesIO()
    given = speech() if wave is None else wave
    soundfile.write(file, given, rate_hz, **{"format": form.upper(), **how})
    return file.getvalue()


def by_ffmpeg(
    form: str, codec: str, rate_hz: int = SAMPLE_RATE_HZ, bits_per_s: int | None = None
) -> bytes:
    """As FFmpeg's libraries write it; ``form``: their name of the container."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        if bits_per_s:
            stream.bit_rate = bits_per_s
        pcm = (speech() * 32_767).astype("<i2")[None]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        encoder_format = av.AudioResampler(stream.format, "mono", rate_hz)
        queue = av.AudioFifo()
        for resampled in [*encoder_format.resample(frame), *encoder_format.resample(None)]:
            resampled.pts = None
            queue.write(resampled)
        while piece := queue.read(stream.codec_context.frame_size or 1024, partial=True):
            container.mux(stream.encode(piece))
        container.mux([packet for packet in stream.encode(None) if packet.size])
    return file.getvalue()


def video(*, sound: bool) -> bytes:
    """Two seconds of a grey picture, with or without the sound."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        picture = container.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p")
        if sound:
            voice = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        if sound:
            frame = av.AudioFrame.from_ndarray(speech()[None], format="fltp", layout="mono")
            frame.sample_rate = SAMPLE_RATE_HZ
            queue = av.AudioFifo()
            queue.write(frame)
            while piece := queue.read(voice.codec_context.frame_size or 1024, partial=True):
                container.mux(voice.encode(piece))
            container.mux(voice.encode(None))
    return file.getvalue()


@cache
def whole(name: str) -> bytes:
    """A good file of each container, by its suffix and who wrote it."""
    return WHOLE[name]()


WHOLE: dict[str, Callable[[], bytes]] = {
    "pcm.wav": lambda: by_sndfile("wav"),
    "rf64.wav": lambda: by_sndfile("rf64"),
    "a.flac": lambda: by_sndfile("flac"),
    "ffmpeg.flac": lambda: by_ffmpeg("flac", "flac"),
    "vorbis.ogg": lambda: by_sndfile("ogg", subtype="VORBIS"),
    "opus.ogg": lambda: by_sndfile("ogg", subtype="OPUS"),
    "flac.oga": lambda: by_ffmpeg("ogg", "flac"),
    "ffmpeg.opus": lambda: by_ffmpeg("opus", "libopus", 48_000),
    "lame.mp3": lambda: by_sndfile("mp3"),
    "ffmpeg.mp3": lambda: by_ffmpeg("mp3", "libmp3lame"),
    "aac.m4a": lambda: by_ffmpeg("ipod", "aac"),
    "alac.m4a": lambda: by_ffmpeg("ipod", "alac"),
    "opus.webm": lambda: by_ffmpeg("webm", "libopus", 48_000),
    "aac.mka": lambda: by_ffmpeg("matroska", "aac"),
    "adts.aac": lambda: by_ffmpeg("adts", "aac"),
    "narrow.amr": lambda: by_ffmpeg("amr", "libopencore_amrnb", 8_000),
    "mp3.wav": lambda: by_ffmpeg("wav", "libmp3lame"),
    "other order.wav": lambda: by_sndfile("wav", endian="BIG"),
    "broadcast.wav": lambda: b"BW64" + by_sndfile("rf64")[4:],
    **{f"a.{name}": partial(by_sndfile, name) for name in ("aiff", "au", "caf", "w64")},
    "a.sph": lambda: by_sndfile("nist"),
    "little.aifc": lambda: by_sndfile("aiff", endian="LITTLE"),
    "float.aiff": lambda: by_sndfile("aiff", subtype="FLOAT"),
    "ulaw.au": lambda: by_sndfile("au", subtype="ULAW"),
    "ulaw.sph": lambda: by_sndfile("nist", subtype="ULAW"),
    "alac.caf": lambda: by_sndfile("caf", subtype="ALAC_16"),
    "ffmpeg.aiff": lambda: by_ffmpeg("aiff", "pcm_s16be"),
    "ffmpeg.au": lambda: by_ffmpeg("au", "pcm_s16be"),
    "ffmpeg.caf": lambda: by_ffmpeg("caf", "pcm_s16le"),
    "ffmpeg.w64": lambda: by_ffmpeg("w64", "pcm_s16le"),
    "phone.3gp": lambda: by_ffmpeg("3gp", "aac"),
    "pcm.mov": lambda: by_ffmpeg("mov", "pcm_s16le"),
    "opus.mkv": lambda: by_ffmpeg("matroska", "libopus", 48_000),
    "windows.wma": lambda: by_ffmpeg("asf", "wmav2", 16_000, 24_000),
}
