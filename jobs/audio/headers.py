"""How long recordings are by their headers: what shards are balanced by, and nothing else.

In: a place. Out: samples at 16 kHz. A header may be wrong, and some formats have no length there:
what a recording holds is known when it is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import soundfile

from jobs.audio.decode import RAW_FORMATS, Wave, reading, require_bytes
from jobs.audio.place import Place
from orchestrator.quantities import SAMPLE_RATE_HZ

_FOR_SNDFILE = (b"RIFF", b"fLaC", b"OggS")
_BYTES_PER_S = 4_000
"""Of a recording whose header cannot be read: speech at 32 kbit/s."""
_LARGEST_HOURS = 10_000
"""A length beyond this is not to be believed."""


def length(where: Place) -> int:
    """The samples at 16 kHz that the header promises, or its size lets expect.

    Raises BackendError when the bytes cannot be had now.
    """
    seconds = 0.0
    try:
        with reading(where) as file:
            head = file.read(4)
            file.seek(0)
            by_header = _sndfile_s if head in _FOR_SNDFILE else _ffmpeg_s
            seconds = by_header(file, RAW_FORMATS.get(where.suffix))
    except (soundfile.LibsndfileError, av.FFmpegError, OSError, ValueError):
        require_bytes(where)  # or it may say something else tomorrow
    if not 0 < seconds < _LARGEST_HOURS * 3600:
        return by_size(where)
    return round(seconds * SAMPLE_RATE_HZ)


def by_size(where: Place) -> int:
    """What a file without a header may hold. Raises OSError."""
    return round(where.num_bytes() / _BYTES_PER_S * SAMPLE_RATE_HZ)


def as_blocks(where: Path | Place, **_: object) -> Iterator[Wave]:
    """The length in place of a wave: what `decoders.Decoders` can be given to do."""
    place = where if isinstance(where, Place) else Place.of(where)
    yield np.array([length(place)])


def _sndfile_s(file: object, _raw_format: str | None) -> float:
    with soundfile.SoundFile(file) as sound:
        return float(sound.frames / sound.samplerate)


def _ffmpeg_s(file: object, raw_format: str | None) -> float:
    with av.open(file, mode="r", format=raw_format) as container:
        return float(container.duration or 0) / av.time_base
