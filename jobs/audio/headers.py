"""What headers say of recordings: their length, for balanced shards, and their channels.

In: a place. Out: samples at 16 kHz, channels. A header may be wrong, and some formats have no
length there: what a recording holds is known when it is decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt
import soundfile

from jobs.audio.decode import RAW_FORMATS, Wave, reading, require_bytes
from jobs.audio.place import Place
from orchestrator.quantities import SAMPLE_RATE_HZ

_FOR_SNDFILE = (b"RIFF", b"fLaC", b"OggS")
_BYTES_PER_S = 4_000
"""Of a recording whose header cannot be read: speech at 32 kbit/s."""
_LARGEST_HOURS = 10_000
"""A length beyond this is not to be believed."""


class Header(NamedTuple):
    """What a header says."""

    num_samples: int
    """At 16 kHz, of each channel."""
    num_channels: int


class Headers(NamedTuple):
    """Those of some recordings, as columns."""

    num_samples: npt.NDArray[np.int64]
    num_channels: npt.NDArray[np.int64]

    @classmethod
    def of(cls, found: Iterable[Header]) -> Headers:
        """Columns of one header after the other."""
        return cls(*np.array(list(found), np.int64).reshape(-1, len(cls._fields)).T)


def header(where: Place) -> Header:
    """What the header promises, or the file's size lets expect.

    Raises BackendError when the bytes cannot be had now.
    """
    seconds, num_channels = 0.0, 1
    try:
        with reading(where) as file:
            head = file.read(4)
            file.seek(0)
            read = _by_sndfile if head in _FOR_SNDFILE else _by_ffmpeg
            seconds, num_channels = read(file, RAW_FORMATS.get(where.suffix))
    except (soundfile.LibsndfileError, av.FFmpegError, OSError, ValueError):
        require_bytes(where)  # or it may say something else tomorrow
    if not 0 < seconds < _LARGEST_HOURS * 3600:
        return by_size(where)._replace(num_channels=num_channels)
    return Header(round(seconds * SAMPLE_RATE_HZ), num_channels)


def by_size(where: Place) -> Header:
    """What a file without a header may hold. Raises OSError."""
    return Header(round(where.num_bytes() / _BYTES_PER_S * SAMPLE_RATE_HZ), 1)


def as_blocks(where: Path | Place, *, first: int = 0, **_: object) -> Iterator[Wave]:
    """A header in place of a wave, the one block: what `decoders.Decoders` can be given to do."""
    place = where if isinstance(where, Place) else Place.of(where)
    if first == 0:
        yield np.array(header(place))


def _by_sndfile(file: object, _raw_format: str | None) -> tuple[float, int]:
    """Seconds and channels."""
    with soundfile.SoundFile(file) as sound:
        return float(sound.frames / sound.samplerate), sound.channels


def _by_ffmpeg(file: object, raw_format: str | None) -> tuple[float, int]:
    with av.open(file, mode="r", format=raw_format) as container:
        streams = container.streams.audio
        known = streams[0].codec_context if streams else None  # None for a codec unknown to it
        num_channels = known.channels if known else 1
        return float(container.duration or 0) / av.time_base, max(num_channels, 1)
